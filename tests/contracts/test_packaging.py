"""The packages that are built: each carries every file of configs/, and a wheel works anywhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[2]
LOCATE = "from attnseg.config.folder import configs_folder; print(configs_folder())"


def yaml_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, target: str, output: Path) -> Path:
    """Build a package without a network, as a front end would."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", output, folder=source)
    (package,) = output.iterdir()
    return package


def install(wheel: Path, target: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps")
    run(*pip, "--target", target, wheel, folder=target.parent)
    return target


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of what a clone holds, so that building leaves nothing in the real one."""
    listed = run("git", "ls-files", "-z", folder=ROOT).split("\0")
    folder = tmp_path_factory.mktemp("clone")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory) -> Path:
    """What a wheel of the clone installs."""
    folder = tmp_path_factory.mktemp("wheel")
    return install(build(clone, "wheel", folder / "dist"), folder / "installed")


def test_the_citation_has_the_version_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == version
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_every_package_has_the_same_configurations(clone, wheel, tmp_path):
    wanted = yaml_files(ROOT / "configs")
    assert len(wanted) > 50
    with tarfile.open(build(clone, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("attnseg-*")
    again = install(build(source, "wheel", tmp_path / "again"), tmp_path / "again installed")
    editable = install(build(clone, "wheel:editable", tmp_path / "dev"), tmp_path / "dev installed")
    # Without other .pth files (-S), as another editable installation may be among them.
    packages = sysconfig.get_path("purelib")
    add = f"import site, sys; site.addsitedir({str(editable)!r}); sys.path.append({packages!r}); "
    shown = run(sys.executable, "-S", "-c", add + LOCATE, folder=tmp_path, PYTHONPATH="")
    assert Path(shown.strip()) == clone / "configs"
    lists = {
        "clone": yaml_files(clone / "configs"),
        "editable": yaml_files(Path(shown.strip())),
        "wheel": yaml_files(wheel / "attnseg" / "configs"),
        "sdist": yaml_files(source / "configs"),
        "wheel of the sdist": yaml_files(again / "attnseg" / "configs"),
    }
    print({name: len(found) for name, found in lists.items()})
    assert lists == dict.fromkeys(lists, wanted)


def test_a_wheel_holds_neither_tests_nor_what_maintainers_measure(wheel):
    names = {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"}
    assert names == {"attnseg", "bin"}
    assert {"step.py", "cost.py"} <= {path.name for path in wheel.glob("attnseg/benchmark/*")}
    assert not list(wheel.rglob("overhead.py"))


def test_an_installed_wheel_works_in_any_folder(wheel, tmp_path):
    def attnseg(*words: str) -> str:
        return run(wheel / "bin" / "attnseg", *words, folder=tmp_path, PYTHONPATH=str(wheel))

    shown = run(sys.executable, "-c", LOCATE, folder=tmp_path, PYTHONPATH=str(wheel))
    assert Path(shown.strip()) == wheel / "attnseg" / "configs"
    assert "attnseg COMMAND" in attnseg("--help")
    alone = run(sys.executable, "-m", "attnseg", folder=tmp_path, PYTHONPATH=str(wheel))
    assert alone == attnseg()
    assert "_target_: attnseg.models.setr.SETR" in attnseg("train", "--cfg", "job")
    assert list(tmp_path.iterdir()) == []
