"""A capsule replays what it was made with, and whatever was done to it is refused."""

import json
import random
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from attnseg import cli
from attnseg.errors import CheckpointError
from attnseg.prediction.capsule import GOLDEN_OUTPUT, MANIFEST, MODEL, Capsule, verify_capsule
from tests.export import made
from tests.limits import HANG
from tests.safety.test_network import FORBID


def test_round_trip(tmp_path):
    path = made.write(tmp_path / "c.zip")
    capsule = Capsule(path)
    assert capsule.spec == made.spec()
    assert capsule.text("LICENSE") == "None.\n"
    images = np.random.default_rng(1).random((3, 1, *made.SIZE), np.float32)
    expected = images * np.arange(3, dtype=np.float32)[:, None, None]
    assert np.abs(capsule.network(1)(images) - expected).max() < 1e-6
    assert verify_capsule(path) < 1e-6


def test_the_same_parts_make_the_same_file(tmp_path):
    first, second = (made.write(tmp_path / name) for name in ("a.zip", "b.zip"))
    assert first.read_bytes() == second.read_bytes()


def test_any_flipped_bit_is_noticed(tmp_path):
    path = made.write(tmp_path / "c.zip")
    data = path.read_bytes()
    rng = random.Random(0)
    for bit in [0, len(data) * 8 - 1, *rng.sample(range(len(data) * 8), 300)]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError):
            Capsule(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    path = made.write(tmp_path / "c.zip")
    data = path.read_bytes()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            Capsule(path)


def renamed(name):
    return lambda entries: [*entries, (made.regular(name), b"x")]


def replaced(name, data):
    return lambda entries: [(e, data if e.filename == name else d) for e, d in entries]


def manifest(change):
    def changed(entries):
        values = json.loads(entries[0][1])
        change(values)
        return [(entries[0][0], json.dumps(values).encode()), *entries[1:]]

    return changed


def bomb(entries):
    entry = made.regular("bomb")
    entry.compress_type = zipfile.ZIP_DEFLATED
    return [*entries, (entry, bytes(50_000_000))]


def link(entries):
    return [*entries, (made.regular("link", stat.S_IFLNK), b"/etc/passwd")]


def swapped(entries):
    """Two files that trade places."""
    files = {e.filename: d for e, d in entries}
    files["profile.json"], files["LICENSE"] = files["LICENSE"], files["profile.json"]
    return [(e, files[e.filename]) for e, _ in entries]


def packed_otherwise(entries):
    entry, data = entries[-1]
    entry.compress_type = zipfile.ZIP_LZMA
    return [*entries[:-1], (entry, data)]


ATTACKS = {
    "a path up": renamed("../escape"),
    "a path up within": renamed("golden/../../escape"),
    "an absolute path": renamed("/etc/escape"),
    "a drive": renamed("C:\\escape"),
    "a backslash": renamed("golden\\escape"),
    "a hidden file": renamed(".bashrc"),
    "a folder": renamed("folder/"),
    "listed twice": renamed("LICENSE"),
    "listed twice but for case": renamed("license"),
    "not in the manifest": renamed("more.txt"),
    "a link": link,
    "a bomb": bomb,
    "packed otherwise": packed_otherwise,
    "too many files": lambda entries: [
        *entries,
        *((made.regular(f"f{i}"), b"") for i in range(100)),
    ],
    "a file swapped for another": replaced("LICENSE", b"Yours.\n"),
    "another file of the same size": replaced("LICENSE", b"Mine?\n"),
    "two files that trade places": swapped,
    "no manifest": lambda entries: entries[1:],
    "a manifest that is no JSON": replaced(MANIFEST, b"{"),
    "a manifest nested too deeply": replaced(MANIFEST, b"[" * 100_000),
    "a manifest that is a list": replaced(MANIFEST, b"[]"),
    "of a newer version": manifest(lambda m: m.update(version=2)),
    "any tolerance": manifest(lambda m: m.update(tolerance=1e9)),
    "no tolerance": manifest(lambda m: m.update(tolerance=None)),
    "a file missing": lambda entries: [e for e in entries if e[0].filename != MODEL],
    "a file missing everywhere": lambda entries: manifest(lambda m: m["files"].pop("LICENSE"))(
        [e for e in entries if e[0].filename != "LICENSE"]
    ),
    "a negative size": manifest(lambda m: m["files"]["LICENSE"].update(bytes=-1)),
    "a size beyond what is there": manifest(lambda m: m["files"]["LICENSE"].update(bytes=1 << 40)),
    "a digest of one digit": manifest(lambda m: m["files"]["LICENSE"].update(sha256="0")),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks(tmp_path, attack):
    """With the right seal: these are no accidents."""
    path = made.forge(tmp_path / "c.zip", ATTACKS[attack])
    with pytest.raises(CheckpointError, match=r"c\.zip"):
        verify_capsule(path)
    assert [p.name for p in tmp_path.iterdir()] == ["c.zip"]


def test_the_forger_can_also_make_a_sound_one(tmp_path):
    """Else every attack would be refused for one reason."""
    assert verify_capsule(made.forge(tmp_path / "c.zip", lambda entries: entries)) < 1e-6


CONTENTS = {
    "a graph that reads files": {MODEL: made.external("/etc/passwd").SerializeToString()},
    "a graph of other sizes": {MODEL: made.graph(size=(8, 8)).SerializeToString()},
    "a graph of other outputs": {MODEL: made.graph(outputs=2).SerializeToString()},
    "a golden output that is not finite": {
        GOLDEN_OUTPUT: made.array(np.full((2, 3, *made.SIZE), np.nan, np.float32))
    },
    "another golden output": {GOLDEN_OUTPUT: made.array(np.zeros((2, 3, *made.SIZE), np.float32))},
    "a golden output of another shape": {GOLDEN_OUTPUT: made.array(np.zeros((2, 3), np.float32))},
    "a pickle": {GOLDEN_OUTPUT: b"\x93NUMPY\x01\x00F\x00" + b"{'descr': '|O', 'fortran_order'"
                 b": False, 'shape': (1,), }".ljust(69) + b"\ncos\nsystem\n."},
    "an empty spec": {"recipe.json": b"{}"},
}  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
def test_contents_that_do_not_fit(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"c\.zip"):
        verify_capsule(made.write(tmp_path / "c.zip", **CONTENTS[content]))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"<!DOCTYPE html>", b"version https://git"])
def test_files_that_are_no_capsules(tmp_path, data):
    (tmp_path / "c.zip").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"c\.zip"):
        Capsule(tmp_path / "c.zip")


def test_on_the_command_line(call, tmp_path):
    path = made.write(tmp_path / "c.zip")
    answer = call(f"capsule={path}", command=cli.verify)
    assert answer.code == 0 and "Golden input replayed" in answer.out
    assert call(str(path), command=cli.verify).code == 0
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    answer = call(f"capsule={path}", command=cli.verify)
    assert answer.code == 4 and answer.err.count("\n") == 1
    assert call("capsule=missing.zip", command=cli.verify).code == 4


def test_without_torch_and_network(tmp_path):
    path = made.write(tmp_path / "c.zip")
    code = FORBID + "sys.modules['torch'] = None\nfrom attnseg.cli import verify\nverify()\n"
    command = [sys.executable, "-c", code, f"capsule={path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "connected").exists()
