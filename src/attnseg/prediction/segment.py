"""Segmentation of a whole scan, slice by slice, by one network or the vote of several."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attnseg.data.labels import Floats, Labels, Masks
from attnseg.data.slicing import Slices, SliceView, network_input
from attnseg.errors import CheckpointError
from attnseg.prediction.masks import resize_logits, to_probabilities, to_uncertainty
from attnseg.prediction.network import Network

Flip = Literal["h", "v"]
SIGMA = 1 / 8  # of the Gaussian that weights a tile, as a share of the tile's side


@dataclass(frozen=True)
class Member:
    """A network, and how slices become its input."""

    network: Network
    view: SliceView

    def read_slices(self, scan: Slices, at: slice) -> NDArray[np.float32]:
        """Return slices as the network's input `[B, C, h, w]`."""
        indices = range(at.start, at.stop)
        return np.stack([network_input(self.view.image(scan, index)) for index in indices])

    def compute_logits(self, images: NDArray[np.float32], axes: tuple[int, ...] = ()) -> Floats:
        """Return the logits `[B, K, h, w]` of images `[B, C, h, w]` in [-1, 1].

        The network sees the images mirrored along `axes`, and its logits are mirrored back. Logits
        that are NaN or infinite are an error.
        """
        logits = self.network(np.ascontiguousarray(np.flip(images, axes)) if axes else images)
        refuse_nonfinite(logits)
        return np.flip(logits, axes) if axes else logits


def refuse_nonfinite(logits: Floats) -> None:
    """Refuse NaN and infinity by a `CheckpointError`."""
    if not np.isfinite(logits).all():
        raise CheckpointError(
            "run: the network answers with NaN or infinity; train it again with "
            "trainer.repeat=true, or use another run"
        )


@dataclass(frozen=True)
class Segmented:
    """The result for a scan.

    Attributes:
        masks: `[classes, S, H, W]`.
        probabilities: those of the classes, of the same shape; `None` if not asked for.
        uncertainty: `[S, H, W]`, from 0 to 1 (see `to_uncertainty`); `None` if not asked for.
    """

    masks: Masks
    probabilities: Floats | None = None
    uncertainty: Floats | None = None


OnLogits = Callable[[slice, Floats], None]  # receives slice numbers, logits at the network's size


