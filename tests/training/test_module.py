import copy
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from attnseg.config.components import optimizer_factory
from attnseg.config.training import Trainer
from attnseg.data.device_augment import DeviceAugment
from attnseg.data.labels import Labels
from attnseg.errors import ConfigError
from attnseg.layers.norm import SharedBatchNorm2d
from attnseg.losses.dice_ce import DiceCE
from attnseg.processes.launch import ProcessGroup
from attnseg.processes.signals import Stopping
from attnseg.runs.run_folder import RunFolder
from attnseg.training.callbacks.averaging import WeightAverage
from attnseg.training.compiling import (
    compile_blocks,
    compile_model,
    computing_uncompiled,
    list_compiled,
    restore_plain_model,
)
from attnseg.training.fit import fit, prepare_model
from attnseg.training.lightning_trainer import make_trainer
from attnseg.training.module import SegmentationModule, parameter_groups
from attnseg.training.recompute import list_blocks
from attnseg.training.resume import ResumePoint
from attnseg.training.setup import count_workers, make_loaders, set_up_training
from tests.contracts.test_models import SIZE, make
from tests.faults.runs import configured

ALONE = SimpleNamespace(world_size=1, global_rank=0, global_step=3)


def module_of(model, transforms=()):
    components = SimpleNamespace(
        model=model, loss=DiceCE(False), optimizer=None, schedule=None, transforms=transforms
    )
    return SegmentationModule(components, Labels(("a", "b"), False), ["x", "y"], [], 0.4, 0).train()


def test_weight_decay_spares_biases_norms_and_positions():
    model = make("setr", "kv_pos")
    decayed, spared = (group["params"] for group in parameter_groups(model))
    assert len(decayed) + len(spared) == len(list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in decayed:
        assert names[id(parameter)].endswith("weight")
        assert parameter.ndim >= 2
    assert {"embed.pos_embed", "embed.cls_token"} <= {names[id(p)] for p in spared}
    assert parameter_groups(model)[1]["weight_decay"] == 0


def test_a_batch_too_small_for_its_normalisation_is_refused():
    module = module_of(make("cvt", "qkv"))
    assert len(module.compute_outputs(torch.randn(2, 1, 32, 32))) == 1
    with pytest.raises(
        ConfigError, match=r"^dataset\.batch_size: .* 1 slice of 32x32; use at least 2"
    ):
        module.compute_outputs(torch.randn(1, 1, 32, 32))
    with pytest.raises(ValueError, match="smaller than 16"):  # another error stays what it is
        module.compute_outputs(torch.randn(1, 1, 8, 8))


def batch_of(count=2):
    mask = torch.zeros(count, *SIZE, dtype=torch.uint8)
    return {"image": torch.randn(count, 1, *SIZE), "mask": mask, "case": torch.arange(count)}


def test_training_slices_alone_are_augmented_on_the_device():
    module, batch = module_of(make("setr", "qkv"), DeviceAugment()), batch_of()
    assert module.on_after_batch_transfer(batch, 0) is batch  # of validation: nothing was drawn
    drawn = torch.from_numpy(DeviceAugment().draw(np.random.default_rng(0))).expand(2, -1)
    changed = module.on_after_batch_transfer({**batch, "draws": drawn}, 0)
    assert changed.keys() == batch.keys()
    assert not torch.equal(changed["image"], batch["image"])


def test_a_loss_that_is_no_number_is_found_before_the_step_though_the_model_is_compiled():
    """The compiled functions are never called: they call no hooks, which name the layer."""
    model = make("setr", "qkv")
    module = module_of(model)
    module.trainer = ALONE
    module.training_step(batch_of(), 0)
    module.on_before_optimizer_step(None)
    assert module.last_loss == module.loss_sum > 0
    torch.nn.init.constant_(model.encoder[1].norm1.bias, torch.nan)
    module.training_step(batch_of(), 1)
    assert module.loss_count == 1  # not looked at yet: a GPU would be waited for
    compile_model(model, Trainer(max_epochs=1, compile="default"))
    message = r"nan at step 3 \(cases x, y; first in encoder\.1\.norm1\)"
    with pytest.raises(ConfigError, match=message):
        module.on_before_optimizer_step(None)


@pytest.mark.parametrize("kind", ["default", "blocks"])
def test_scoring_does_not_compile_anew(kind):
    model = make("setr", "qkv")
    compile_model(model, Trainer(max_epochs=1, compile=kind))
    compiled = {module: module._compiled_call_impl for module in list_compiled(model)}
    assert list(compiled) == (list_blocks(model) if kind == "blocks" else [model])
    with computing_uncompiled(model):
        assert not list_compiled(model)
    assert all(module._compiled_call_impl is call for module, call in compiled.items())
    restore_plain_model(model)
    assert not list_compiled(model)
    assert "training_outputs" not in vars(model)
    restore_plain_model(model)  # once more, without effect


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        (["trainer.precision=32"], True),
        (["trainer.precision=bf16-mixed"], True),  # with clipped gradients
        (["trainer=gpu", "trainer.precision=16-mixed"], None),  # PyTorch chooses
        (["trainer=fsdp", "trainer.precision=32"], True),
        (["trainer=fsdp", "trainer.precision=32", "optimizer=sgd"], None),
    ],
)
def test_optimizers_pass_over_the_weights_once(tmp_path, options, fused):
    config = configured(tmp_path, *options)
    assert config.trainer.gradient_clip
    optimizer = optimizer_factory(config)([torch.nn.Parameter(torch.zeros(2))])
    assert optimizer.defaults["fused"] is fused


