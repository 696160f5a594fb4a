"""Time to segment a whole volume: as evaluation does, and slice by slice as published codes do."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from attnseg.benchmark.machine import Gemm
from attnseg.benchmark.options import Benchmark
from attnseg.benchmark.report import Row
from attnseg.benchmark.timing import Work, alternate, median_and_range
from attnseg.benchmark.workload import Workload
from attnseg.data.labels import Labels
from attnseg.data.slicing import SliceView
from attnseg.data.store import CASE_FILE, StoredCase
from attnseg.evaluation.scoring import make_segmenter
from attnseg.models.model import SegmentationModel

SIDE = 512  # of a slice, pixels
SLICES = 148  # of the volume
PLAIN = "published procedure"
COLUMNS = {
    "label": "model",
    "procedure": "procedure",
    "precision": "precision",
    "slices": "slices",
    "seconds": "volume, s",
    "per_slice_ms": "slice, ms",
    "speedup": "published procedure / this",
    "gemm": "float32 GEMM beside it, GFLOP/s",
}


def measure_volume(
    config: Benchmark, device: torch.device, precisions: Sequence[str], slices: int | None = None
) -> list[Row]:
    """Segment the volume in alternation: the published procedure, and ours in each precision."""
    config = config.model_copy(update={"in_channels": 1})  # as scans have
    slices = slices or SLICES
    load = Workload(config, device, batch_size=1)
    load.model.eval()
    view = SliceView(config.image_size)
    labels = Labels(tuple(f"class {number}" for number in range(1, config.num_classes)))
    segmenter = make_segmenter(load.model, labels, view, config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        few, case = make_case(Path(folder, "few"), 2), make_case(Path(folder, "all"), slices)

        def ours(case: StoredCase, precision: str) -> None:
            with load.autocast(precision):
                segmenter(case)

        def works(case: StoredCase) -> dict[tuple[str, str], Work]:
            plain = {(PLAIN, "float32"): partial(slice_by_slice, load.model, case, view.size)}
            return {**plain, **{("ours", name): partial(ours, case, name) for name in precisions}}

        for work in works(few).values():  # warm up on little
            work()
        gauge = Gemm(device).rates
        samples = alternate(works(case), config.repeats, gauge, warm_up=False)
    baseline = samples[PLAIN, "float32"]
    return [
        {
            "procedure": procedure,
            "precision": name,
            "slices": slices,
            "seconds": median_and_range(sample.seconds for sample in found),
            "per_slice_ms": 1e3 * median_and_range(s.seconds for s in found)["median"] / slices,
            "speedup": median_and_range(
                plain.seconds / own.seconds for plain, own in zip(baseline, found, strict=True)
            ),
            "gemm": median_and_range(sample.gauge["float32"] for sample in found),
        }
        for (procedure, name), found in samples.items()
    ]


@torch.no_grad()
def slice_by_slice(
    model: SegmentationModel, case: StoredCase, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Segment a volume as the published codes of TransUNet and DAE-Former do, plainly.

    Each slice by itself: zoomed to the network's size by cubic splines, segmented, the labels
    zoomed back by nearest neighbour.

    Returns:
        Labels `[S, H, W]`.
    """
    device = next(model.parameters()).device
    labels = np.zeros(case.shape, np.uint8)
    for index in range(case.shape[0]):
        plane = case.scaled(index)[..., 0]
        factors = (size[0] / plane.shape[0], size[1] / plane.shape[1])
        zoomed = ndimage.zoom(plane, factors, order=3)
        logits = model(torch.from_numpy(zoomed)[None, None].float().to(device))
        label = torch.argmax(torch.softmax(logits, 1), 1).squeeze(0).cpu().numpy()
        labels[index] = ndimage.zoom(label, (1 / factors[0], 1 / factors[1]), order=0)
    return labels


def make_case(folder: Path, slices: int) -> StoredCase:
    """Write a volume of noise in the store's layout to a new folder, `[slices, SIDE, SIDE]`."""
    folder.mkdir()
    shape = (slices, SIDE, SIDE)
    image = np.random.default_rng(0).integers(-1000, 1000, (*shape, 1), np.int16)
    np.save(folder / "image.npy", image, allow_pickle=False)
    np.save(folder / "mask.npy", np.zeros(shape, np.uint8), allow_pickle=False)
    (folder / CASE_FILE).touch()  # Reading looks for the case's digest in it, here the empty one.
    return StoredCase(
        folder=folder,
        patient="noise",
        case="noise",
        role=None,
        files=(),
        shape=shape,
        spacing=None,
        affine=None,
        low=(-1000.0,),
        high=(1000.0,),
        percentiles=(),
        voxels=(),
        overlaps=(),
        pixels="",
        mask_digests=(),
        digest="",
        source="",
    )
