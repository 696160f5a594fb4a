"""Whole folders: kinds found by content, the good done and the bad named, killed and repeated."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from attnseg.data.readers import rle
from attnseg.errors import ConfigError, DataError, InUseError, ResourceError
from attnseg.prediction import folder
from attnseg.prediction import manifest as manifests
from attnseg.prediction.postprocess import Rule
from tests.limits import HANG
from tests.prediction.made import TILTED, Threshold, organ, segment, spec
from tests.prediction.test_dicom import write as write_series

SIZE = (24, 30)  # three times a slice: exact at the middle of each pixel


def nifti(path: Path, seed: int = 0, shape=(10, 8, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(organ(shape, seed), TILTED), path)


def picture(path: Path, seed: int = 0, shape=(8, 10), kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(organ(shape, seed).astype(np.uint8)).save(path, kind)


def test_a_name_longer_than_the_file_system_allows_is_a_line(tmp_path, capfd):
    for number in range(4):
        picture(tmp_path / f"in/{number}{'x' * 250}.png", number)
    nifti(tmp_path / f"in/{'y' * 248}.nii.gz")
    nifti(tmp_path / "in/z.nii.gz")
    with pytest.raises(DataError, match="4 problems, listed above; 2 others are done"):
        segment(tmp_path / "in", tmp_path / "out", classes=("a", "b"))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.endswith("a name longer than the file system allows; rename the input")
    masks = sorted(path.name for path in (tmp_path / "out/masks").iterdir())
    assert masks == [f"{'y' * 248}.nii.gz", "z.nii.gz"]


def scan(folder: Path, slices: int = 3) -> None:
    """A scan folder of the UW-Madison download."""
    for number in range(1, slices + 1):
        path = folder / f"scans/slice_{number:04}_10_8_1.50_1.63.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(organ((8, 10), number).astype(np.uint16)).save(path)


def masks(output: Path) -> list[str]:
    return sorted(p.relative_to(output / "masks").as_posix() for p in output.rglob("masks/**/*.*"))


def manifest(output: Path) -> dict:
    return json.loads((output / "manifest.json").read_text())


def test_twenty_good_and_five_bad(tmp_path, capfd):
    """20 masks, 5 named in a line each, exit code 3."""
    place = tmp_path / "in"
    for number in range(12):
        nifti(place / f"scans {number % 3}/größe {number}.nii.gz", number)
    for number in range(4):
        picture(place / f"pictures/{number}.png", number)
    for number in range(2):
        write_series(place / f"series/{number}", organ((4, 8, 10)), f"series {number}")
        scan(place / f"case1/case1_day{number}")
    nan = organ().astype(np.float32)
    nan[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(nan, TILTED), place / "nan.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([organ()] * 2, -1), TILTED), place / "channels.nii.gz")
    nifti(place / "cut.nii.gz")
    (place / "cut.nii.gz").write_bytes((place / "cut.nii.gz").read_bytes()[:-100])
    (place / "empty.png").touch()
    Image.new("RGB", (8, 10)).save(place / "colour.png")
    (place / "notes.txt").write_text("nothing to segment")
    picture(place / ".hidden/a.png")
    with pytest.raises(DataError) as error:
        segment(place, tmp_path / "out", size=SIZE)
    assert error.value.exit_code == 3
    assert "5 problems, listed above; 20 others are done" in str(error.value)
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 5
    for name in ("nan.nii.gz", "channels.nii.gz", "cut.nii.gz", "empty.png", "colour.png"):
        assert sum(f"error: {place / name}: " in line for line in told) == 1, name
    found = manifest(tmp_path / "out")
    assert len(found["items"]) == len(masks(tmp_path / "out")) == 20
    assert len(found["failed"]) == 5
    assert found["passed_over"] == ["notes.txt"]
    assert "scans 1/größe 4.nii.gz" in masks(tmp_path / "out")
    assert "case1/case1_day1.csv" in masks(tmp_path / "out")
    assert "series/1.dcm" in masks(tmp_path / "out")
    for item in found["items"]:
        for path, digest in item["outputs"].items():
            assert manifests.file_digest(tmp_path / "out" / path) == digest


def test_the_manifest_has_volumes_in_ml(tmp_path):
    nifti(tmp_path / "in/a.nii.gz")
    picture(tmp_path / "in/b.png")
    scan(tmp_path / "in/case1_day0")
    segment(tmp_path / "in", tmp_path / "out", size=SIZE)
    by_name = {item["name"]: item for item in manifest(tmp_path / "out")["items"]}
    volume, plain, stack = (by_name[name] for name in ("a", "b", "case1_day0"))
    voxel = 0.7 * 1.3 * 5.0 / 1000
    assert volume["ml"]["organ"] == pytest.approx(volume["voxels"]["organ"] * voxel, rel=1e-5)
    assert (plain["ml"], plain["voxels"]) == (None, {"organ": int((organ((8, 10)) > 100).sum())})
    assert stack["spacing_mm"] == [3.0, 1.63, 1.5]
    found = manifest(tmp_path / "out")
    assert found["recipes"][0]["weights_sha256"] == spec().weights_sha256
    assert {"numpy", "nibabel", "python"} <= found["versions"].keys()


def test_run_length_codes_in_the_layout_of_the_download(tmp_path):
    scan(tmp_path / "in/case2/case2_day10", 4)
    classes = ("organ", "dark")
    segment(tmp_path / "in", tmp_path / "out", size=SIZE, classes=classes)
    lines = (tmp_path / "out/masks/case2/case2_day10.csv").read_text().splitlines()
    assert lines[0] == "id,class,segmentation"
    assert len(lines) == 1 + 4 * 2
    identity, name, code = lines[4].split(",")
    assert (identity, name) == ("case2_day10_slice_0002", "dark")
    assert np.array_equal(rle.decode(code, (8, 10)), organ((8, 10), 2) < 20)
    for place in ("in/case2/case2_day10", "in/case2/case2_day10/scans"):
        segment(tmp_path / place, tmp_path / "again" / place, size=SIZE, classes=classes)
        assert masks(tmp_path / "again" / place) == ["case2_day10.csv"]


def test_probabilities_and_uncertainty_beside_the_masks(tmp_path):
    nifti(tmp_path / "in/a.nii.gz")
    picture(tmp_path / "in/b.png")
    wanted = {"probabilities": True, "uncertainty": True}
    # Three times as large: exact at the middle of each pixel.
    how = {"size": (24, 30), "classes": ("organ", "dark"), "wanted": wanted}
    segment(tmp_path / "in", tmp_path / "out", **how)
    volume = nib.load(tmp_path / "out/probabilities/a.nii.gz")
    expected = 1 / (1 + np.exp(-(organ() / 100 - 1)))
    assert volume.get_data_dtype() == np.float32
    assert np.allclose(np.asarray(volume.dataobj)[..., 0], expected, atol=1e-5)
    assert np.allclose(volume.affine, TILTED)
    entropy = np.asarray(nib.load(tmp_path / "out/uncertainty/a.nii.gz").dataobj)
    assert entropy.shape == organ().shape
    assert 0 < entropy.min() < entropy.max() <= 1
    with Image.open(tmp_path / "out/probabilities/b.organ.png") as shown:
        p = np.array(shown) / 65535
    assert np.allclose(p, 1 / (1 + np.exp(-(organ((8, 10)) / 100 - 1))), atol=2e-5)
    assert (tmp_path / "out/uncertainty/b.png").is_file()


def test_overlays_show_the_masks_and_can_be_left_out(tmp_path):
    nifti(tmp_path / "in/a.nii.gz", shape=(60, 50, 7))
    segment(tmp_path / "in", tmp_path / "out")
    with Image.open(tmp_path / "out/overlays/a.png") as drawn:
        assert drawn.mode == "RGB"
        assert drawn.height > 320  # the longer side, with the legend
        colours = {tuple(colour) for colour in np.array(drawn).reshape(-1, 3)}
    assert (230, 159, 0) in colours
    segment(tmp_path / "in", tmp_path / "bare", wanted={"overlays": False})
    assert not (tmp_path / "bare/overlays").exists()


def test_masks_are_cleaned_by_class(tmp_path):
    image = np.full((10, 8, 7), 50, np.int16)
    image[1:4, 1:4, 1:4], image[7, 7, 5] = 150, 150
    image[8, 1, 1] = 5
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(image, TILTED), tmp_path / "in/a.nii.gz")
    rules = {"organ": Rule(largest=True)}
    segment(tmp_path / "in", tmp_path / "out", rules=rules, classes=("organ", "dark"))
    found = np.asarray(nib.load(tmp_path / "out/masks/a.nii.gz").dataobj)
    assert found.sum((0, 1, 2)).tolist() == [27, 1]
    picture(tmp_path / "in/b.png")
    with pytest.raises(DataError, match=r"b.png: pixels of unknown size.*min_pixels"):
        segment(tmp_path / "in", tmp_path / "ml", rules={"organ": Rule(min_ml=1)})
    assert masks(tmp_path / "ml") == ["a.nii.gz"]


def test_names_mirror_the_tree_and_never_meet(tmp_path):
    place = tmp_path / "in"
    for name in ("x/a.nii.gz", "y/a.nii.gz", "y/a.nii", "b c/ä.nii.gz"):
        nifti(place / name)
    for name in ("x/a.png", "z/a.png", "z/a.bmp", "z/scan.2020.png", "z/v1.2.png", "z/v1.2.bmp"):
        picture(place / name)
    picture(place / "z/jpeg inside.png", kind="BMP")
    for number in range(2):
        nifti(place / f"n/case_000{number}.nii.gz")
    nifti(place / "m/case_0000.nii.gz")
    segment(place, tmp_path / "out", size=SIZE)
    assert masks(tmp_path / "out") == [
        "b c/ä.nii.gz", "m/case.nii.gz", "n/case_0000.nii.gz", "n/case_0001.nii.gz",
        "x/a_nii_gz.nii.gz", "x/a_png.png", "y/a_nii.nii", "y/a_nii_gz.nii.gz",
        "z/a_bmp.png", "z/a_png.png", "z/jpeg inside.png", "z/scan.2020.png",
        "z/v1.2_bmp.png", "z/v1.2_png.png",
    ]  # fmt: skip


def test_links_pipes_and_loops(tmp_path, capfd):
    place = tmp_path / "in"
    nifti(place / "a/good.nii.gz")
    (place / "a/loop").symlink_to(place)
    (place / "b").symlink_to(tmp_path / "elsewhere")
    nifti(tmp_path / "elsewhere/linked.nii.gz")
    (place / "itself.nii").symlink_to(place / "itself.nii")
    (place / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(place / "pipe.nii.gz")
    with pytest.raises(DataError, match="3 problems, listed above; 2 others are done"):
        segment(place, tmp_path / "out")
    assert masks(tmp_path / "out") == ["a/good.nii.gz", "b/linked.nii.gz"]
    told = capfd.readouterr().err
    for message in ("itself.nii: ", "gone.png: No such file", "pipe.nii.gz: not a file"):
        assert message in told


def test_content_counts_not_the_name(tmp_path, capfd):
    place = tmp_path / "in"
    nifti(place / "a.nii")
    (place / "a.nii").rename(place / "volume.img")
    (place / "page.nii.gz").write_text("<html>")
    (place / "pointer.dcm").write_text("version https://git-lfs")
    picture(place / "good.png", kind="TIFF")
    (place / "archive.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataError, match="3 problems"):
        segment(place, tmp_path / "out", size=SIZE)
    told = capfd.readouterr().err
    assert "volume.img: a NIfTI file by its content; name it .nii or .nii.gz" in told
    assert told.count("no NIfTI, DICOM or picture by its content") == 2
    assert masks(tmp_path / "out") == ["good.png"]


NOTHING = {
    "missing": lambda place: None,
    "empty": lambda place: place.mkdir(),
    "of other kinds": lambda place: (place.mkdir(), (place / "a.txt").write_text("a")),
    "hidden": lambda place: picture(place / ".a.png"),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_nothing_to_segment(tmp_path, kind):
    NOTHING[kind](tmp_path / "in")
    with pytest.raises(DataError, match="correct input"):
        segment(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_is_never_the_input_nor_overwrites_what_is_there(tmp_path):
    nifti(tmp_path / "in/a.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    before = (tmp_path / "in/a.nii.gz").read_bytes()
    for output in ("in", "link", "."):
        with pytest.raises(ConfigError, match="is or holds the input"):
            segment(tmp_path / "in", tmp_path / output)
        with pytest.raises(ConfigError, match="is or holds the input"):
            segment(tmp_path / "in/a.nii.gz", tmp_path / output)
    nifti(tmp_path / "truth/masks/a.nii.gz")
    with pytest.raises(ConfigError, match="holds other things"):
        segment(tmp_path / "in", tmp_path / "truth")
    assert (tmp_path / "in/a.nii.gz").read_bytes() == before
    # Within the input, it is passed over.
    for _ in range(2):
        segment(tmp_path / "in", tmp_path / "in/out")
        assert [i["name"] for i in manifest(tmp_path / "in/out")["items"]] == ["a"]


def test_what_is_done_is_not_done_again(tmp_path):
    for number in range(3):
        nifti(tmp_path / f"in/{number}.nii.gz", number)
    assert len(segment(tmp_path / "in", tmp_path / "out").seen) == 3
    first = manifest(tmp_path / "out")
    assert segment(tmp_path / "in", tmp_path / "out").seen == []
    assert manifest(tmp_path / "out")["items"] == first["items"]
    nifti(tmp_path / "in/1.nii.gz", 7)  # another image
    nifti(tmp_path / "in/3.nii.gz", 8)  # one more
    (tmp_path / "out/masks/2.nii.gz").write_bytes(b"altered")
    assert len(segment(tmp_path / "in", tmp_path / "out").seen) == 3
    assert len(segment(tmp_path / "in", tmp_path / "out", rules={"organ": Rule(True)}).seen) == 4
    other = {"weights_sha256": "1" * 64}
    assert len(segment(tmp_path / "in", tmp_path / "out", **other).seen) == 4


def kill_in_network(number):
    class Killing(Threshold):
        def __call__(self, images):
            if len(self.seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(images)

    return Killing(spec())


def kill_in_rename(number):
    done = []
    rename = os.replace

    def replace(source, target):
        done.append(target)
        if len(done) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.replace = replace
    return Threshold(spec())


def kill_in_note(number):
    add = manifests.Manifest.add

    def note(self, item):
        if len(item["name"]) and item["name"] == f"{number}":
            os.write(self._file.fileno(), json.dumps(item).encode()[:40])  # a line cut off
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, item)

    manifests.Manifest.add = note
    return Threshold(spec())


KILLS = {
    "while segmenting": (kill_in_network, 2, 2),
    "before a mask has its name": (kill_in_rename, 5, 2),
    "between mask and overlay": (kill_in_rename, 6, 2),
    "while noting": (kill_in_note, 2, 2),
}


@pytest.mark.parametrize("kill", KILLS)
def test_killed_and_repeated(tmp_path, kill):
    """No half-written mask, nothing done twice, the same results in the end."""
    fault, number, finished = KILLS[kill]
    for at in range(5):
        nifti(tmp_path / f"in/{at}.nii.gz", at)
    expected = {f"{at}.nii.gz": organ(seed=at) > 100 for at in range(5)}

    def child():
        segment(tmp_path / "in", tmp_path / "out", fault(number))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(HANG)
    assert process.exitcode == -signal.SIGKILL
    for name in masks(tmp_path / "out"):
        if not name.rpartition("/")[2].startswith("."):
            found = np.asarray(nib.load(tmp_path / "out/masks" / name).dataobj)
            assert np.array_equal(found > 0, expected[name])
    assert not (tmp_path / "out/manifest.json").exists()
    network = segment(tmp_path / "in", tmp_path / "out")
    assert len(network.seen) == 5 - finished
    segment(tmp_path / "in", tmp_path / "whole")
    files = [sorted(p.relative_to(o) for p in o.rglob("*") if p.is_file())
             for o in (tmp_path / "out", tmp_path / "whole")]  # fmt: skip
    assert files[0] == files[1]
    for path in files[0]:
        if path.name != "manifest.json":
            assert (tmp_path / "out" / path).read_bytes() == (
                tmp_path / "whole" / path
            ).read_bytes()


def test_two_processes_and_one_output(tmp_path):
    nifti(tmp_path / "in/a.nii.gz")
    with (
        manifests.Manifest(tmp_path / "out", "0"),
        pytest.raises(InUseError, match="another process"),
    ):
        segment(tmp_path / "in", tmp_path / "out")
    segment(tmp_path / "in", tmp_path / "out")


def test_more_memory_than_there_is(tmp_path, monkeypatch):
    nifti(tmp_path / "in/large.nii.gz", shape=(40, 30, 20))
    nifti(tmp_path / "in/small.nii.gz")
    monkeypatch.setattr(folder, "free_memory", lambda: 10000)
    with pytest.raises(DataError, match=r"large.nii.gz: 20x30x40 voxels and 1 classes need"):
        segment(tmp_path / "in", tmp_path / "out")
    assert masks(tmp_path / "out") == ["small.nii.gz"]

    class Full(Threshold):
        def __call__(self, images):
            raise MemoryError

    monkeypatch.undo()
    with pytest.raises(DataError, match="2 problems"):
        segment(tmp_path / "in", tmp_path / "full", Full(spec()))
    assert folder.free_memory() > 1e6


def test_a_full_disk_names_the_file_and_keeps_what_is_done(tmp_path, monkeypatch):
    from attnseg.prediction import results

    for number in range(3):
        nifti(tmp_path / f"in/{number}.nii.gz", number)
    plain = results.replacing

    def full(path):
        if path.name == "1.nii.gz":
            raise OSError(28, "No space left on device")
        return plain(path)

    monkeypatch.setattr(results, "replacing", full)
    with pytest.raises(ResourceError, match=r"masks/1.nii.gz: cannot be written \(No space"):
        segment(tmp_path / "in", tmp_path / "out")
    monkeypatch.undo()
    assert len(segment(tmp_path / "in", tmp_path / "out").seen) == 1


def test_an_output_that_cannot_be_written(tmp_path):
    nifti(tmp_path / "in/a.nii.gz")
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        segment(tmp_path / "in", tmp_path / "file/out")


WITHOUT = """
import sys
from pathlib import Path

BARRED = ("torch", "pytorch_lightning", "lightning", "hydra", "albumentations", "monai")

class Barrier:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BARRED:
            raise ImportError(f"{name} is barred")

sys.meta_path.insert(0, Barrier())
from tests.prediction.made import segment
segment(Path(sys.argv[1]), Path(sys.argv[2]), wanted={"probabilities": True}, size=(16, 20))
import attnseg.prediction, pkgutil, importlib
for module in pkgutil.iter_modules(attnseg.prediction.__path__, "attnseg.prediction."):
    importlib.import_module(module.name)
import attnseg.commands.predict
"""


def test_prediction_needs_no_torch(tmp_path):
    """In a process where importing what training needs fails: every kind, every writer."""
    nifti(tmp_path / "in/a.nii.gz")
    picture(tmp_path / "in/b.png")
    scan(tmp_path / "in/case1_day0")
    write_series(tmp_path / "in/series", organ((4, 8, 10)))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path / "in"), str(tmp_path / "out")],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(masks(tmp_path / "out")) == 4