def test_gradients_are_clipped_with_a_fused_optimizer():
    module = module_of(make("setr", "qkv"))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    module.configure_gradient_clipping(optimizer, 0.5)
    norm = torch.stack([p.grad.norm() for p in module.parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, 1e-4)


def test_the_average_of_the_weights_is_where_training_is():
    """On the meta device, which no tensor of the model is on before training."""
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    module = module_of(make("setr", "qkv"))
    module.trainer = ALONE.__class__(strategy=None)
    average = WeightAverage(0.9)
    average.setup(trainer, module, "fit")
    assert {p.device.type for p in average._average_model.parameters()} == {"meta"}
    assert {p.device.type for p in module.parameters()} == {"cpu"}


@pytest.mark.parametrize(("kind", "shared"), [("fsdp", True), ("ddp", False)])
def test_batch_norm_covers_all_processes(kind, shared):
    """With DDP on GPUs, Lightning puts in PyTorch's own."""
    model = make("cvt", "qkv")
    prepare_model(model, Trainer(max_epochs=1, accelerator="gpu", devices=2, strategy=kind))
    assert any(isinstance(m, SharedBatchNorm2d) for m in model.modules()) is shared


def test_determinism_is_strict_on_gpus_alone(monkeypatch):
    given = []
    monkeypatch.setattr(pl, "Trainer", lambda **options: given.append(options))
    for accelerator in ("cpu", "gpu"):
        for deterministic in (True, False):
            options = Trainer(
                max_epochs=1, accelerator=accelerator, deterministic=deterministic, precision=32
            )
            make_trainer(options, SimpleNamespace(per_machine=1, machines=1), [], "folder")
    assert [options["deterministic"] for options in given] == ["warn", False, True, False]


@pytest.mark.parametrize(
    ("accelerator", "devices", "workers"),
    [("cpu", 1, 0), ("gpu", 1, 16), ("gpu", 2, 12), ("gpu", 40, 1)],
)
def test_loader_processes_by_the_number_of_cores(monkeypatch, accelerator, devices, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(24)), raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    options = Trainer(
        max_epochs=1, accelerator=accelerator, devices=devices, strategy="ddp", num_workers="auto"
    )
    assert count_workers(options) == workers
    assert count_workers(options.model_copy(update={"num_workers": 3})) == 3


@pytest.mark.parametrize(
    ("cores", "launched", "workers"),
    [
        (16, {"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "4"}, 4),  # 8 on two machines
        # srun binds each process to cores of its own, unless it is told otherwise.
        (
            4,
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "16"},
            4,
        ),
        (
            64,
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "8"},
            2,
        ),
    ],
)
def test_only_the_processes_of_one_machine_share_its_cores(monkeypatch, cores, launched, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    options = Trainer(
        max_epochs=1, accelerator="gpu", devices=8, strategy="ddp", num_workers="auto"
    )
    assert count_workers(options) == workers


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_memory_is_pinned_for_gpus_alone(tmp_path, kind):
    """To pin memory opens CUDA, on a GPU that may belong to another job."""
    config = configured(tmp_path)
    setup = set_up_training(config)
    loaders = make_loaders(config.revise("trainer", accelerator=kind), setup.data, setup.components)
    assert loaders.train_dataloader().pin_memory is (kind == "gpu")


def test_blocks_of_one_kind_are_compiled_once():
    """Of 12 blocks: training without and with stochastic depth, and evaluation. Numbers stay."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = make("setr", "qkv", options=("model.depth=12",)).train()
    plain = copy.deepcopy(model)
    compile_blocks(model, backend="aot_eager")
    image, mask = torch.randn(2, 1, *SIZE), torch.zeros(2, *SIZE, dtype=torch.uint8)
    for network in (plain, model):
        torch.manual_seed(0)
        outputs = network.training_outputs(image)
        sum(DiceCE(False)(output, mask.long()) for output in outputs).backward()
        with torch.no_grad():
            network.eval()(image)
    named = dict(model.named_parameters())
    for key, value in plain.named_parameters():
        torch.testing.assert_close(named[key].grad, value.grad, rtol=1e-4, atol=1e-6, msg=key)
    assert len(list_blocks(model)) >= 12
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    assert not torch._dynamo.utils.counters["graph_break"]


def test_the_last_batch_of_validation_may_be_short():
    """It is compiled once more, for any number of images; so is one of a single image."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = make("setr", "qkv").eval()
    plain = copy.deepcopy(model)
    compile_blocks(model, backend="aot_eager")
    graphs = []
    for count in (4, 3, 2, 5, 1):
        images = torch.randn(count, 1, *SIZE)
        with torch.no_grad():
            torch.testing.assert_close(model(images), plain(images), rtol=1e-4, atol=1e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [1, 2, 2, 2, 3]


def test_a_gpu_needs_a_c_compiler_to_compile(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="needs a C compiler; install gcc"):
        compile_model(None, Trainer(max_epochs=1, accelerator="gpu", compile="default"))


def test_a_training_that_was_over_before_leaves_the_model_as_it_is(tmp_path, monkeypatch):
    setup = set_up_training(configured(tmp_path, "trainer.compile=default"))
    monkeypatch.setattr(
        "attnseg.training.fit.find_resume_point", lambda *_: ResumePoint(1, 0, True)
    )
    fit(setup, RunFolder(tmp_path), ProcessGroup(1), Stopping())
    assert setup.components.model._compiled_call_impl is None
