"""The kind of a file, determined by its first bytes and never by its name."""

import gzip
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attnseg.errors import DataError

GZIP = b"\x1f\x8b\x08"
HEAD = 4096  # bytes that are looked at
PICTURES = {  # the first bytes of each format, and Pillow's name for it
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of the header that follows the magic
NIFTI_FORMS = {b"n+1\0": "single", b"ni1\0": "pair"}
CIFTI_INTENTS = range(3000, 3100)  # intent codes of NIfTI-2 files of surface points and voxels
# The type and length of a data element of DICOM.
ELEMENT = re.compile(
    rb"(?:AE|AS|AT|CS|DA|DS|DT|FD|FL|IS|LO|LT|PN|SH|SL|SS|ST|TM|UI|UL|US)(..)"
    rb"|(?:OB|OD|OF|OL|OV|OW|SQ|SV|UC|UN|UR|UT|UV)\0\0(....)",
    re.DOTALL,
)
UNDEFINED, MAX_LENGTH = 0xFFFFFFFF, 1 << 16


@dataclass(frozen=True)
class Content:
    """The kind of a file.

    Attributes:
        kind: `None` for files of any other kind.
        form: of NIfTI, `single`, `pair` (a header whose voxels lie in a second file), `analyze` (a
            header of 348 bytes without NIfTI's magic) or `cifti`; of DICOM, `file` or `bare`
            (without the preamble and its magic); of pictures, Pillow's name of the format; of a
            file that was compressed twice, `gzip`.
        version: of NIfTI, 1 or 2.
        packed: whether it is compressed by gzip.
        empty: whether it holds nothing.
    """

    kind: Literal["nifti", "dicom", "picture"] | None
    form: str = ""
    version: int = 1
    packed: bool = False
    empty: bool = False


def detect_content(path: Path) -> Content:
    """Return the kind of a file, from its content alone.

    Raises:
        DataError: it is a folder, a pipe or the like.
        OSError: it cannot be read, or is no gzip file although it begins like one.
        EOFError, zlib.error: it is a damaged gzip file.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # Reading a pipe would wait forever.
        raise DataError(f"{path}: not a file; remove it")
    with path.open("rb") as file:
        head = file.read(HEAD)
    packed = head.startswith(GZIP)
    if packed:
        with gzip.open(path) as stream:
            head = stream.read(HEAD)
        if head.startswith(GZIP):
            return Content(None, "gzip", packed=True)
    kind, form, version = _identify(head)
    return Content(kind, form, version, packed, not head)


def _identify(head: bytes) -> tuple[Literal["nifti", "dicom", "picture"] | None, str, int]:
    """Return kind, form and version (see `Content`) of the first bytes of a file."""
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    sizes = [int.from_bytes(head[:4], order) for order in orders]
    if 540 in sizes and head[4:8] in (b"n+2\0", b"ni2\0"):
        intent = int.from_bytes(head[504:508], orders[sizes.index(540)])
        single = "single" if head[5:6] == b"+" else "pair"
        return "nifti", "cifti" if intent in CIFTI_INTENTS else single, 2
    if 348 in sizes and (form := NIFTI_FORMS.get(head[344:348])):
        return "nifti", form, 1
    if head[128:132] == b"DICM":  # The preamble before it may be the beginning of any format.
        return "dicom", "file", 1
    if 348 in sizes and len(head) >= 348:
        return "nifti", "analyze", 1
    if name := next((name for magic, name in PICTURES.items() if head.startswith(magic)), None):
        return "picture", name, 1
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return "picture", "BMP", 1
    bare = any(_begins_with_elements(head, order) for order in orders)
    return ("dicom", "bare", 1) if bare else (None, "", 1)


def _begins_with_elements(head: bytes, order: Literal["little", "big"]) -> bool:
    """Return whether DICOM's data elements begin at once: three, or all there are."""
    at, last, count = 0, (0, 0), 0
    while count < 3 and at + 8 <= len(head):
        tag = (
            int.from_bytes(head[at : at + 2], order),
            int.from_bytes(head[at + 2 : at + 4], order),
        )
        if not (tag > last and (count or tag[0] in (2, 8))):
            return False
        match = ELEMENT.match(head, at + 4)  # Otherwise types are implicit: the length is next.
        raw, at = (match[1] or match[2], match.end()) if match else (head[at + 4 : at + 8], at + 8)
        length = int.from_bytes(raw, order)
        if length == UNDEFINED:  # a sequence
            return count > 0
        if length % 2 or length > MAX_LENGTH:
            return False
        at, last, count = at + length, tag, count + 1
    return count > 1
