import numpy as np
import pytest
import torch

from attnseg.data import augment, store
from attnseg.data.datamodule import SliceDataModule
from attnseg.data.slices import EpochSampler, SliceDataset, network_image, network_tensor
from attnseg.data.uw_madison import UWMadison
from attnseg.errors import ConfigError

SIZE = (48, 64)


@pytest.fixture(scope="module")
def cases(phantom, tmp_path_factory):
    reader = UWMadison(phantom)
    return store.prepare(reader, reader.cases(), tmp_path_factory.mktemp("store"))


def module(cases, workers, seed=0, batch_size=4):
    return SliceDataModule(
        cases[:3], cases[3:4], SIZE, 3, True, augment.light(), batch_size, workers, seed
    )


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def test_intensities_are_scaled_and_clipped():
    image = np.array([[[50], [100]], [[150], [300]]], np.uint16)
    scaled = network_image(image, 100, 200, (2, 2))
    assert scaled[..., 0].tolist() == [[0, 0], [0.5, 1]]
    assert network_tensor(scaled).tolist() == [[[-1, -1], [0, 1]]]


def test_a_sample_is_the_stored_slice(cases):
    case = cases[0]
    data = SliceDataset(cases, case.shape[1:], 3, True)
    sample = data[0, 5]
    assert (sample["case"], sample["slice"]) == (0, 5)
    assert sample["image"].shape == (1, *case.shape[1:])
    bits = [(case.mask[5] >> k) & 1 for k in range(3)]
    assert np.array_equal(sample["target"].numpy(), np.stack(bits))
    expected = (case.image[5, ..., 0].astype(float) - case.low) / (case.high - case.low)
    assert np.allclose(sample["image"][0], expected.clip(0, 1) * 2 - 1, atol=1e-6)


def test_masks_are_never_interpolated(cases):
    data = SliceDataset(cases, SIZE, 3, True, augment.light(), seed=1)
    for index in range(len(data)):
        sample = data[0, index]
        assert set(sample["target"].unique().tolist()) <= {0, 1}
        assert sample["image"].min() >= -1
        assert sample["image"].max() <= 1


def test_exclusive_classes_keep_their_index(cases):
    sample = SliceDataset(cases, SIZE, 7, False)[0, 4]
    assert sample["target"].shape == SIZE


def test_sample_depends_on_seed_epoch_and_index_alone(cases):
    data = SliceDataset(cases, SIZE, 3, True, augment.light(), seed=1)
    first = data[2, 5]["image"]
    data[0, 1], np.random.rand(), torch.rand(1)
    assert torch.equal(first, data[2, 5]["image"])
    assert not torch.equal(first, data[3, 5]["image"])
    other = SliceDataset(cases, SIZE, 3, True, augment.light(), seed=2)
    assert not torch.equal(first, other[2, 5]["image"])


def test_transforms_draw_independently(cases):
    """Left alone are the share of slices that both transforms skip, not that the rarer one does."""
    plain = SliceDataset(cases, SIZE, 3, True)
    data = SliceDataset(cases, SIZE, 3, True, augment.light(), seed=1)
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
    keys = [index for part in parts for _, index in part]
    assert len(set(keys)) == len(keys) == (9 if shuffle else 11)
    assert [len(part) for part in parts] == [
        len(EpochSampler(11, shuffle, 0, r, 3)) for r in range(3)
    ]


def test_there_is_no_loader_for_the_test_set():
    assert "test_dataloader" not in vars(SliceDataModule)
    assert "predict_dataloader" not in vars(SliceDataModule)


def test_a_batch_larger_than_the_data(cases):
    with pytest.raises(ConfigError, match="use at most 24"):
        module(cases, 0, batch_size=25)
