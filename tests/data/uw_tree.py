"""A UW-Madison download made by hand, file by file, for a test to break."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("large_bowel", "small_bowel", "stomach")


class Tree:
    """Scans of three slices of 5 x 4 pixels, on the disk after `write`."""

    def __init__(self, root: Path, scans: tuple[str, ...] = ("case2_day1",)) -> None:
        self.root = root
        self.rows: dict[tuple[str, str], str] = {}
        self.header = "id,class,segmentation"
        self.files: dict[str, np.ndarray] = {}
        for at, scan in enumerate(scans):
            for number in ("0001", "0002", "0010"):
                name = f"{scan}/scans/slice_{number}_5_4_1.50_1.63.png"
                # The first scan counts its pixels; the others are other pictures.
                pixels = np.random.default_rng(at).permutation(20) if at else np.arange(20)
                self.files[name] = np.uint16(pixels.reshape(4, 5) * 700 + int(number))
                for organ in CLASSES:
                    self.rows[f"{scan}_slice_{number}", organ] = ""

    def write(self) -> Path:
        for name, pixels in self.files.items():
            path = self.root / "train" / name.split("_")[0] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        lines = [self.header, *(f"{i},{organ},{rle}" for (i, organ), rle in self.rows.items())]
        (self.root / "train.csv").write_text("\n".join(lines) + "\n")
        return self.root

    def path(self, name: str) -> Path:
        return self.root / "train" / name.split("_")[0] / name