@dataclass(frozen=True)
class Segmenter:
    """Segments scans, for prediction, scoring and previews alike.

    A single network decides by its logits, resized to the scan's own size. Several networks or
    flips vote: the mean of their probabilities at that size decides.

    Attributes:
        labels: foreground classes, the same for all members.
        members: one network or several, for images with the same channels.
        batch_size: number of slices at a time.
        flips: `h` for left and right, `v` for up and down; both together make four passes.
        tiles: share by which neighbouring tiles overlap, for images that are larger than the
            network's size; `None` to resize the whole image.
    """

    labels: Labels
    members: Sequence[Member]
    batch_size: int = 8
    flips: Sequence[Flip] = ()
    tiles: float | None = None

    def __call__(
        self,
        scan: Slices,
        probabilities: bool = False,
        uncertainty: bool = False,
        on_logits: OnLogits | None = None,
    ) -> Segmented:
        """Segment one scan, with probabilities and uncertainty if asked for.

        `on_logits` is called with the logits of every pass that is not tiled.
        """
        shape = (len(self.labels), *scan.shape)
        masks = np.empty(shape, bool)
        kept = np.empty(shape, np.float32) if probabilities else None
        entropies = np.empty(scan.shape, np.float32) if uncertainty else None
        for at in self.batches(scan):
            masks[:, at], mean = self._vote(scan, at, probabilities or uncertainty, on_logits)
            if kept is not None:
                kept[:, at] = mean[:, -len(self.labels) :].swapaxes(0, 1)
            if entropies is not None:
                entropies[at] = to_uncertainty(mean, self.labels.overlapping)
        return Segmented(masks, kept, entropies)

    def batches(self, scan: Slices) -> Iterator[slice]:
        """Yield the slice numbers of each batch."""
        count = scan.shape[0]
        for start in range(0, count, self.batch_size):
            yield slice(start, min(start + self.batch_size, count))

    def _vote(
        self, scan: Slices, at: slice, mean_wanted: bool, on_logits: OnLogits | None
    ) -> tuple[Masks, Floats]:
        """Return masks `[classes, B, H, W]` and, if wanted, mean probabilities `[B, K, H, W]`."""
        overlapping, mean = self.labels.overlapping, np.zeros((), np.float32)
        decide = getattr(self.members[0].network, "decide", None)
        alone = len(self.members) == 1 and not self.flips
        if decide is not None and alone and self.tiles is None and not mean_wanted:
            images = self.members[0].read_slices(scan, at)
            logits, masks = decide(images, scan.shape[1:], overlapping)
            refuse_nonfinite(logits)
            if on_logits is not None:
                on_logits(at, logits)
            return masks, mean
        masks = None
        for number, logits in enumerate(self._passes(scan, at, on_logits), 1):
            if alone:
                masks = self.labels.decide(logits)
                if not mean_wanted:
                    break
            share = to_probabilities(logits, overlapping)
            mean = share if number == 1 else mean + (share - mean) / np.float32(number)
        return self.labels.decide_probabilities(mean) if masks is None else masks, mean

    def _passes(self, scan: Slices, at: slice, on_logits: OnLogits | None) -> Iterator[Floats]:
        """Yield the logits `[B, K, H, W]` of each member and flip at the scan's own size."""
        for member in self.members:
            view = member.view
            larger = scan.shape[1] > view.size[0] or scan.shape[2] > view.size[1]
            for axes in self._mirrors():
                if self.tiles is not None and larger:
                    indices = range(at.start, at.stop)
                    yield np.stack([self._tiled(member, scan, index, axes) for index in indices])
                    continue
                logits = member.compute_logits(member.read_slices(scan, at), axes)
                if on_logits is not None:
                    on_logits(at, logits)
                yield resize_logits(logits, scan.shape[1:])

    def _mirrors(self) -> list[tuple[int, ...]]:
        """Return the axes, of `[B, C, H, W]`, to flip in each pass."""
        wanted = [axis for name, axis in (("h", -1), ("v", -2)) if name in self.flips]
        chosen = product((False, True), repeat=len(wanted))
        return [tuple(a for a, on in zip(wanted, row, strict=True) if on) for row in chosen]

    def _tiled(self, member: Member, scan: Slices, index: int, axes: tuple[int, ...]) -> Floats:
        """Return the logits `[K, H, W]` of a slice that the network sees in tiles, not resized."""
        assert self.tiles is not None
        view = member.view
        image = network_input(view.stacked(scan, index))
        height, width = image.shape[1:]
        below, right = (max(0, s - n) for s, n in zip(view.size, (height, width), strict=True))
        image = np.pad(image, ((0, 0), (0, below), (0, right)), mode="edge")
        corners = [
            (y, x)
            for y in tile_starts(image.shape[1], view.size[0], self.tiles)
            for x in tile_starts(image.shape[2], view.size[1], self.tiles)
        ]
        weight = tile_weights(view)
        total = np.zeros((self.labels.channels, *image.shape[1:]), np.float32)
        weights = np.zeros(image.shape[1:], np.float32)
        for first in range(0, len(corners), self.batch_size):
            some = corners[first : first + self.batch_size]
            places = [(slice(y, y + view.size[0]), slice(x, x + view.size[1])) for y, x in some]
            batch = np.stack([image[:, rows, columns] for rows, columns in places])
            tiles = member.compute_logits(batch, axes)
            for (rows, columns), logits in zip(places, tiles, strict=True):
                total[:, rows, columns] += logits * weight
                weights[rows, columns] += weight
        return np.asarray((total / weights)[:, :height, :width])


def tile_starts(length: int, size: int, overlap: float) -> list[int]:
    """Return the first pixels of tiles of `size` pixels that cover `length` pixels evenly.

    Neighbours overlap by `overlap` at least, a share of a tile below 1.
    """
    step = max(1, int(size * (1 - overlap)))
    count = -(-(length - size) // step) + 1
    return [round(start) for start in np.linspace(0, length - size, count)]


def tile_weights(view: SliceView) -> Floats:
    """Return a tile's Gaussian weights `[h, w]`: about 1 in the middle, above 0 everywhere."""
    offsets = ((np.arange(n) - (n - 1) / 2) / (n * SIGMA) for n in view.size)
    rows, columns = (np.exp(-(offset**2) / 2) for offset in offsets)
    return np.asarray(np.maximum(np.outer(rows, columns), 1e-6), np.float32)
