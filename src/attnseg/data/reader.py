"""What a dataset is to the rest of the code: a reader that lists cases and reads one at a time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CaseRef:
    """A case that can be read: who it is of, and which files it comes from.

    Attributes:
        patient: whose it is; patients never cross splits.
        case: unique in the dataset; also a folder name, so letters, digits, `_`, `-` and `.` only.
        files: every file the case is read from.
    """

    patient: str
    case: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Case:
    """One decoded case: a scan of S slices, or a picture with S = 1.

    Attributes:
        image: `[S, H, W, C]`, the file's own type and values.
        mask: `[S, H, W]` uint8. Where classes overlap, bit k is set in pixels of class k;
            otherwise the class index, 0 the background.
        spacing: voxel size along S, H, W, mm.
    """

    image: NDArray[np.generic]
    mask: NDArray[np.uint8]
    spacing: tuple[float, float, float]


class Reader:
    """Base of the readers: the only code that knows a dataset's layout on disk.

    A subclass takes `root`, then options of its own; every option is part of the identity of what
    is prepared from it. Its constructor reads nothing: the root may not be there yet.

    Attributes:
        classes: foreground classes, in the order of the mask's bits or indices.
        multilabel: whether classes overlap.
        channels: channels of the image.
    """

    classes: tuple[str, ...]
    multilabel: bool
    channels: int

    def cases(self) -> list[CaseRef]:
        """List the cases in a fixed order, from file names and tables only.

        Raises:
            DataError: the layout is not the dataset's.
        """
        raise NotImplementedError

    def source(self, ref: CaseRef) -> str:
        """Return what, besides its files, decides a case's content: its rows of a table, say."""
        return ""

    def read(self, ref: CaseRef) -> Case:
        """Decode and validate one case.

        Raises:
            DataError: a file is missing, broken or contradicts another.
        """
        raise NotImplementedError
