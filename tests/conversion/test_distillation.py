"""The distance from a teacher: zero from itself, known values, gradients for the student alone."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from attnseg.config.training import Conversion, parse_config
from attnseg.conversion.distillation import Distiller, compare_logits, compare_outputs
from attnseg.conversion.surgery import convert_model
from attnseg.data.labels import Labels
from attnseg.errors import ConfigError
from attnseg.losses.dice_ce import DiceCE
from attnseg.training.module import SegmentationModule
from attnseg.training.recompute import recompute_blocks
from tests.contracts.groups import compose
from tests.contracts.test_models import SIZE, make


def options(**weights):
    return Conversion.model_validate({"parent": "x", **weights})


def test_logits_are_compared_as_published():
    torch.manual_seed(0)
    own, taught = torch.randn(2, 2, 4, 3, 3)
    for t in (1.0, 2.0):
        softened = [F.log_softmax(each / t, 1) for each in (own, taught)]
        whole = F.kl_div(*softened, reduction="sum", log_target=True)
        expected = t * t * whole / (2 * 3 * 3)
        torch.testing.assert_close(compare_logits(own, taught, t, False), expected)
        p, q = ((each / t).sigmoid() for each in (taught, own))
        alone = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        expected = t * t * alone.mean()
        torch.testing.assert_close(compare_logits(own, taught, t, True), expected)
    assert compare_logits(own, own, 2.0, False) == compare_logits(own, own, 2.0, True) == 0


def test_outputs_are_compared_as_a_share():
    taught = torch.randn(2, 5, 8)
    assert compare_outputs(1.1 * taught, taught).item() == pytest.approx(0.01, rel=1e-3)
    assert compare_outputs(1.1 * 50 * taught, 50 * taught).item() == pytest.approx(0.01, rel=1e-3)


def pair():
    torch.manual_seed(0)
    student, teacher = make("setr", "kv"), make("setr", "qkv").eval()
    convert_model(student, teacher, "average", {})
    return student, teacher


@pytest.mark.parametrize("recompute", [False, True])
def test_the_student_learns_and_the_teacher_does_not(recompute):
    student, teacher = pair()
    if recompute:
        recompute_blocks(student)
    images = torch.randn(2, 1, *SIZE)
    gradients = {}
    for name in ("logits", "features"):
        weights = {"task": 0.0, "logits": 0.0, "features": 0.0, name: 3.0}
        distiller = Distiller(student, teacher, options(**weights), overlapping=False)
        with distiller.recorded():
            logits, *_ = student.training_outputs(images)
        total = distiller.add_distance(torch.tensor(5.0), images, logits, processes=2)
        with torch.no_grad():
            taught = teacher(images)
        if name == "logits":
            expected = 3 * compare_logits(logits, taught, 2.0, False) / 2
            torch.testing.assert_close(total, expected)
        student.zero_grad()
        total.backward()
        gradients[name] = student.encoder[0].attn.out.weight.grad.clone()
        assert gradients[name].isfinite().all()
        assert gradients[name].any()
        assert not any(parameter.grad is not None for parameter in teacher.parameters())
        assert distiller.outputs == {"student": {}, "teacher": {}}
        student.training_outputs(images)  # not within `recorded`
        assert distiller.outputs["student"] == {}
    assert not torch.equal(gradients["logits"], gradients["features"])
    # The last attention's output is behind no head's gradient of the features.
    assert student.head.classify.weight.grad is None


def test_the_weighted_sum_counts_the_task():
    student, teacher = pair()
    images = torch.randn(2, 1, *SIZE)
    distiller = Distiller(student, teacher, options(task=2.0, logits=0.0, features=0.0), False)
    total = distiller.add_distance(torch.tensor(5.0), images, student(images), 1)
    assert total == 10


def test_the_distance_of_a_network_from_itself_is_zero():
    _, teacher = pair()
    copied = copy.deepcopy(teacher)
    distiller = Distiller(copied, teacher, options(), False)
    images = torch.randn(2, 1, *SIZE)
    with distiller.recorded():
        logits = copied(images)
    assert distiller.add_distance(torch.tensor(0.0), images, logits, 1) == 0


def test_a_module_keeps_no_teacher():
    student, teacher = pair()
    components = SimpleNamespace(
        model=student, loss=DiceCE(False), optimizer=None, schedule=None, transforms=[]
    )
    distiller = Distiller(student, teacher, options(), False)
    module = SegmentationModule(
        components, Labels(("a", "b"), False), ["x"], [], 0.4, 0, distiller=distiller
    )
    assert len(module.state_dict()) == len(student.state_dict())
    assert {id(p) for p in module.parameters()} == {id(p) for p in student.parameters()}
    module.trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=0)
    mask = torch.zeros(2, *SIZE, dtype=torch.uint8)
    batch = {"image": torch.randn(2, 1, *SIZE), "mask": mask, "case": torch.zeros(2).long()}
    with_teacher = module.training_step(batch, 0)
    module.distiller = None
    assert with_teacher > module.training_step(batch, 0)
    module.distiller = distiller


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("conversion", {"task": 0, "logits": 0, "features": 0}, r"conversion\.task: 0 like"),
        ("trainer", {"compile": "default"}, r"trainer\.compile: a conversion compares"),
        ("trainer", {"strategy": "fsdp", "devices": 2}, r"trainer\.strategy: fsdp would"),
    ],
)
def test_options_that_do_not_fit_are_refused(part, values, message):
    raw = compose("dataset=phantom")
    raw["conversion"] = {"parent": "x"}
    parse_config(raw)
    raw[part] = {**raw[part], **values}
    with pytest.raises(ConfigError, match=message):
        parse_config(raw)
