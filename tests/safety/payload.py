"""What a hostile file tries: to leave a mark on the disk when it is read."""

import os
from pathlib import Path


class Payload:
    """Pickles to a command that makes a file.

    Args:
        mark: the file.
    """

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)
