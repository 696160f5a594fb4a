"""Decoding of picture files: PNG, JPEG, BMP and TIFF.

Pillow decodes them, because it refuses truncated files, bad checksums and decompression bombs;
OpenCV does not.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from attnseg.errors import DataError

FORMATS = {
    ".png": "PNG", ".bmp": "BMP",
    ".jpg": "JPEG", ".jpeg": "JPEG",
    ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
SUFFIXES = tuple(FORMATS)
# Pillow's modes of plain images; palettes and CMYK are not among them.
GREY8, GREY16, RGB, BINARY = ("L",), ("I;16", "I;16B"), ("RGB",), ("1",)
MODE_NAMES = {"L": "8-bit grey", "I;16": "16-bit grey", "RGB": "colour", "1": "1-bit"}
# Pillow raises all of these for damaged files, above all for TIFF.
PICTURE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def read_picture(
    path: Path, modes: tuple[str, ...], kind: str | None = None
) -> NDArray[np.generic]:
    """Decode a picture to `[H, W]`, or `[H, W, 3]` for RGB; bool, uint8 or uint16.

    `modes` are the accepted modes of Pillow, and `kind` is its name of the format, by default that
    of the file's suffix, one of `SUFFIXES`.

    Raises:
        DataError: the file is broken, has another format or mode, holds several pictures, or has
            more pixels than Pillow's limit.
    """
    kind = kind or FORMATS[path.suffix.lower()]
    try:
        with Image.open(path, formats=[kind]) as image:
            if image.mode not in modes:
                accepted = " or ".join(MODE_NAMES[mode] for mode in modes if mode in MODE_NAMES)
                raise DataError(
                    f"{path}: pixels of type {image.mode}, not {accepted}; "
                    "restore the file as downloaded"
                )
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise DataError(f"{path}: {pages} pictures in one file; split it")
            pixels = np.array(image)
    except PICTURE_ERRORS as error:
        reason = f"not a {kind} image" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path}: {reason}; restore the file or exclude the case") from error
    return pixels.astype(np.uint16) if pixels.dtype.itemsize > 1 else pixels
