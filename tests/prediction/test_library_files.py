"""The test files of nibabel, in one folder: each is done, passed over or refused with a reason."""

import gzip
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from attnseg.data.readers.nifti import read_nifti
from attnseg.errors import DataError
from attnseg.prediction.dicom import read_series
from tests.prediction.made import segment
from tests.prediction.test_dicom_library import decode

DATA = Path(nib.__file__).parent
REFUSED = {  # what the files are, as nibabel's own documentation says
    "analyze.hdr": "Analyze 7.5",
    "nifti1.hdr": "without its .img", "nifti2.hdr": "without its .img",
    "row_major.dconn.nii": "CIFTI", "example4d.nii.gz": "not a volume of three dimensions",
    "functional.nii": "not a volume of three dimensions",
    "example_nifti2.nii.gz": "not a volume of three dimensions",
    "0.dcm": "a mosaic, slices side by side in one picture; convert it to NIfTI (dcm2niix)",
}  # fmt: skip
SERIES = {"0.dcm", "1.dcm", "siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz"}  # of one UID


@pytest.mark.full
def test_every_test_file_of_nibabel(tmp_path, capfd):
    files = [p for place in ("tests/data", "nicom/tests/data") for p in (DATA / place).iterdir()]
    if not files:
        pytest.skip("nibabel was installed without its test files")
    (tmp_path / "in").mkdir()
    for path in files:
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tmp_path / "in" / path.name)
    with pytest.raises(DataError, match=r"problems, listed above; \d+ others are done"):
        segment(tmp_path / "in", tmp_path / "out", wanted={"overlays": False})
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert "Traceback" not in capfd.readouterr().err
    failed = {Path(re.match(r"(.+?): ", line)[1]).name: line for line in manifest["failed"]}
    assert len(failed) == len(manifest["failed"])
    done = {Path(name).name for item in manifest["items"] for name in item["files"]}
    passed_over = {Path(name).name for name in manifest["passed_over"]}
    everything = {path.name for path in (tmp_path / "in").iterdir()}
    assert done | set(failed) | passed_over | SERIES == everything
    for name, reason in REFUSED.items():
        assert reason in failed[name], failed[name]
    for name in done:
        if name.endswith((".nii", ".nii.gz")):
            theirs = nib.load(tmp_path / "in" / name)
            ours = read_nifti(tmp_path / "in" / name)
            plain = nib.as_closest_canonical(theirs)
            voxels = np.asarray(plain.dataobj).reshape(plain.shape[:3])[::-1, ::-1]
            assert np.array_equal(ours.voxels, voxels.transpose(2, 1, 0).astype(np.float32)), name
            assert np.allclose(ours.affine, theirs.affine), name
        if name.endswith(".dcm.gz"):
            plain = tmp_path / "plain.dcm"
            plain.write_bytes(gzip.decompress((tmp_path / "in" / name).read_bytes()))
            expected = decode(read_series([plain]))
            ours = read_series([tmp_path / "in" / name])
            assert np.array_equal(ours.voxels.astype(np.float32), expected), name
    for name in ("example4d.nii.gz", "example_nifti2.nii.gz"):
        theirs = nib.load(tmp_path / "in" / name)
        ours = read_nifti(tmp_path / "in" / name, channels=2)
        voxels = np.asarray(nib.as_closest_canonical(theirs).dataobj)[::-1, ::-1]
        assert np.array_equal(ours.voxels, voxels.transpose(2, 1, 0, 3).astype(np.float32))
