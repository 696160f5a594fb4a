"""Decoding of picture files: PNG, JPEG, BMP and TIFF.

Pillow decodes them, because it refuses truncated files, bad checksums and decompression bombs;
OpenCV does not.
"""

import contextlib
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from attnseg.data.notices import warn_of_file
from attnseg.data.readers.content import detect_content
from attnseg.errors import DataError

FORMATS = {
    ".png": "PNG", ".bmp": "BMP",
    ".jpg": "JPEG", ".jpeg": "JPEG",
    ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
SUFFIXES = tuple(FORMATS)
# Pillow's modes of plain images; CMYK is not among them.
GREY8, GREY16, RGB, BINARY = ("L",), ("I;16", "I;16B"), ("RGB",), ("1",)
MODE_NAMES = {"L": "8-bit grey", "I;16": "16-bit grey", "RGB": "colour", "1": "1-bit"}
# Pillow raises all of these for damaged files, above all for TIFF.
PICTURE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


OPENING = threading.Lock()
TILE_TAGS, LARGEST_TILE = (322, 323), 1 << 24  # of TIFF: width and height; pixels

# Compressions of TIFF that may alter values.
LOSSY = ("jpeg", "tiff_jpeg", "webp")


def read_picture(path: Path, modes: tuple[str, ...]) -> NDArray[np.generic]:
    """Decode a picture to `[H, W]`, or `[H, W, 3]` for RGB; bool, uint8 or uint16.

    It is turned as its EXIF orientation says. `modes` are the accepted modes of Pillow.

    Raises:
        DataError: the file is broken or no picture by its content, has another mode, holds several
            pictures, or has more pixels than Pillow's limit.
    """
    with _open_checked(path, modes) as image:
        return _to_array(image)


def read_label_picture(
    path: Path, greys: tuple[str, ...] = (*GREY8, *GREY16)
) -> tuple[NDArray[np.generic], int]:
    """Decode a grey or palette picture of labels to `[H, W]`, uint8 or uint16, turned as by EXIF.

    `greys` are the accepted modes of Pillow besides those of one bit and palettes.

    Returns:
        The values that are stored, whatever the number of bits; of a palette, the indices. And the
        value of white: 1, 3, 15, 255 or 65535.

    Raises:
        DataError: as `read_picture`, or the compression alters values, or what is stored
            contradicts what is shown.
    """
    with _open_checked(path, (*greys, *BINARY, "P")) as image:
        if image.format == "JPEG" or image.info.get("compression") in LOSSY:
            raise DataError(
                f"{path}: compressed as JPEG, which alters the values of a mask; give the mask as "
                "it was before"
            )
        bits = re.fullmatch(r"L;([248]?)(I?)R?", _raw_mode(image))
        if bits and bits[2]:
            raise DataError(f"{path}: labels in which 0 is white; save them with 0 as black")
        values = _to_array(image)
        if image.mode == "P":
            _check_palette(path, image, np.unique(values))
    if values.dtype == np.bool_:
        return values.astype(np.uint8), 1
    full = 255 if values.dtype == np.uint8 else 65535
    white = {"2": 3, "4": 15}.get(bits[1] if bits else "", full)
    return (values.astype(np.uint8) // (255 // white) if white < 255 else values), white


@contextlib.contextmanager
def _open_checked(path: Path, modes: tuple[str, ...]) -> Iterator[ImageFile]:
    """Open a picture, once its kind, mode and number of pages have been checked."""
    try:
        content = detect_content(path)
        if content.kind != "picture" or content.packed:
            name = FORMATS.get(path.suffix.lower(), "picture")
            raise DataError(f"{path}: not a {name} image; restore the file or exclude the case")
        # By its name, Pillow would map a plain TIFF into memory and turn it wrongly.
        with path.open("rb") as file, _open_warning(path, file, content.form) as image:
            if _raw_mode(image).startswith("RGB;16"):
                raise DataError(f"{path}: colour of 16 bits; save it with 8")
            if image.mode not in modes:
                accepted = " or ".join(MODE_NAMES[mode] for mode in modes if mode in MODE_NAMES)
                raise DataError(
                    f"{path}: pixels of type {image.mode}, not {accepted}; "
                    "convert it or restore the file"
                )
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise DataError(f"{path}: {pages} pictures in one file; split it")
            _check_grey_bitmap(path, image)
            _check_tiles(path, image)
            yield image
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: a damaged {content.form} image; restore the file or exclude the case"
        ) from error
    except PICTURE_ERRORS as error:
        raise DataError(f"{path}: {error}; restore the file or exclude the case") from error


def _open_warning(path: Path, file: BinaryIO, form: str) -> ImageFile:
    """Open a picture, and warn of damaged tags, which Pillow skips, with the file's name."""
    # Filters of warnings are those of the process, and cases are prepared in threads.
    with OPENING, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file, formats=[form])
        if form != "PNG":  # which would be decoded at once
            image.getexif()
    for warning in caught:
        text = " ".join(str(warning.message).split()).rstrip(".")
        warn_of_file(path, f"{text}; an orientation may be lost")
    return image


def _raw_mode(image: ImageFile) -> str:
    """Return Pillow's name of the layout of the pixels as they are stored; empty if unknown."""
    raw = image.tile[0].args if image.tile else None
    return raw if isinstance(raw, str) else str(raw[0]) if raw else ""


def _to_array(image: Image.Image) -> NDArray[np.generic]:
    ImageOps.exif_transpose(image, in_place=True)
    pixels = np.array(image)
    return pixels.astype(np.uint16) if pixels.dtype.itemsize > 1 else pixels


def _check_grey_bitmap(path: Path, image: ImageFile) -> None:
    """Refuse a grey bitmap of 4 bits, whose bytes Pillow takes for pixels."""
    if image.format == "BMP" and image.mode == "L" and image.tile[0].codec_name == "raw":
        assert image.fp is not None
        image.fp.seek(0)
        head = image.fp.read(30)
        if head[24 if head[14] == 12 else 28] < 8:
            raise DataError(f"{path}: a grey bitmap of less than 8 bits; save it as PNG")


def _check_tiles(path: Path, image: ImageFile) -> None:
    """Refuse a TIFF whose tiles are huge: each is unpacked, even where it exceeds the picture."""
    if isinstance(image, TiffImageFile):
        width, height = (int(image.tag_v2.get(tag, 0)) for tag in TILE_TAGS)
        if width * height > LARGEST_TILE:
            raise DataError(f"{path}: tiles of {width}x{height} pixels; save it with smaller ones")


def _check_palette(path: Path, image: Image.Image, used: NDArray[Any]) -> None:
    """Refuse a palette of greys other than its indices, or black and white: which is the label?"""
    colours = np.reshape(image.getpalette() or [], (-1, 3))[used]
    greys, indices = colours[:, 0], used.astype(int)
    black_and_white = indices.max() <= 1 and (greys == 255 * indices).all()
    if (colours == greys[:, None]).all() and not black_and_white and (greys != indices).any():
        raise DataError(
            f"{path}: a palette whose index {indices[greys != indices][0]} is the grey "
            f"{greys[greys != indices][0]}, and either may be the label; save it as grey"
        )
