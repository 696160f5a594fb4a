import tempfile
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch

from attnseg.data import augment, store
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.labels import Labels
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.data.slices import EpochSampler, SliceDataset
from attnseg.data.slicing import SliceView, network_input
from attnseg.errors import ConfigError

SIZE = (48, 64)


class Scan:
    """What `View` and `SliceDataset` take of a prepared case."""

    scaled = store.StoredCase.scaled
    mask_slice = store.StoredCase.mask_slice

    def __init__(self, image, low, high, mask=None):
        self.low, self.high, self.digest = low, high, "digest"
        self.shape = np.shape(image)[:3]
        self.kept = tempfile.TemporaryDirectory()
        self.folder = Path(self.kept.name)
        (self.folder / store.CASE_FILE).write_text(self.digest)
        for name, array in (("image", image), ("mask", mask)):
            if array is not None:
                np.save(self.folder / f"{name}.npy", np.ascontiguousarray(array))


@pytest.fixture(scope="module")
def cases(phantom, tmp_path_factory):
    reader = UWMadison(phantom)
    return store.prepare_cases(reader, reader.cases(), tmp_path_factory.mktemp("store"))


def module(cases, workers, seed=0, batch_size=4):
    return SliceDataModule(
        cases[:3], cases[3:4], SliceView(SIZE), augment.light(), batch_size, workers, seed
    )


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def test_intensities_are_scaled_and_clipped():
    scaled = SliceView((2, 2)).image(Scan([[[[50], [100]], [[150], [300]]]], (100,), (200,)), 0)
    assert scaled[..., 0].tolist() == [[0, 0], [0.5, 1]]
    assert network_input(scaled).tolist() == [[[-1, -1], [0, 1]]]


def test_a_sample_is_the_stored_slice(cases):
    case = cases[0]
    data = SliceDataset(cases, SliceView(case.shape[1:]))
    sample = data[0, 5]
    assert (sample["case"], sample["slice"]) == (0, 5)
    assert sample["image"].shape == (1, *case.shape[1:])
    bits = [(case.mask[5] >> k) & 1 for k in range(3)]
    target = Labels(("a", "b", "c"), overlapping=True).target(sample["mask"][None])[0]
    assert np.array_equal(target.numpy(), np.stack(bits))
    low, high = case.low[0], case.high[0]
    expected = (case.image[5, ..., 0].astype(float) - low) / (high - low)
    assert np.allclose(sample["image"][0], expected.clip(0, 1) * 2 - 1, atol=1e-6)


PRESETS = ["none", "light", "strong", "transunet", "dae_former"]


@pytest.mark.parametrize("preset", PRESETS)
def test_masks_are_never_interpolated_and_images_stay_in_range(cases, preset):
    data = SliceDataset(cases, SliceView((64, 64)), getattr(augment, preset)(), seed=1)
    known = set(np.unique(np.concatenate([case.mask.ravel() for case in cases])).tolist())
    changed = 0
    for index in range(len(data)):
        sample, plain = data[0, index], data.view.image(*located(data, index))
        assert set(sample["mask"].unique().tolist()) <= known
        assert sample["mask"].shape == sample["image"].shape[1:] == (64, 64)
        assert sample["image"].min() >= -1
        assert sample["image"].max() <= 1
        changed += not torch.equal(sample["image"], torch.from_numpy(network_input(plain)))
    share = {"none": 0, "light": 0.98, "strong": 0.99, "transunet": 0.75, "dae_former": 0.75}
    assert changed / len(data) == pytest.approx(share[preset], abs=0.12)


def located(data, index):
    at_case, at_slice = data.index[index]
    return data.cases[at_case], at_slice


def test_image_and_mask_move_together(cases):
    """A picture that is its own mask stays so: nothing is shifted between the two."""
    for preset in ("transunet", "strong"):
        masks = np.repeat(np.stack([case.mask[4][:56, :56] & 1 for case in cases]), 8, 0)
        image = masks[..., None].astype(np.uint8)
        scan = Scan(image, (0,), (1,), masks)
        transforms = [t for t in getattr(augment, preset)() if not isinstance(t, PHOTOMETRIC)]
        data = SliceDataset([scan], SliceView((56, 56)), transforms, seed=2)
        for index in range(len(data)):
            sample = data[0, index]
            agree = ((sample["image"][0] > 0) == sample["mask"].bool()).float().mean()
            assert agree > 0.985


PHOTOMETRIC = (A.RandomBrightnessContrast, A.RandomGamma, A.GaussianBlur, A.Downscale, A.GaussNoise)


def test_exclusive_classes_keep_their_index(cases):
    mask = SliceDataset(cases, SliceView(SIZE))[0, 4]["mask"]
    assert torch.equal(Labels(tuple("abcdefg")).target(mask[None])[0], mask)


def test_neighbours_become_channels_and_repeat_at_the_ends():
    image = np.arange(6)[:, None, None, None] * np.ones((1, 2, 2, 1)) * 10
    scan = Scan(image, (0,), (50,))
    for index, around in ((0, (0, 0, 2)), (3, (1, 3, 5)), (5, (3, 5, 5))):
        seen = SliceView((2, 2), slices=3, stride=2).image(scan, index)[0, 0]
        assert seen.tolist() == pytest.approx([a / 5 for a in around])
    assert SliceView((2, 2), slices=5).image(scan, 2)[0, 0].tolist() == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8]
    )


