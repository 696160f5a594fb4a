"""Bounded reading of compressed files, which may unpack to a thousand times their size."""

import gzip
import zlib
from pathlib import Path

HEADER_LIMIT = 1 << 26  # bytes that may stand beside the voxels: header, extensions, padding
LARGEST_RATIO = 1032  # of unpacked to packed bytes, by the design of deflate


class BoundedGzip(gzip.GzipFile):
    """A gzip file that refuses to unpack beyond a position.

    Args:
        path: the file.

    Attributes:
        limit: the largest position that may be read, bytes; to be raised once a header has been
            read that says how much follows.

    Raises:
        ValueError: raised by `read` and `seek` beyond the limit.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.limit = HEADER_LIMIT

    def read(self, size: int | None = -1) -> bytes:
        """Return up to `size` bytes, or all that are left; see the class."""
        room = self.limit - self.tell() + 1
        data = super().read(room if size is None or size < 0 else min(size, room))
        if len(data) == room:
            raise _too_large(self.limit)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position counted from the start or, if `whence` is 1, from here."""
        position = offset if whence == 0 else super().seek(0, 1) + offset
        if position > self.limit:
            raise _too_large(self.limit)
        return super().seek(position)


def inflate(data: bytes, limit: int, whole: bool) -> bytes:
    """Unpack the raw deflate stream of a DICOM file.

    Args:
        data: the stream.
        limit: the largest number of unpacked bytes.
        whole: whether to refuse a longer stream; otherwise its beginning is returned.

    Raises:
        ValueError: the stream is longer than it may be.
        zlib.error: it is damaged.
    """
    unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, limit + 1)
    if whole and len(unpacked) > limit:
        raise _too_large(limit)
    return unpacked[:limit]


def _too_large(limit: int) -> ValueError:
    return ValueError(f"it unpacks to more than the {limit >> 20} MB that its header allows")
