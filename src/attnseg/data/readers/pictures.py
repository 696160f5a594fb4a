"""Decoding picture files: PNG, JPEG, BMP and TIFF.

By Pillow, because it refuses truncated files, bad checksums and image bombs; OpenCV does not.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from attnseg.errors import DataError

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
SUFFIXES = tuple(FORMATS)
# Pillow's modes by what the pixels mean; what is not listed (a palette, CMYK) is not a plain image.
GREY8, GREY16, RGB, BINARY = ("L",), ("I;16", "I;16B"), ("RGB",), ("1",)
WORDS = {"L": "8-bit grey", "I;16": "16-bit grey", "RGB": "colour", "1": "1-bit"}
# What Pillow raises for damaged files, TIFF above all.
PICTURE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def read_picture(
    path: Path, modes: tuple[str, ...], kind: str | None = None
) -> NDArray[np.generic]:
    """Decode a picture.

    Args:
        path: of a file.
        modes: Pillow's modes that are accepted.
        kind: Pillow's name of the format; by default what the end of the file's name, one of
            `SUFFIXES`, stands for.

    Returns:
        `[H, W]`, or `[H, W, 3]` for RGB; bool, uint8 or uint16.

    Raises:
        DataError: the file is broken, of another kind, holds several pictures, or has more pixels
            than Pillow's limit.
    """
    kind = kind or FORMATS[path.suffix.lower()]
    try:
        with Image.open(path, formats=[kind]) as image:
            if image.mode not in modes:
                wanted = " or ".join(WORDS[mode] for mode in modes if mode in WORDS)
                raise DataError(
                    f"{path}: pixels of type {image.mode}, not {wanted}; "
                    "restore the file as downloaded"
                )
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise DataError(f"{path}: {pages} pictures in one file; split it")
            pixels = np.array(image)
    except PICTURE_ERRORS as error:
        reason = f"not a {kind} image" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{path}: {reason}; restore the file or exclude the case") from error
    return pixels.astype(np.uint16) if pixels.dtype.itemsize > 1 else pixels
