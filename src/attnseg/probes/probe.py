"""The interface of a probe, and the random numbers and shapes that probes draw with.

A probe asks a network one question about a picture. The pixels that show the answer (the evidence)
lie farther from the pixels that need it than a network without token mixing can see. Pictures come
in groups that differ in the evidence alone, and have equal histograms; so nothing but the evidence
tells, neither brightness, nor positions, nor any neighbourhood of the pixels to be classified.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Masks = NDArray[np.bool_]
Drawn = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # see `Probe._draw`
SPLITS = ("train", "val", "test")
NOISE = 0.04  # largest deviation of a pixel, share of the range of intensities


class Pictures(NamedTuple):
    """Pictures of a probe, with the truth; groups follow one another.

    Attributes:
        images: `[N, 1, H, W]` in [-1, 1], in steps of 8 bits.
        labels: class of each pixel, `[N, H, W]`, 0 for the background.
        evidence: the pixels that tell the answer, `[N, H, W]`.
    """

    images: Floats
    labels: NDArray[np.int64]
    evidence: Masks


class Probe:
    """Base class of the probes; each is found by its `name`.

    Attributes:
        name: name of the probe; the dataset `probe_<name>` holds its pictures.
        question: the question that it asks, in one sentence.
        tests: the ability that it tests, in a few words.
        classes: names of the classes, from 1.
        deciding: the classes, from 1, between which the evidence decides; only they are scored.
        chance: highest score without the evidence.
        ceiling: highest score.
        hard: whether it may stay unsolved within the budget of a probe.
        group: number of pictures that differ in the evidence alone.
        size: height and width of the pictures, pixels.
        test_size: the same for the pictures of `split="test"`, if they have another size.
        levels: the levels of difficulty, such as distances; empty if there is one.
        scored: the levels whose mean is the score; the others only appear in the curve.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    tests: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    deciding: ClassVar[tuple[int, ...]] = (1, 2)
    chance: ClassVar[float] = 1 / 2
    ceiling: ClassVar[float] = 1.0
    hard: ClassVar[bool] = False
    group: ClassVar[int] = 2
    size: ClassVar[tuple[int, int]] = (32, 32)
    test_size: ClassVar[tuple[int, int] | None] = None
    levels: ClassVar[tuple[int, ...]] = ()
    scored: ClassVar[tuple[int, ...]] = ()

    def pictures(
        self, count: int, seed: int, level: int | None = None, split: str = "train"
    ) -> Pictures:
        """Draw pictures; the n-th is the same for any count.

        Args:
            count: N, the number of pictures; the last group may be incomplete.
            seed: another seed draws other pictures.
            level: one of `levels`; `None` mixes them.
            split: `train`, `val` or `test`; each draws other pictures.

        Raises:
            ValueError: there is no such level or split.
        """
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; choose one of {', '.join(SPLITS)}")
        if level is not None and level not in self.levels:
            known = ", ".join(map(str, (*self.levels, None)))
            raise ValueError(f"{self.name}: no level {level}; choose one of {known}")
        size = self.test_size if split == "test" and self.test_size else self.size
        source = (seed, SPLITS.index(split), 0 if level is None else 1 + self.levels.index(level))
        canvas = Canvas(source, -(-count // self.group), size, size[0] / self.size[0])
        image, labels, evidence = (x.reshape(-1, *size)[:count] for x in self._draw(canvas, level))
        scaled = (np.rint(np.clip(image, 0, 1) * 255) / 127.5 - 1).astype(np.float32)
        return Pictures(scaled[:, None], labels.astype(np.int64), evidence.astype(bool))

    def _draw(self, canvas: "Canvas", level: int | None) -> Drawn:
        """Draw groups of pictures: images in [0, 1], labels and evidence, `[G, group, H, W]`."""
        raise NotImplementedError

    def score(self, predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
        """Return the Dice of the deciding classes, pooled over classes and pictures.

        Twice the number of pixels with the right deciding class, divided by the number of pixels
        of any deciding class in the prediction plus that in the truth. A prediction that finds
        the pixels and guesses their class scores the share that it guesses right; for one that
        is the same for all pictures of a group, this is 1 / group exactly.
        """
        truth, guess = np.isin(labels, self.deciding), np.isin(predicted, self.deciding)
        right = (truth & (predicted == labels)).sum()
        return float(2 * right / max(1, truth.sum() + guess.sum()))


class Canvas:
    """Random numbers and shapes for G groups of pictures, drawn all at once.

    Positions and lengths are in units of `unit` pixels, so that pictures of another size show the
    same in another resolution.

    Args:
        source: seeds of the random numbers.
        groups: G, number of groups.
        size: height and width of the pictures, pixels.
        unit: pixels per unit of length.

    Attributes:
        y: positions of the rows, `[H, 1]`.
        x: positions of the columns, `[1, W]`.
    """

    PARAMETERS = 96  # random numbers per group, besides the noise

    def __init__(
        self, source: tuple[int, ...], groups: int, size: tuple[int, int], unit: float
    ) -> None:
        # All numbers of a kind are drawn in one call, row by row: the first groups are the same for
        # any number of groups.
        self._numbers = default_rng([*source, 0]).random((groups, self.PARAMETERS))
        self._used = 0
        self._rng: Generator = default_rng([*source, 1])
        self.groups, self.size = groups, size
        self.y = ((np.arange(size[0], dtype=np.float32) + 0.5) / unit)[:, None]
        self.x = ((np.arange(size[1], dtype=np.float32) + 0.5) / unit)[None, :]
        self.unit = unit

    def uniform(self, low: float, high: float, *shape: int) -> Floats:
        """Return random numbers `[G, *shape]`."""
        end = self._used + int(np.prod(shape))
        if end > self.PARAMETERS:
            raise ValueError(f"more than {self.PARAMETERS} random numbers for a group")
        numbers = self._numbers[:, self._used : end].reshape(-1, *shape)
        self._used = end
        return np.asarray(low + (high - low) * numbers, np.float32)

    def choice(self, options: int, *shape: int) -> NDArray[np.int64]:
        """Return random whole numbers below `options`, `[G, *shape]`."""
        return np.asarray(np.floor(self.uniform(0, options, *shape)), np.int64)

    def order(self, length: int) -> NDArray[np.int64]:
        """Return a random order of the numbers below `length` for each group, `[G, length]`."""
        return np.argsort(self.uniform(0, 1, length), 1)

    def rows(self, top: float, bottom: float) -> slice:
        """Return the rows of pixels between two heights."""
        return slice(round(top * self.unit), round(bottom * self.unit))

    def background(self, value: float) -> Floats:
        """Return pictures `[G, H, W]` of a body before a dark background."""
        image = np.full((self.groups, *self.size), 0.1, np.float32)
        middle = self.size[1] / self.unit / 2
        half = middle * self.uniform(0.85, 1.0)[:, None, None]
        body = np.clip(0.5 + (half - np.abs(self.x - middle)) * self.unit, 0, 1)
        paint(image, np.broadcast_to(body, image.shape), value)
        return image

    def noise(self) -> Floats:
        """Return the noise of a picture of each group, `[G, H, W]`; to be called once."""
        return NOISE * (2 * self._rng.random((self.groups, *self.size), np.float32) - 1)

    def ellipse(
        self, y: Floats | float, x: Floats | float, tall: Floats | float, wide: Floats | float
    ) -> Floats:
        """Return the share of each pixel within an ellipse of a centre and two radii: `[G, H, W]`.

        Arguments are numbers, or `[G]`.
        """
        y, x, tall, wide = (np.reshape(np.float32(a), (-1, 1, 1)) for a in (y, x, tall, wide))
        distance = np.sqrt(((self.y - y) / tall) ** 2 + ((self.x - x) / wide) ** 2) - 1
        inside = np.clip(0.5 - distance * np.minimum(tall, wide) * self.unit, 0, 1)
        return np.asarray(np.broadcast_to(inside, (self.groups, *self.size)), np.float32)


def paint(image: Floats, shape: Floats, value: float) -> None:
    """Paint a shape (see `Canvas.ellipse`) of one intensity over pictures, in place."""
    image += shape * (value - image)


def pair_with_mirrored(image: NDArray[Any], rows: slice) -> NDArray[Any]:
    """Return pictures `[G, H, W]`, and the same with some rows mirrored: `[G, 2, H, W]`."""
    other = image.copy()
    other[:, rows] = image[:, rows, ::-1]
    return np.stack([image, other], 1)


def label_pair(organs: Masks, answer: NDArray[Any]) -> NDArray[np.int64]:
    """Return labels `[G, 2, H, W]` of organs `[G, H, W]`: 1 + `answer`, then the other of 1 and 2.

    `answer` is 0 or 1, `[G]`, or an array that can be broadcast to that of the organs.
    """
    wide = answer.reshape(*answer.shape, *[1] * (3 - answer.ndim))
    return np.asarray(np.stack([organs * (1 + wide), organs * (2 - wide)], 1), np.int64)


def list_probes() -> list[str]:
    """Return the names of all probes, in the order of the chart."""
    return [probe.name for probe in _load_probes()]


def find_probe(name: str) -> Probe:
    """Return a probe.

    Raises:
        ValueError: there is no probe of this name.
    """
    for probe in _load_probes():
        if probe.name == name:
            return probe()
    raise ValueError(f"no probe {name!r}; choose one of {', '.join(list_probes())}")


def _load_probes() -> list[type[Probe]]:
    """Import all modules of this package and return the probes in them, and those of plugins."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    return sorted(_subclasses(Probe), key=lambda probe: probe.name)


def _subclasses(base: type[Probe]) -> Iterator[type[Probe]]:
    for each in base.__subclasses__():
        if "name" in vars(each):
            yield each
        yield from _subclasses(each)
