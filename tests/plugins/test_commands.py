"""A plugin through every command; then the same commands without it."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

import attnseg
from attnseg import cli
from attnseg.runs.run_folder import RunFolder
from tests.plugins.conftest import forget
from tests.plugins.package import BLOCKS

OWN = (
    "model=plain", "dataset=discs", "loss=jaccard", "profile=sizes", "augment=noisy",
    "logger=table", "scheduler=steps", "phantom_size=tiny", "trainer.max_epochs=1",
    "trainer.limit_batches=1",
)  # fmt: skip


@pytest.fixture
def succeed(call):
    """Call a command that must end well; return what it printed."""

    def run(command, *arguments):
        answer = call(*arguments, command=command)
        assert answer.code == 0, answer.err
        return answer.out

    return run


@pytest.fixture
def fail(call):
    """Call a command that must end with one line; return it."""

    def run(command, *arguments, code=2):
        answer = call(*arguments, command=command)
        assert answer.code == code, answer.out
        return answer.err.removeprefix("error: ").strip()

    return run


def timeless(printed):
    """Return the text without lines of progress: they tell seconds, and slow work prints more."""
    return re.sub(r"(?m)^\w[\w ]*: \d+/\d+ .*\n", "", printed)


def picture(folder):
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(folder / "one.png")


@pytest.mark.full
def test_every_command_with_and_without_a_plugin(
    installed, succeed, fail, tmp_path, monkeypatch, capfd
):
    succeed(cli.train, "-m", "attn=gated,mean", *OWN)
    succeed(cli.train, *OWN, "model=small_unet")
    gated, mean = (
        next(tmp_path.glob(f"outputs/discs-phantom/plain/{attn}/*")) for attn in ("gated", "mean")
    )
    kept = RunFolder(gated).facts.plugins["my_attn"]
    assert kept == {"version": "0.3", "digest": kept["digest"]}
    assert (gated / "table/metrics.csv").read_text().count("\n") > 1
    picture(tmp_path / "pictures")
    runs = f"runs=[{gated},{mean}]"
    compare = (runs, "baseline=gated", "split=val")
    reopening = [
        (cli.evaluate, f"run={gated}", "profile=sizes,strict"),
        (cli.metrics_diff, f"run={gated}", "profiles=sizes,strict"),
        (cli.explain, f"run={gated}"),
        (cli.export, f"run={gated}"),
        (cli.capsule, f"run={gated}", "output=it.zip"),
        (cli.predict, f"run={gated}", "input=pictures", "output=masks"),
    ]
    without_code = [
        (cli.predict, f"run={gated}", "backend=onnx", "input=pictures", "output=onnx"),
        (cli.predict, "capsule=it.zip", "input=pictures", "output=capsule"),
        (cli.verify, "it.zip"),
        (cli.compare, *compare),
        (cli.status,),
    ]
    for command, *arguments in (*reopening, *without_code):
        succeed(command, *arguments)
    space = "search.space={loss.smooth:{low:0.5,high:2.0}}"
    succeed(cli.search, *OWN, "attn=gated", "search.name=s", "search.trials=1", space)
    table = succeed(cli.benchmark, "model=plain", "attn=gated", "image_size=[32,32]", "repeats=1")
    assert "gated" in table
    assert attnseg.load_run(gated).model() is not None
    answers = [timeless(succeed(command, *rest)) for command, *rest in without_code[3:]]

    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(installed)])
    forget()
    assert "gated" not in attnseg.list_attentions()
    absence = f"{gated}: of plugin my_attn 0.3, which is not installed; install it"
    for command, *arguments in reopening:
        wanted = [one.replace("sizes,strict", "strict,monai") for one in arguments]
        assert fail(command, *(one.replace("masks", "others") for one in wanted)) == absence
    assert "profile: no 'sizes'" in fail(cli.evaluate, f"run={gated}", "profile=sizes,strict")
    for command, *arguments in without_code[:3]:
        succeed(command, *(f"{one}2" if one.startswith("output=") else one for one in arguments))
    assert answers == [timeless(succeed(command, *rest)) for command, *rest in without_code[3:]]
    masks = [path.read_bytes() for path in tmp_path.glob("onnx*/**/*.png")]
    assert len(masks) == 2 * len(set(masks)) > 0
    for command in (cli.train, cli.search, cli.benchmark):
        assert fail(command, "attn=gated").startswith("attn: no 'gated'; ")


@pytest.mark.full
def test_attentions_of_a_plugin_are_probed(installed, succeed, fail, tmp_path, monkeypatch):
    arguments = ("probes=far_place", "seeds=1", "probe.steps=2", "jobs=2")
    printed = succeed(cli.probe, "attn=gated,mean", *arguments)
    assert "gated" in printed and "mean" in printed
    page = (tmp_path / "outputs/probes/probes.html").read_text()
    assert "Nothing is predicted" in page  # The plugin declares nothing.
    cells = list(tmp_path.glob("outputs/probes/cells/*.json"))
    plugins = [json.loads(cell.read_text())["attn"]["plugins"] for cell in cells]
    assert len(plugins) == 2 and all(len(each["my_attn"]) == 16 for each in plugins)
    again = succeed(cli.probe, "attn=gated,mean", *arguments)
    assert again.splitlines()[-12:-1] == printed.splitlines()[-12:-1]
    assert sorted(cells) == sorted(tmp_path.glob("outputs/probes/cells/*.json"))
    wrong = fail(cli.probe, "attn=gated,mean", "attn.mixing=softmax", *arguments)
    assert wrong == "attn.mixing=softmax: an option of one attention; name a single attn"
    assert fail(cli.probe, "attn=gated,maen", *arguments).startswith("attn: no 'maen'")
    assert "probes: no 'nope'" in fail(cli.probe, "attn=gated", "probes=nope")


@pytest.mark.full
def test_a_file_is_needed_on_the_command_line_again(clean, succeed, fail, tmp_path, monkeypatch):
    file = tmp_path / "my_idea.py"
    file.write_text(BLOCKS["my_attn/gated.py"].replace("Gated", "MyIdea"))
    smoke = ("experiment=smoke", "trainer.limit_batches=1", "logger=none")
    own = "attn.mixing=my_idea"
    assert "unknown mixing 'my_idea'" in fail(cli.train, *smoke, own)
    succeed(cli.train, *smoke, "plugins=[my_idea.py]", own)
    (run,) = (path.parent for path in tmp_path.glob("outputs/*/*/*/*/run.json"))
    kept = RunFolder(run).facts.plugins["my_idea"]
    assert kept == {"file": str(file), "digest": kept["digest"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnseg.plugins._files", {})  # as in another process
        absence = "of plugin my_idea.py, which is not on the command line; add plugins=["
        assert fail(cli.evaluate, f"run={run}") == f"{run}: {absence}{file}]"
        succeed(cli.status)
        succeed(cli.evaluate, f"run={run}", "split=val", "plugins=[my_idea.py]")
        file.write_text(file.read_text() + "# Changed.\n")
        printed = succeed(cli.evaluate, f"run={run}", "split=val", "plugins=[my_idea.py]")
        assert printed.count("warning: ") == printed.count("has other code than when") == 1
    succeed(cli.train, *smoke, "plugins=[my_idea.py]", own)
    assert len(list(tmp_path.glob("outputs/*/*/*/*/run.json"))) == 2  # Other code, another run.
    file.write_text(file.read_text().replace("return self.gate", "return self.gates"))
    sys.modules.pop("my_idea")
    message = fail(cli.train, *smoke, "plugins=[my_idea.py]", own, code=1)
    assert message.startswith("plugin my_idea: AttributeError: ")
    assert "(my_idea.py, line " in message and "bug of ours" not in message


KINDS = {"attention": "attn", "model": "model", "dataset": "dataset", "loss": "loss"}


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_what_new_writes_trains_at_once_and_passes_its_test(
    clean, succeed, fail, tmp_path, monkeypatch, kind
):
    name = f"my_{kind}"
    printed = succeed(cli.new, kind, name)
    written = [f"{name}.py", f"configs/{KINDS[kind]}/{name}.yaml", f"test_{name}.py"]
    assert printed.splitlines()[0] == " ".join(["Written:", *written])
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == sorted(written)
    command = printed.splitlines()[2].partition("attnseg train ")[2].split()
    succeed(cli.train, *command, "phantom_size=tiny", "trainer.max_epochs=1", "model.size=tiny")
    (run,) = tmp_path.glob("outputs/*/*/*/*/run.json")
    assert list(json.loads(run.read_text())["plugins"]) == [name]
    monkeypatch.syspath_prepend(tmp_path)
    tests = (tmp_path / written[2]).read_text()
    assert "def test_" in tests
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in map(tmp_path.joinpath, written)}
    assert "is there already" in fail(cli.new, kind, name)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("attention", "kv"), "name: kv is taken"),
        (("loss", "json"), "name: json is taken"),
        (("loss", "MyLoss"), "name: 'MyLoss' is not a valid module name"),
        (("loss", "name=../x"), "name: '../x' is not a valid module name"),
        (("loss", "class"), "name: 'class' is not a valid module name"),
        (("attention", "softmax"), "name: softmax is taken"),  # a mixing, and no choice of attn
        (("thing", "x"), "kind: 'thing' is not allowed"),
        (("loss",), "name: not set; give it as name=VALUE"),
    ],
)
def test_wrong_words_after_new(fail, tmp_path, words, message):
    assert fail(cli.new, *words).startswith(message)
    assert list(tmp_path.iterdir()) == []
