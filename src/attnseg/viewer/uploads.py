"""Files that a browser sends: kept under names of our own, counted, and unpacked if zipped.

No name that was sent becomes a path. Only what prediction goes by is kept of it: the kind's ending,
the number of a channel, that files of one name belong together, and the numbers in the names of a
scan of the UW-Madison download.
"""

import zipfile
from pathlib import Path, PurePosixPath
from typing import Protocol

from attnseg.data.folders import find_ending
from attnseg.data.readers.nifti import ENDINGS
from attnseg.data.readers.pictures import SUFFIXES
from attnseg.data.readers.uw_madison import SCAN_FOLDER_NAME, SLICE_FILE_NAME
from attnseg.errors import first_line
from attnseg.prediction.inputs import CHANNEL, DICOMS

KINDS = (*ENDINGS, ".img", ".img.gz", *SUFFIXES, *DICOMS)
MOST_FILES = 20_000
BLOCK = 1 << 20  # bytes
ZIP = b"PK\x03\x04"
LONGEST_NAME = 200  # letters of a name that is shown


class Readable(Protocol):
    """A stream of bytes, of which at most `size` are read at once."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; none at the end."""
        ...


class Refusal(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Upload:
    """The files that were dropped together.

    Args:
        folder: where they are kept; it is created.
        most: bytes that they may take, archives unpacked.

    Attributes:
        names: the name of each file as it was sent.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.names = folder, dict[Path, str]()
        self._most, self._used = most, 0
        self._numbers: dict[str, int] = {}
        folder.mkdir(mode=0o700)

    def receive(self, name: str, source: Readable, size: int) -> None:
        """Keep one file of `size` bytes, or the files of an archive.

        Raises:
            Refusal: it is too large or cut off, or an archive that cannot be read.
        """
        if size > self._most:
            raise self._too_large()
        received = self.folder.with_name("received")
        try:
            with received.open("wb") as file:
                left = size
                while block := source.read(min(BLOCK, left)):
                    left -= file.write(block)
            if left:
                raise Refusal(400, f"{_printable(name)}: cut off on its way")
            with received.open("rb") as file:
                packed = file.read(len(ZIP)) == ZIP
                file.seek(0)
                if not packed:
                    self._keep(name, file)
            if packed:
                self._unpack(received, name)
        finally:
            received.unlink(missing_ok=True)

    def original(self, text: str) -> str:
        """Return a message with the files as they were called when they were dropped."""
        for path, name in self.names.items():
            text = text.replace(f"{path}:", f"{name}:").replace(str(path), name)
        return text.replace(str(self.folder), "the dropped files")

    def _unpack(self, path: Path, name: str) -> None:
        """Keep the files of an archive, whatever its entries claim about themselves."""
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    if not entry.is_dir():
                        with archive.open(entry) as file:
                            self._keep(entry.filename, file)
        except (Refusal, MemoryError):
            raise
        except Exception as error:  # A malicious file can make zipfile raise anything.
            raise Refusal(
                422, f"{_printable(name)}: not a readable zip file ({first_line(error)[:80]})"
            ) from error

    def _keep(self, name: str, source: Readable) -> None:
        """Copy one file to a name of our own; hidden ones are passed over."""
        if PurePosixPath(name).name.startswith("."):
            return
        if len(self.names) >= MOST_FILES:
            raise Refusal(413, f"more than {MOST_FILES} files")
        path = self._own_path(name)
        if path in self.names:  # The same slice of the same scan.
            raise Refusal(422, f"{_printable(name)}: dropped twice")
        self.names[path] = _printable(name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("xb") as file:
            while block := source.read(BLOCK):
                self._used += len(block)
                if self._used > self._most:
                    raise self._too_large()
                file.write(block)

    def _own_path(self, name: str) -> Path:
        """Return a new path: a number, with the channel's number and the ending of the name."""
        *_, scan, scans, file = ("", "", "", *PurePosixPath(name).parts)
        if (
            scans == "scans"
            and SCAN_FOLDER_NAME.fullmatch(scan)
            and SLICE_FILE_NAME.fullmatch(file)
        ):
            return self.folder / scan / scans / file
        end = find_ending(name, KINDS)
        stem = name[: len(name) - len(end)]
        channel = CHANNEL.fullmatch(stem)
        stem, tail = (channel[1], f"_{channel[2]}") if channel else (stem, "")
        number = self._numbers.setdefault(stem, len(self._numbers))
        path = self.folder / f"{number:05d}{tail}{end}"
        while path in self.names:
            number = self._numbers[f"{stem}/{number}"] = len(self._numbers)
            path = self.folder / f"{number:05d}{tail}{end}"
        return path

    def _too_large(self) -> Refusal:
        return Refusal(413, f"more than {self._most / 1e6:g} MB, the limit that upload_mb sets")


def _printable(name: str) -> str:
    return "".join(letter for letter in name if letter.isprintable())[-LONGEST_NAME:]