def test_every_neighbour_brings_all_its_channels():
    image = np.arange(6).reshape(3, 1, 1, 2).repeat(2, 1).repeat(2, 2)
    seen = SliceView((2, 2), slices=3).image(Scan(image, (0, 1), (10, 11)), 1)[0, 0]
    assert seen.tolist() == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4])


def test_favoured_slices_get_their_share_and_the_epoch_its_length():
    favoured = np.array([3, 7])
    sampler = EpochSampler(20, True, favoured=favoured, share=0.5)
    for number in range(5):
        sampler.set_epoch(number)
        keys = [index for _, index in sampler]
        assert len(keys) == 20
        assert 10 <= sum(key in favoured for key in keys) <= 12
        assert min(keys.count(3), keys.count(7)) >= 5
    assert [k for _, k in EpochSampler(20, True, favoured=favoured, share=0.0)] != keys
    plain = sorted(k for _, k in EpochSampler(20, True, favoured=np.array([], int), share=0.5))
    assert plain == list(range(20))


def test_slices_with_any_class_are_known(cases):
    data = SliceDataset(cases, SliceView(SIZE))
    found = [
        i for i in range(len(data)) if data.cases[data.index[i][0]].mask[data.index[i][1]].any()
    ]
    assert data.foreground().tolist() == found
    assert 0 < len(found) < len(data)


def test_sample_depends_on_seed_epoch_and_index_alone(cases):
    data = SliceDataset(cases, SliceView(SIZE), augment.light(), seed=1)
    first = data[2, 5]["image"]
    data[0, 1], np.random.rand(), torch.rand(1)
    assert torch.equal(first, data[2, 5]["image"])
    assert not torch.equal(first, data[3, 5]["image"])
    other = SliceDataset(cases, SliceView(SIZE), augment.light(), seed=2)
    assert not torch.equal(first, other[2, 5]["image"])


def test_transforms_draw_independently(cases):
    """Left alone are the share of slices that both transforms skip, not that the rarer one does."""
    plain = SliceDataset(cases, SliceView(SIZE))
    data = SliceDataset(cases, SliceView(SIZE), augment.light(), seed=1)
    keys = [(epoch, index) for epoch in range(20) for index in range(20)]
    alone = [torch.equal(data[key]["image"], plain[key]["image"]) for key in keys]
    assert np.mean(alone) == pytest.approx(0.1 * 0.2, abs=0.02)


def test_batches_do_not_depend_on_the_number_of_workers(cases):
    alone, helped = (epoch(module(cases, workers), 3) for workers in (0, 2))
    assert len(alone) == len(helped) > 2
    for a, b in zip(alone, helped, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_epochs_and_seeds_shuffle_differently(cases):
    def order(seed, number):
        return [
            b["case"].tolist() + b["slice"].tolist() for b in epoch(module(cases, 0, seed), number)
        ]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_validation_sees_every_slice_once_in_order(cases):
    batches = list(module(cases, 0).val_dataloader())
    seen = [s for batch in batches for s in batch["slice"].tolist()]
    assert seen == list(range(cases[3].shape[0]))


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_an_epoch(shuffle):
    parts = [list(EpochSampler(11, shuffle, 0, rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [3 if shuffle else 4] * 3
    assert len(EpochSampler(11, shuffle, 0, 0, 3)) == len(parts[0])
    together = [index for keys in zip(*parts, strict=True) for _, index in keys]
    alone = [index for _, index in EpochSampler(11, shuffle)]
    assert together == (alone[:9] if shuffle else [*alone, 10])  # the last one fills up


def test_an_epoch_can_begin_in_its_middle():
    sampler = EpochSampler(10, True)
    whole = [list(sampler), *(sampler.set_epoch(1) or [list(sampler)])]
    sampler.go_on(0, 4)
    sampler.set_epoch(0)  # as Lightning does
    assert list(sampler) == whole[0][4:]
    assert len(sampler) == 10
    sampler.set_epoch(1)
    assert list(sampler) == whole[1]


def test_there_is_no_loader_for_the_test_set():
    assert "test_dataloader" not in vars(SliceDataModule)
    assert "predict_dataloader" not in vars(SliceDataModule)


def test_a_batch_larger_than_the_data(cases):
    with pytest.raises(ConfigError, match="use at most 24"):
        module(cases, 0, batch_size=25)


@pytest.mark.parametrize("size", [(20, 20), (20, 180), (180, 60)])
def test_a_resized_mask_lies_where_its_image_lies(size):
    mask = np.zeros((1, 60, 60), np.uint8)
    mask[0, 15:45, 20:40] = 1
    scan, view = Scan(mask[..., None], (0,), (1,), mask), SliceView(size)
    image, resized = view.image(scan, 0)[..., 0], view.mask(scan.mask_slice(0))
    for axis in (0, 1):
        centre = [(v.sum(1 - axis) @ np.arange(size[axis])) / v.sum() for v in (image, resized)]
        assert centre[0] == pytest.approx(centre[1], abs=0.02)


def test_a_warp_moves_points_as_far_as_asked():
    height, width = 60, 90
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    moves = []
    for seed in range(40):
        warp = A.Compose([augment.Warp(0.02, 0.02, p=1)], seed=seed)
        picture = np.stack([x / width, y / height], -1).astype(np.float32)
        moved = warp(image=picture, mask=np.zeros((height, width), np.uint8))["image"]
        moves.append((moved - picture)[10:-10, 12:-12].std())
    assert 0.006 < np.mean(moves) < 0.02  # between the points it is less than at them
    assert max(moves) < 0.04
