"""Labels mean what the dataset declares: voxels to ignore, 255, values of classes, soft labels."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from attnseg.cli.hydra_app import compose_raw
from attnseg.commands import evaluate, explain, export, predict
from attnseg.config.components import build_components
from attnseg.config.training import parse_config
from attnseg.data.labels import IGNORE, Labels
from attnseg.data.store import _count_voxels
from attnseg.errors import ConfigError, DataError
from attnseg.evaluation.mask_folders import score_folders
from attnseg.evaluation.summary import print_summary
from attnseg.losses.ce import CrossEntropy
from attnseg.losses.dice import Dice
from attnseg.losses.dice_ce import DiceCE
from attnseg.losses.focal import Focal
from attnseg.losses.tversky import Tversky
from attnseg.metrics.profiles.isic_pooled import ISICPooled
from attnseg.metrics.profiles.nnunet import NNUNet
from attnseg.metrics.profiles.profile import score_known_voxels
from attnseg.metrics.profiles.strict import Strict
from attnseg.prediction.spec import InferenceSpec
from attnseg.training.module import SegmentationModule
from tests.contracts.groups import compose
from tests.data.test_formats import low_png
from tests.data.test_nnunet import SCAN, Dataset
from tests.prediction.made import organ, segment, spec

TWO = Labels(("a", "b"), ignore=True)
SHARED = Labels(("a", "b"), overlapping=True, ignore=True)
LOSSES = (CrossEntropy, Dice, DiceCE, Focal, Tversky)


def loss_of(loss, labels, logits, label_map):
    module = SimpleNamespace(labels=labels, loss=loss)
    return SegmentationModule.compute_loss(module, logits, torch.from_numpy(label_map))


@pytest.mark.parametrize("labels", [TWO, SHARED], ids=["exclusive", "overlapping"])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_loss_counts_voxels_to_be_ignored(labels, loss):
    """The same as of pictures from which a strip to be ignored was cut; its gradient is zero."""
    rng = np.random.default_rng(0)
    label_map = rng.integers(0, 3, (2, 6, 9)).astype(np.uint8)
    logits = torch.from_numpy(rng.normal(size=(2, labels.channels, 6, 9)).astype(np.float32))
    cut = label_map[:, :, :5].copy(), logits[:, :, :, :5].clone()
    label_map[:, :, 5:] = IGNORE
    made = loss(labels.overlapping)
    logits.requires_grad_()
    value = loss_of(made, labels, logits, label_map)
    target = labels.target(torch.from_numpy(cut[0]))
    torch.testing.assert_close(value, made(cut[1], target), rtol=1e-5, atol=1e-6)
    value.backward()
    assert logits.grad[..., :5].any()
    assert not logits.grad[..., 5:].any()
    nothing = loss_of(made, labels, logits, np.full_like(label_map, IGNORE))
    assert nothing.item() == 0
    assert nothing.requires_grad


@pytest.mark.parametrize("labels", [TWO, SHARED], ids=["exclusive", "overlapping"])
@pytest.mark.parametrize("profile", [Strict(), NNUNet(), ISICPooled()], ids=lambda p: p.name)
def test_no_metric_counts_voxels_to_be_ignored(labels, profile):
    """The same as of a scan from which slices to be ignored were cut, far from all classes."""
    rng = np.random.default_rng(0)
    label_map = np.zeros((9, 8, 8), np.uint8)
    label_map[2:5, 2:6, 2:6] = rng.integers(0, 3, (3, 4, 4))
    prediction = np.roll(labels.split(label_map), 1, 2)
    cut = labels.split(label_map[:6]), prediction[:, :6]
    label_map[6:], prediction[:, 6:] = IGNORE, True
    ignored = labels.find_ignored(label_map)
    given = labels.split(label_map), prediction, (1.0, 2.0, 3.0), labels.names
    scores = {row[:2]: row[2] for row in score_known_voxels(profile, *given, ignored)}
    expected = {row[:2]: row[2] for row in profile.score_case(*cut, *given[2:])}
    assert scores == pytest.approx(expected, nan_ok=True)
    assert profile.score_case(*given) != pytest.approx(expected, nan_ok=True)


def test_the_label_to_ignore_of_a_dataset(tmp_path):
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 5 * 2
    names = {"background": 0, "a": 2, "b": 4, "c": 6, "ignore": 8}
    data = Dataset(tmp_path / "d", labels=names).case(labels=labels)
    case, reader = data.read(), data.reader()
    assert reader.labels == Labels(("a", "b", "c"), ignore=True)
    assert reader.values == (2, 4, 6)
    assert np.array_equal(case.mask, np.where(labels == 8, IGNORE, labels // 2))
    counts, overlaps = _count_voxels(case.mask, reader.labels)
    assert counts.sum(0).tolist() == [(labels == v).sum() for v in (2, 4, 6)]
    assert not overlaps.any()
    regions = {"background": 0, "all": [1, 2], "core": 2, "ignore": 3}
    data = Dataset(tmp_path / "r", labels=regions).case(labels=labels // 2 % 4)
    case, reader = data.read(), data.reader()
    assert reader.values is None
    masks = reader.labels.split(case.mask)
    assert np.array_equal(masks[0], (labels // 2 % 4 == 1) | (labels // 2 % 4 == 2))
    assert np.array_equal(masks[1], labels // 2 % 4 == 2)


@pytest.fixture
def folders(tmp_path):
    def write(**cases):
        """Write label maps of truth and prediction by case."""
        for case, maps in cases.items():
            for name, values in zip(("truth", "pred"), maps, strict=True):
                (tmp_path / name).mkdir(exist_ok=True)
                array = np.tile(np.array(values), (2, 2, 1))
                kind = np.float64 if array.dtype.kind == "f" else np.uint16
                nib.save(
                    nib.Nifti1Image(array.astype(kind), np.eye(4)), tmp_path / name / f"{case}.nii"
                )
        return tmp_path / "pred", tmp_path / "truth"

    return write


def dice_of(pred, truth, *arguments, **options):
    scores = score_folders(pred, truth, [Strict()], *arguments, **options)
    chosen = scores[scores["metric"] == "dice"]
    return dict(
        zip(zip(chosen["case"], chosen["class"], strict=True), chosen["value"], strict=True)
    )


def test_a_255_has_one_meaning_in_a_folder(folders):
    pair = folders(a=([0, 255, 255, 0], [0, 1, 1, 0]), b=([0, 0, 255, 0], [0, 0, 0, 1]))
    assert dice_of(*pair) == {("a", "1"): 1, ("b", "1"): 0}
    assert dice_of(*pair, ["lesion"]) == {("a", "lesion"): 1, ("b", "lesion"): 0}
    with pytest.raises(DataError, match=r"a\.nii: unknown labels 255 \(known are 0, 1, 2\)"):
        dice_of(*pair, ["lesion", "rest"])
    pair = folders(b=([0, 1, 255, 0], [0, 1, 1, 0]))
    with pytest.raises(DataError, match=r"a\.nii: 255 in a folder of other labels.*ignore_label="):
        dice_of(*pair)
    with pytest.raises(DataError, match=r"unknown labels 255"):
        dice_of(*pair, ["lesion"])
    ignoring = dice_of(*pair, ignore_label=255)
    assert ignoring.pop(("b", "1")) == 1
    assert np.isnan(ignoring.pop(("a", "1")))  # Nothing is left of its truth or its prediction.
    assert not ignoring
    pair = folders(a=([0, 4, 0, 0], [0, 255, 0, 0]))
    with pytest.raises(DataError, match=r"pred/a\.nii: unknown labels 255"):
        dice_of(*pair, ignore_label=255)


def test_classes_have_the_values_of_the_dataset(folders):
    pair = folders(a=([0, 1, 2, 4], [0, 1, 2, 2]))
    assert dice_of(*pair) == pytest.approx({("a", "1"): 1, ("a", "2"): 2 / 3, ("a", "4"): 0})
    brats = {"necrosis": 1, "oedema": 2, "enhancing": 4}
    assert list(dice_of(*pair, brats).values()) == pytest.approx([1, 2 / 3, 0])
    regions = {"whole": [1, 2, 4], "core": [1, 4], "enhancing": 4}
    assert list(dice_of(*pair, regions).values()) == pytest.approx([1, 2 / 3, 0])
    with pytest.raises(DataError, match=r"truth/a\.nii: unknown labels 4 \(known are 0, 1, 2\)"):
        dice_of(*pair, ["necrosis", "oedema"])
    for wrong in ({"a": 0}, {"a": []}, {"a": [1, 4]}):
        with pytest.raises(ConfigError, match=r"^classes: 'a' has the labels \["):
            dice_of(*pair, wrong, ignore_label=4)


def test_soft_labels_are_named(folders):
    for values in ([0, 0.5, 1, 1], [0, 0.9999, 1, 1], [0, 0.9999999, 1, 1]):
        pair = folders(a=([0, 1, 1, 1], values))
        with pytest.raises(
            DataError, match=r"pred/a\.nii: labels that are no whole numbers, such "
        ):
            dice_of(*pair)
    pair = folders(a=([0, 1, 1, 1], [0.0, 1.0, 1.0, 1.0]))
    assert dice_of(*pair) == {("a", "1"): 1}


def test_pictures_of_few_bits_score_as_what_they_store(tmp_path, capsys):
    labels = np.arange(48).reshape(6, 8) % 4
    for name in ("pred", "truth"):
        (tmp_path / name).mkdir()
    low_png(tmp_path / "truth/a.png", labels, 4)
    low_png(tmp_path / "truth/b.png", labels, 2)
    low_png(tmp_path / "truth/c.png", labels, 4)
    for name in ("a", "b", "c"):
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"pred/{name}.png")
    assert set(dice_of(tmp_path / "pred", tmp_path / "truth").values()) == {1}
    scores = score_folders(tmp_path / "pred", tmp_path / "truth", [Strict()])
    capsys.readouterr()
    print_summary(Strict(), "pictures", Strict().summarise(scores), scores, None)
    assert "95 % low" in capsys.readouterr().out  # although distances are undefined


def test_masks_are_written_with_the_values_of_the_dataset(tmp_path):
    image = organ((9, 8, 5))
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "in/a.nii.gz")
    how = {"classes": ("bright", "dark"), "multilabel": False, "size": (24, 27)}
    for values, expected in (((4, 2), (4, 2)), ((300, 1), (300, 1)), (None, (1, 2))):
        output = tmp_path / f"out{expected[0]}"
        segment(tmp_path / "in", output, values=values, **how)
        mask = nib.load(output / "masks/a.nii.gz")
        found = np.asarray(mask.dataobj)
        assert np.array_equal(found == expected[0], image > 100)
        assert set(np.unique(found)) <= {0, *expected}
        assert json.loads(mask.header.extensions[0].get_content())["labels"] == {
            str(expected[0]): "bright", str(expected[1]): "dark",
        }  # fmt: skip
    named = {"bright": 4, "dark": 2}
    assert dice_of(tmp_path / "out4/masks", tmp_path / "out4/masks", named)["a", "bright"] == 1


def test_a_spec_without_values_is_that_of_older_versions():
    plain = spec(classes=("a", "b"), multilabel=False)
    assert "values" not in json.loads(plain.to_json())
    brats = spec(classes=("a", "b"), multilabel=False, values=(1, 4))
    assert InferenceSpec.from_json(brats.to_json()) == brats
    for values in ((1,), (1, 1), (0, 1), (1, 2, 3)):
        with pytest.raises(ValueError, match="values"):
            spec(classes=("a", "b"), multilabel=False, values=values)


def test_a_loss_of_single_pictures_is_refused_where_voxels_are_ignored(tmp_path):
    data = Dataset(tmp_path, labels={"background": 0, "a": 1, "ignore": 2})
    reader = data.case(labels=SCAN.astype(np.uint8) % 3).reader()
    options = ["dataset=nnunet", "model.size=tiny", "dataset.image_size=[32,32]", "model=setr"]
    build_components(parse_config(compose(*options)), reader)
    with pytest.raises(ConfigError, match=r"^loss\.batch: .*use loss\.batch=true"):
        build_components(parse_config(compose(*options, "loss.batch=false")), reader)


EMPTY_PATHS = [
    (evaluate, ["pred=", "truth=b"], "pred"), (evaluate, ["run="], "run"),
    (evaluate, ["run=a", "root="], "root"), (evaluate, ["run=a", "outputs="], "outputs"),
    (predict, ["run=", "input=a", "output=b"], "run"),
    (predict, ["run=a", "input=", "output=b"], "input"),
    (predict, ["capsule=", "input=a", "output=b"], "capsule"),
    (export, ["run="], "run"), (explain, ["run="], "run"),
]  # fmt: skip


def test_an_empty_path_is_no_path():
    for module, arguments, key in EMPTY_PATHS:
        raw = compose_raw(module.COMMAND, arguments)
        with pytest.raises(ConfigError, match=f"^{key}: '' is not allowed"):
            module.COMMAND.parse(raw)
