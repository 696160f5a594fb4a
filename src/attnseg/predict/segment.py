"""A whole scan through one network or several, slice by slice, at its own size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attnseg.data.labels import Floats, Masks
from attnseg.data.slicing import Slices, SliceView, network_input
from attnseg.errors import CheckpointError
from attnseg.predict import decision
from attnseg.predict.network import Network
from attnseg.predict.recipe import Recipe

Flip = Literal["h", "v"]
SIGMA = 1 / 8  # of a tile's weights, as a share of its side


@dataclass(frozen=True)
class Member:
    """A network and what it is fed with."""

    recipe: Recipe
    network: Network


@dataclass(frozen=True)
class Segmented:
    """What comes of a scan.

    Attributes:
        masks: `[classes, S, H, W]`.
        probabilities: of the classes, of the same shape; `None` if not asked for.
        uncertainty: `[S, H, W]`, from 0 to 1 (see `decision.entropy`); `None` if not asked for.
    """

    masks: Masks
    probabilities: Floats | None = None
    uncertainty: Floats | None = None


@dataclass(frozen=True)
class Segmenter:
    """Segments scans.

    Several members, or flips, vote by their mean probability at the scan's own size. What is alone
    decides by its logits, exactly as when a run is scored.

    Attributes:
        members: at least one, of the same classes and channels.
        batch_size: slices at a time.
        flips: `h` for left and right, `v` for up and down; both together make four passes.
        tiles: share by which neighbouring tiles overlap, for images that are larger than the
            network's size; `None` to resize the whole image.
    """

    members: Sequence[Member]
    batch_size: int = 8
    flips: Sequence[Flip] = ()
    tiles: float | None = None

    def __call__(
        self, scan: Slices, probabilities: bool = False, uncertainty: bool = False
    ) -> Segmented:
        """Segment one scan.

        Args:
            scan: decoded.
            probabilities: whether they are wanted.
            uncertainty: whether it is wanted.
        """
        labels = self.members[0].recipe.labels
        count = scan.shape[0]
        classes = len(labels)
        masks = np.empty((classes, *scan.shape), bool)
        kept = np.empty((classes, *scan.shape), np.float32) if probabilities else None
        entropies = np.empty(scan.shape, np.float32) if uncertainty else None
        alone = len(self.members) == 1 and not self.flips
        for start in range(0, count, self.batch_size):
            at = slice(start, min(start + self.batch_size, count))
            mean = np.zeros((), np.float32)
            for number, logits in enumerate(self._passes(scan, range(at.start, at.stop)), 1):
                if alone:
                    masks[:, at] = labels.decide(logits)
                    if not probabilities and not uncertainty:
                        break
                share = decision.probabilities(logits, labels.overlapping)
                mean = share if number == 1 else mean + (share - mean) / np.float32(number)
            else:
                if not alone:
                    masks[:, at] = labels.decide_probabilities(mean)
                if kept is not None:
                    kept[:, at] = mean[:, -classes:].swapaxes(0, 1)
                if entropies is not None:
                    entropies[at] = decision.entropy(mean, labels.overlapping)
        return Segmented(masks, kept, entropies)

    def _passes(self, scan: Slices, indices: range) -> Iterator[Floats]:
        """Yield the logits `[B, K, H, W]` of each member and flip at the scan's own size."""
        for member in self.members:
            view = member.recipe.view
            larger = scan.shape[1] > view.size[0] or scan.shape[2] > view.size[1]
            for mirror in self._mirrors():
                if self.tiles is not None and larger:
                    tiled = [self._tiled(member, scan, index, mirror) for index in indices]
                    yield np.stack(tiled)
                    continue
                images = np.stack([network_input(view.image(scan, index)) for index in indices])
                logits = _mirrored(member.network, images, mirror)
                yield decision.to_size(logits, scan.shape[1:])

    def _mirrors(self) -> list[tuple[int, ...]]:
        """Return the axes, of `[B, C, H, W]`, to flip in each pass."""
        wanted = [axis for name, axis in (("h", -1), ("v", -2)) if name in self.flips]
        chosen = product((False, True), repeat=len(wanted))
        return [tuple(a for a, on in zip(wanted, row, strict=True) if on) for row in chosen]

    def _tiled(self, member: Member, scan: Slices, index: int, mirror: tuple[int, ...]) -> Floats:
        """Return the logits `[K, H, W]` of a slice that is seen in tiles, not resized."""
        assert self.tiles is not None
        view = member.recipe.view
        image = network_input(view.stacked(scan, index))
        height, width = image.shape[1:]
        below, right = (max(0, s - n) for s, n in zip(view.size, (height, width), strict=True))
        image = np.pad(image, ((0, 0), (0, below), (0, right)), mode="edge")
        corners = [
            (y, x)
            for y in starts(image.shape[1], view.size[0], self.tiles)
            for x in starts(image.shape[2], view.size[1], self.tiles)
        ]
        weight = bell(view)
        total = np.zeros((member.recipe.outputs, *image.shape[1:]), np.float32)
        weights = np.zeros(image.shape[1:], np.float32)
        for first in range(0, len(corners), self.batch_size):
            some = corners[first : first + self.batch_size]
            places = [(slice(y, y + view.size[0]), slice(x, x + view.size[1])) for y, x in some]
            batch = np.stack([image[:, rows, columns] for rows, columns in places])
            for (rows, columns), logits in zip(
                places, _mirrored(member.network, batch, mirror), strict=True
            ):
                total[:, rows, columns] += logits * weight
                weights[rows, columns] += weight
        return np.asarray((total / weights)[:, :height, :width])


def starts(length: int, size: int, overlap: float) -> list[int]:
    """Return where tiles begin that cover a length: evenly, overlapping by at least a share.

    Args:
        length: pixels, at least `size`.
        size: pixels of a tile.
        overlap: share of a tile, below 1.
    """
    step = max(1, int(size * (1 - overlap)))
    count = -(-(length - size) // step) + 1
    return [round(place) for place in np.linspace(0, length - size, count)]


def bell(view: SliceView) -> Floats:
    """Return a tile's weights `[h, w]`: Gaussian, about 1 in its middle, above 0 everywhere."""
    offsets = ((np.arange(n) - (n - 1) / 2) / (n * SIGMA) for n in view.size)
    rows, columns = (np.exp(-(offset**2) / 2) for offset in offsets)
    return np.asarray(np.maximum(np.outer(rows, columns), 1e-6), np.float32)


def _mirrored(network: Network, images: NDArray[np.float32], axes: tuple[int, ...]) -> Floats:
    """Return the logits of mirrored images, mirrored back.

    Raises:
        CheckpointError: the network's answer is no number.
    """
    turned = np.ascontiguousarray(np.flip(images, axes)) if axes else images
    logits = network(turned)
    if not np.isfinite(logits).all():
        raise CheckpointError(
            "run: the network answers with NaN or infinity; train it again or use another run"
        )
    return np.flip(logits, axes) if axes else logits
