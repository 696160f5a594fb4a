"""Own files that are damaged or made to harm: configurations, histories and facts of runs."""

import shutil
from pathlib import Path

import pytest
import yaml

from attnseg import cli
from attnseg.config.aliases import MOST_VALUES, check_aliases
from attnseg.errors import DataError
from attnseg.runs.run_folder import RunFolder, list_run_folders
from tests.limits import at_most
from tests.runs.test_version_0_1_0 import WRITTEN

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{at}: &a{at} [{','.join([f'*a{at - 1}'] * 9)}]\n" for at in range(1, 10)
)
BOMBS = {
    "lists": BOMB,
    "mappings": "a0: &a0 {k: v}\n"
    + "".join(
        f"a{at}: &a{at} {{{', '.join(f'{key}: *a{at - 1}' for key in 'abcdefgh')}}}\n"
        for at in range(1, 9)
    ),
    "merged": "a0: &a0 {k: [x, x, x]}\n"
    + "".join(f"a{at}: &a{at} [{{<<: *a0, l: {[f'*a{at - 1}'] * 20}}}]\n".replace("'", "")
              for at in range(1, 7)),
    "within itself": "a: &a [*a]\n",
    "by way of another": "a: &a {b: &b {c: *a}}\n",
}  # fmt: skip
DAMAGED = {
    "no keys": "{}\n",
    "empty": "",
    "text": "hello\n",
    "a list": "- 1\n",
    "no YAML": "a: [1,\n",
    "binary": "\0\0\0\0",
    "half": None,
    "alias bomb": BOMB,
    "a value of another type": "model: 3\ndataset: x\ntrainer: []\n",
}


@pytest.fixture
def run(call, tmp_path) -> RunFolder:
    shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
    return list_run_folders(Path("outputs"), "*/*/*/*")[0]


@pytest.mark.parametrize("bomb", BOMBS)
def test_aliases_that_multiply_are_refused_at_once(bomb):
    words = r"over 100,000 values; write|or within itself; write"
    with at_most(seconds=2), pytest.raises(ValueError, match=words):
        check_aliases(BOMBS[bomb])


def test_aliases_that_do_not_multiply_are_kept():
    text = "a: &a {b: [1, 2], c: '*'}\nd: [*a, *a]\ne:\n  <<: *a\n  f: 3\n"
    check_aliases(text)
    check_aliases("")
    check_aliases("a: '*** stars ***'\n")
    check_aliases("\n".join(f"k{at}: {at}" for at in range(MOST_VALUES // 100)))
    assert yaml.safe_load(text)["e"] == {"b": [1, 2], "c": "*", "f": 3}


@pytest.mark.parametrize("place", ["--config-dir", "configs", "search path"])
def test_an_alias_bomb_in_any_folder_of_configurations(call, tmp_path, place):
    folder = tmp_path / ("configs" if place == "configs" else "more")
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment/mine.yaml").write_text(f"# @package _global_\n{BOMB}")
    more = {
        "--config-dir": [f"--config-dir={folder}"],
        "configs": [],
        "search path": [f"hydra.searchpath=[file://{folder}]"],
    }[place]
    answer = call(*more, "experiment=mine")
    assert answer.code == 2
    assert answer.err.startswith(f"error: {folder}/experiment/mine.yaml: aliases that stand for")
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_configuration_of_a_run(call, run, damage):
    text = run.config_file.read_text()
    run.config_file.write_text(text[: len(text) // 2] if damage == "half" else DAMAGED[damage])
    Path("in").mkdir()
    for command, arguments in (
        (cli.predict, (f"run={run}", "input=in", "output=out")),
        (cli.evaluate, (f"run={run}", "split=val")),
        (cli.export, (f"run={run}", "formats=[onnx]")),
        (cli.explain, (f"run={run}",)),
        (cli.compare, ("runs=[outputs/phantom/setr/*/*]", "baseline=qkv")),
    ):
        answer = call(*arguments, command=command)
        lines = answer.err.splitlines()
        if arguments[0].startswith("runs=") and answer.code == 0:  # It needs little of the file.
            continue
        assert answer.code in (2, 3, 4), (command, answer.err)
        assert 1 <= len(lines) <= 3, (command, answer.err)
        assert "config.yaml" in answer.err or damage == "a value of another type"
        assert "bug of ours" not in answer.err, (command, answer.err)
        assert "Traceback" not in answer.err
    answer = call(command=cli.status)
    assert (answer.code, answer.err) == (0, "")
    assert "unreadable" in answer.out


@pytest.mark.parametrize("cut", [1, 3, 10, 60])
def test_a_history_that_is_cut_off_is_read_up_to_there(run, cut, caplog):
    whole = len(run.history)
    content = run.history_file.read_bytes()
    run.history_file.write_bytes(content[:-cut])
    again = RunFolder(run.path)
    assert len(again.history) == whole - 1
    assert f"{run.history_file}: the last line is cut off and left out" in caplog.text
    assert again.history.equals(run.history.iloc[:-1].astype(again.history.dtypes))


@pytest.mark.parametrize("content", [b"", b"epo", b"a,b\n1,2\n", b'epoch\n"\n', b"\xff\xfe\0\0\n"])
def test_a_file_that_is_not_a_history_is_named(run, content):
    run.history_file.write_bytes(content)
    with pytest.raises(DataError, match=r"history.csv: cannot be read \(.*; train again"):
        len(RunFolder(run.path).history)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"status": 3}', '{"status": "done"', "\0"])
def test_damaged_facts_of_a_run(call, run, content):
    run.facts_file.write_text(content)
    answer = call(f"run={run}", "input=in", "output=out", command=cli.predict)
    assert answer.code in (2, 3)
    assert answer.err.startswith(f"error: {run.facts_file}: cannot be read (")
    assert answer.err.count("\n") == 1
    answer = call(command=cli.status)
    assert (answer.code, answer.err) == (0, "")
    assert "unreadable" in answer.out
