"""Augmentation of batches on the device: samples are functions of seed, epoch and index."""

import inspect

import numpy as np
import pytest
import torch

from attnseg.config.build import build
from attnseg.data import store
from attnseg.data.augment import light
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.device_augment import KNOTS, DeviceAugment, _interpolate_moves
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.data.slices import SliceDataset
from attnseg.data.slicing import SliceView
from attnseg.errors import ConfigError
from tests.faults.runs import configured

SIZE = (48, 66)


@pytest.fixture(scope="module")
def cases(phantom, tmp_path_factory):
    reader = UWMadison(phantom)
    return store.prepare_cases(reader, reader.cases(), tmp_path_factory.mktemp("store"))


def strong():
    return DeviceAugment(rotate=25, warp=0.02, flip=True)


def augmented(cases, batch_size, workers, number=2, seed=0):
    """Return image and mask of each sample of an epoch by case and slice."""
    module = SliceDataModule(cases[:3], [], SliceView(SIZE), strong(), batch_size, workers, seed)
    loader = module.train_dataloader()
    loader.sampler.set_epoch(number)
    samples = {}
    for batch in loader:
        kept = strong()(batch)
        assert "draws" in batch
        assert "draws" not in kept
        for case, at, *sample in zip(
            *map(kept.get, ("case", "slice", "image", "mask")), strict=True
        ):
            samples[int(case), int(at)] = sample
    return samples


def test_batches_and_loader_processes_change_no_sample(cases):
    """To the bit, also of warped and mirrored samples."""
    alone = augmented(cases, 1, 0)
    assert len(alone) == 24
    for batch_size, workers in ((8, 0), (7, 2)):
        others = augmented(cases, batch_size, workers)
        assert len(others) >= 21
        for key, sample in others.items():
            assert all(torch.equal(a, b) for a, b in zip(sample, alone[key], strict=True))


def test_a_sample_depends_on_seed_epoch_and_index_alone(cases):
    first = augmented(cases, 4, 0)
    again, epoch, seed = (augmented(cases, 4, 0, n, s) for n, s in ((2, 0), (3, 0), (2, 1)))
    for key, (image, mask) in first.items():
        assert torch.equal(image, again[key][0])
        assert torch.equal(mask, again[key][1])
    changed = [[not torch.equal(first[k][0], o[k][0]) for k in first] for o in (epoch, seed)]
    assert np.mean(changed) > 0.95


def plain_and_changed(cases, augment, seed=1):
    plain = SliceDataset(cases, SliceView(SIZE))
    data = SliceDataset(cases, SliceView(SIZE), augment, seed)
    batch = torch.utils.data.default_collate([data[0, i] for i in range(len(data))])
    before = torch.utils.data.default_collate([plain[0, i] for i in range(len(data))])
    return before, augment(batch)


def test_masks_are_never_interpolated_and_images_stay_in_range(cases):
    plain, changed = plain_and_changed(cases, strong())
    assert changed["mask"].dtype == torch.uint8
    assert set(changed["mask"].unique().tolist()) <= set(plain["mask"].unique().tolist())
    assert changed["image"].min() >= -1
    assert changed["image"].max() <= 1
    share = [
        (a - b).abs().max() > 1e-4 for a, b in zip(plain["image"], changed["image"], strict=True)
    ]
    assert np.mean(share) > 0.98
    areas = [int((batch["mask"] > 0).sum()) for batch in (plain, changed)]
    assert areas[1] == pytest.approx(areas[0], rel=0.15)


def test_image_and_mask_move_together(cases):
    augment = DeviceAugment(rotate=25, warp=0.02, flip=True, brightness=0, contrast=0)
    masks = torch.from_numpy(np.repeat(np.stack([c.mask[4][:56, :56] & 1 for c in cases]), 8, 0))
    draws = [augment.draw(np.random.default_rng(i)) for i in range(len(masks))]
    images = masks[:, None].float() * 2 - 1
    changed = augment({"image": images, "mask": masks, "draws": torch.from_numpy(np.stack(draws))})
    assert ((changed["image"][:, 0] > 0) == changed["mask"].bool()).float().mean() > 0.985


def test_nothing_drawn_changes_nothing(cases):
    still = DeviceAugment(0, 0, 0, 0, 0, 0)
    plain, changed = plain_and_changed(cases, still)
    assert torch.equal(plain["mask"], changed["mask"])
    assert torch.allclose(plain["image"], changed["image"], atol=1e-4)


