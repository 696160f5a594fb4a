"""Reader of ACDC as downloaded: cine MRI of the heart at the end of diastole and of systole.

Layout (https://www.creatis.insa-lyon.fr/Challenge/acdc), likewise for `testing`:

    training/patient001/patient001_frame01.nii.gz      the volume at one time
    training/patient001/patient001_frame01_gt.nii.gz   its labels
    training/patient001/patient001_4d.nii.gz           all times, without labels: passed over
"""

import logging
import re
from pathlib import Path

from attnseg.data.folders import find_ending
from attnseg.data.labels import Labels
from attnseg.data.reader import Case, CaseRef, Reader
from attnseg.data.readers.nifti import ENDINGS, read_labelled
from attnseg.errors import DataError, Problems, join_names

log = logging.getLogger(__name__)

PARTS = {"training": None, "testing": "test"}  # the folders, and the role of their patients


class ACDC(Reader):
    """Reads each labelled frame as a case; a patient has two. Patients of `testing` are the test.

    Args:
        root: folder that holds `training`, and perhaps `testing`; or whose folder `database` does.
    """

    labels = Labels(("right_ventricle", "myocardium", "left_ventricle"))  # 1, 2, 3 in the files
    channels = 1

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def cases(self) -> list[CaseRef]:
        """List the frames by patient and number; see `Reader.cases`."""
        problems = Problems()
        refs = []
        inner = self.root / "database"  # as the archive unpacks
        place = inner if (inner / "training").is_dir() else self.root
        for part, role in PARTS.items():
            folders = sorted(path for path in (place / part).glob("*/") if path.is_dir())
            patients = [path for path in folders if path.name.startswith("patient")]
            if others := [path.name for path in folders if path not in patients]:
                log.warning("%s: no patients, passed over: %s", place / part, join_names(others))
            for folder in patients:
                refs += self._list_frames(folder, role, problems)
        if not refs and not problems.found:
            problems.found.append(
                f"{self.root}: no labelled frames found; set dataset.root to the folder that holds "
                "training/patient001/patient001_frame01.nii.gz"
            )
        problems.stop()
        return refs

    def read(self, ref: CaseRef) -> Case:
        """Decode one frame; see `Reader.read`."""
        image, label = ref.files
        values = {value: value for value in range(len(self.labels) + 1)}
        case = read_labelled((image,), label, values)
        assert case.spacing is not None  # NIfTI has one.
        if case.spacing[0] < max(case.spacing):
            raise DataError(
                f"{image}: its slices do not lie along z, as its voxel size tells; restore the "
                "file as downloaded"
            )
        return case

    def _list_frames(self, folder: Path, role: str | None, problems: Problems) -> list[CaseRef]:
        """Return the frames of a patient that have labels; count the others."""
        files: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            ending = find_ending(path.name, ENDINGS)
            name = path.name[: len(path.name) - len(ending)]
            if not ending or name.startswith("."):
                continue
            if name in files:
                problems.found.append(f"{path}: {files[name].name} is there, too; keep one file")
            files[name] = path
        frames = [name for name in files if re.fullmatch(rf"{folder.name}_frame\d+", name)]
        labelled = [name for name in frames if f"{name}_gt" in files]
        orphans = [n for n in files if n.endswith("_gt") and n.removesuffix("_gt") not in files]
        problems.found += [
            f"{files[name]}: no image {name.removesuffix('_gt')} beside it; restore the pair"
            for name in orphans
        ]
        if without := [files[name].name for name in frames if name not in labelled]:
            log.warning("%s: left out without labels: %s", folder, join_names(without))
        return [
            CaseRef(folder.name, name, (files[name], files[f"{name}_gt"]), role)
            for name in labelled
        ]
