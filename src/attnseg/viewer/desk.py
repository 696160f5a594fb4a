"""The answers to what the page asks for: cases, slices, masks, and the segmentation of uploads."""

import contextlib
import io
import json
import logging
import shutil
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from attnseg.config.prediction import OutputType
from attnseg.errors import AttnsegError
from attnseg.viewer.shown import Layer, Shown, measure_agreement
from attnseg.viewer.sides import Predicting, SeenCase, Side
from attnseg.viewer.uploads import Readable, Refusal, Upload

Answer = tuple[bytes, str]  # body and its type
log = logging.getLogger(__name__)
JSON, PNG, BYTES = "application/json", "image/png", "application/octet-stream"
WIDEST = 3.0  # window, in widths of that of the network


class Desk:
    """The state of the page; it may be asked by several threads.

    Args:
        sides: one network or folder, or two networks.
        folder: a folder of our own for uploads and results.
        most: bytes of an upload.
    """

    def __init__(self, sides: Sequence[Side], folder: Path, most: int) -> None:
        self.sides, self.folder, self.most = sides, folder, most
        self._busy = threading.Lock()
        self._upload: Upload | None = None
        self._loaded: dict[int, tuple[SeenCase, Shown]] = {}

    def get(self, path: str, values: dict[str, str]) -> Answer:
        """Answer a question.

        Raises:
            Refusal: there is no such thing.
        """
        if path == "/about":
            return _as_json(self._describe())
        if path == "/cases":
            return _as_json(self._list_cases())
        if path == "/case":
            return _as_json(self._describe_case(values))
        if path == "/slice":
            return self._draw(values), PNG
        if path == "/masks":
            return pack_masks(self._find(values)[1]), BYTES
        raise Refusal(404, "No such path")

    def post(self, path: str, values: dict[str, str]) -> Answer:
        """Begin an upload, or segment it.

        Raises:
            Refusal: there is no such thing, or another upload is being segmented.
        """
        if path not in ("/upload", "/segment") or not self._drops:
            raise Refusal(404, "No such path")
        with self._alone():
            if path == "/upload":
                self._begin()
            else:
                self._segment(values)
        return _as_json(self._list_cases())

    def put(self, path: str, values: dict[str, str], source: Readable, size: int) -> None:
        """Receive a file of the upload.

        Raises:
            Refusal: no upload was begun, or the file cannot be kept.
        """
        if path != "/file":
            raise Refusal(404, "No such path")
        if self._upload is None:
            raise Refusal(409, "No upload was begun")
        with self._alone():
            try:
                self._upload.receive(values.get("name", ""), source, size)
            except TimeoutError:
                raise  # The browser sends no more.
            except OSError as error:
                raise Refusal(507, f"Cannot be kept: {error.strerror or error}") from error

    def finish(self) -> None:
        """Wait for images that are being segmented: their results could not be removed before."""
        if not self._busy.acquire(blocking=False):
            log.info("Waiting for the images that are being segmented")
            self._busy.acquire()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a request while another upload is received or segmented."""
        if not self._busy.acquire(blocking=False):
            raise Refusal(409, "The images before are still being received or segmented")
        try:
            yield
        finally:
            self._busy.release()

    @property
    def _drops(self) -> bool:
        return all(isinstance(side, Predicting) for side in self.sides)

    def _begin(self) -> None:
        """Remove the upload before, with its results."""
        self._upload, self._loaded = None, {}
        for side in self.sides:
            side.cases, side.lines = {}, []
        for path in self.folder.iterdir():
            shutil.rmtree(path)
        self._upload = Upload(self.folder / "dropped", self.most)

    def _segment(self, values: dict[str, str]) -> None:
        output_type = values.get("output_type", "")
        if output_type not in get_args(OutputType):
            raise Refusal(400, "output_type")
        if self._upload is None or not self._upload.names:
            raise Refusal(422, "Nothing was dropped")
        for number, side in enumerate(self.sides):
            assert isinstance(side, Predicting)
            output = self.folder / f"results{number}"
            shutil.rmtree(output, ignore_errors=True)
            side.segment(self._upload, output, output_type)

    def _describe(self) -> dict[str, Any]:
        return {
            "drops": self._drops,
            "most": self.most,
            "sides": [
                {
                    "title": side.title,
                    "about": f"{side.spec.model} with {side.spec.attn} attention, trained on "
                    f"{side.spec.dataset}, run {side.spec.run}",
                    "classes": side.spec.classes,
                }
                for side in self.sides
            ],
        }

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for side in self.sides for name in side.cases))

    def _list_cases(self) -> dict[str, Any]:
        return {
            "lines": list(dict.fromkeys(line for side in self.sides for line in side.lines)),
            "cases": [
                {"name": name, "sides": [_fill_row(side, name) for side in self.sides]}
                for name in self._names
            ],
        }

    def _describe_case(self, values: dict[str, str]) -> dict[str, Any]:
        number = _number(values, "case", len(self._names))
        name = self._names[number]
        shown = {
            at: self._load(at, side.cases[name])
            for at, side in enumerate(self.sides)
            if name in side.cases
        }
        first = next(iter(shown.values()))
        return {
            "shape": first.shape,
            "oriented": first.oriented,
            "windows": [(each.low[0], each.high[0]) for each in shown.values()],
            "uncertainty": all(each.uncertainty is not None for each in shown.values()),
            "agreement": measure_agreement(*shown.values()) if len(shown) == 2 else {},
        }

    def _draw(self, values: dict[str, str]) -> bytes:
        at, case = self._find(values)
        shown = self._load(at, case)
        axis = _number(values, "axis", 3)
        window = _share(values, "black"), _share(values, "white")
        if not window[0] < window[1]:
            raise Refusal(400, "black and white")
        layer: Any = values.get("layer")
        if layer not in get_args(Layer):
            raise Refusal(400, "layer")
        hidden = [int(each) for each in values.get("hidden", "").split() if each.isdecimal()]
        hidden = [each for each in hidden if each < len(shown.labels)]
        index = _number(values, "at", shown.shape[axis])
        return shown.draw(axis, index, window, layer, hidden)

    def _find(self, values: dict[str, str]) -> tuple[int, SeenCase]:
        """Return the number of the side, and the case."""
        at = _number(values, "side", len(self.sides))
        name = self._names[_number(values, "case", len(self._names))]
        if name not in self.sides[at].cases:
            raise Refusal(404, "No such case")
        return at, self.sides[at].cases[name]

    def _load(self, at: int, case: SeenCase) -> Shown:
        """Return a case, the last of each side from memory."""
        known = self._loaded.get(at)
        if known is None or known[0] is not case:
            try:
                self._loaded[at] = known = case, case.load()
            except AttnsegError as error:
                raise Refusal(422, str(error)) from error
        return known[1]


def pack_masks(case: SeenCase) -> bytes:
    """Return the file of a case's masks, or an archive if there are several."""
    if len(case.masks) == 1:
        return next(iter(case.masks.values())).read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in case.masks.items():
            archive.write(path, name)
    return buffer.getvalue()


def _fill_row(side: Side, name: str) -> dict[str, Any] | None:
    """Return what the page's table has of a case; `None` if this side has no such case."""
    case = side.cases.get(name)
    if case is None:
        return None
    facts = case.facts
    several = len(case.masks) > 1
    file = name_of_archive(case) if several else next(iter(case.masks), None)
    return {key: facts[key] for key in ("ml", "voxels", "warnings", "seconds")} | {"file": file}


def name_of_archive(case: SeenCase) -> str:
    """Return the name under which several files of masks are saved."""
    return f"{next(iter(case.masks)).partition('_masks')[0]}_masks.zip"


def _as_json(value: object) -> Answer:
    return json.dumps(value).encode(), JSON


def _number(values: dict[str, str], key: str, count: int) -> int:
    """Return a whole number from 0 up to but without `count`."""
    text = values.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < count):
        raise Refusal(404 if key in ("side", "case", "at") else 400, key)
    return int(text)


def _share(values: dict[str, str], key: str) -> float:
    try:
        value = float(values.get(key, ""))
    except ValueError:
        raise Refusal(400, key) from None
    if not abs(value) <= WIDEST:
        raise Refusal(400, key)
    return value