@pytest.mark.parametrize(
    ("matrix", "shift", "wanted"),
    [
        ((1, 0, 0, 1), (0.25, 0), [[2, 3, 4, 0], [6, 7, 8, 0]]),  # from a quarter to the right
        ((1, 0, 0, 1), (0, -0.5), [[0, 0, 0, 0], [1, 2, 3, 4]]),
        ((-1, 0, 0, 1), (0, 0), [[4, 3, 2, 1], [8, 7, 6, 5]]),
        ((1, 0, 0, -1), (0, 0), [[5, 6, 7, 8], [1, 2, 3, 4]]),
        ((0, 1, -1, 0), (0, 0), [[0, 6, 2, 0], [0, 7, 3, 0]]),  # a quarter turn of the pixels
    ],
)
def test_by_hand(matrix, shift, wanted):
    masks = torch.arange(1, 9, dtype=torch.uint8).reshape(1, 2, 4)
    draws = torch.tensor([[*matrix, *shift, 1, 0, *[0.0] * 2 * KNOTS**2]])
    images, labels = DeviceAugment().change(masks[None].float() / 10, masks, draws)
    assert labels[0].tolist() == wanted
    assert torch.allclose(images[0, 0] * 10, torch.tensor(wanted).float(), atol=1e-4)


def test_intensities_and_warps_by_hand():
    masks = torch.zeros(1, 3, 5, dtype=torch.uint8)
    draws = torch.tensor([[1, 0, 0, 1, 0, 0, 1.2, -0.1, *[0.0] * 2 * KNOTS**2]])
    images, _ = DeviceAugment().change(torch.full((1, 2, 3, 5), 0.5), masks, draws)
    assert torch.allclose(images, torch.tensor(0.5))  # 1.2 * 0.5 - 0.1
    moves = torch.zeros(1, 2, KNOTS, KNOTS)
    moves[0, 0, 1, 2] = 1.0
    field = _interpolate_moves(moves, (4, 7))[0]
    assert field[1].abs().max() == 0
    assert field[0, 1].tolist() == pytest.approx([0, 0, 0, 0.5, 1, 0.5, 0], abs=1e-6)
    assert field[0, [0, 2, 3]].abs().max() == 0


def test_shares_of_slices_and_sizes_of_changes():
    drawn = np.stack([strong().draw(np.random.default_rng((0, i))) for i in range(4000)])
    still = (drawn[:, [1, 2, 4, 5]] == 0).all(1)
    assert still.mean() == pytest.approx(0.1, abs=0.02)
    assert (drawn[:, 6] == 1).mean() == pytest.approx(0.2, abs=0.02)
    assert (drawn[:, 8:] != 0).any(1).mean() == pytest.approx(0.3, abs=0.03)
    assert drawn[:, 8:][(drawn[:, 8:] != 0).any(1)].std() == pytest.approx(0.02, rel=0.05)
    assert np.abs(drawn[:, 4:6]).max() <= 0.06
    assert (drawn[:, 0] < 0).mean() == pytest.approx(0.5, abs=0.03)  # mirrored
    unmirrored = np.stack([DeviceAugment().draw(np.random.default_rng(i)) for i in range(100)])
    assert (unmirrored[:, [0, 3]] > 0.8).all()


def test_the_defaults_are_those_of_light():
    ours, theirs = (inspect.signature(each).parameters for each in (DeviceAugment, light))
    assert {name: ours[name].default for name in theirs} == {
        name: option.default for name, option in theirs.items()
    }


def test_a_zoom_to_nothing_is_refused(tmp_path):
    config = configured(tmp_path, "augment=gpu", "augment.scale=1.0")
    with pytest.raises(ConfigError, match=r"^augment: scale is 1\.0; it must be at least 0"):
        build("augment", config.augment)


def test_a_training_augments_every_batch(call, tmp_path, monkeypatch):
    sizes = []
    change = DeviceAugment.change

    def counted(self, images, masks, draws):
        sizes.append(len(images))
        return change(self, images, masks, draws)

    monkeypatch.setattr(DeviceAugment, "change", counted)
    weights = []
    for workers in (0, 2):
        sizes.clear()
        answer = call(
            "experiment=smoke", "augment=gpu", f"trainer.num_workers={workers}", "logger=none",
            f"paths.outputs={tmp_path}/{workers}",
        )  # fmt: skip
        assert answer.code == 0, answer.err
        (run,) = (tmp_path / f"{workers}").glob("*/*/*/*")
        state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        assert len(sizes) == state["global_step"] > 1
        weights.append(state["state_dict"])
    for name, values in weights[0].items():
        assert torch.equal(values, weights[1][name]), name
