"""The layers that a budget allows: mixed networks, their curve, and the run that has them."""

import json
import signal

import pandas as pd
import pytest
import torch

from attnseg import cli
from attnseg.config.cost import count_macs, find_attentions
from attnseg.config.training import parse_config
from attnseg.conversion.layer_search import search_layers
from attnseg.conversion.sites import find_sites
from attnseg.conversion.surgery import convert_model
from attnseg.errors import ConfigError
from attnseg.runs.run_folder import RunFolder
from attnseg.training import layer_conversion
from attnseg.training.conversion_report import measure_dice, write_report
from attnseg.training.layer_conversion import (
    convert_found_layers,
    draw_curve,
    mixed,
    tabulate_search,
)
from scripts.asymmetry_table import correlate, tabulate_blocks
from tests.contracts.groups import compose
from tests.contracts.test_models import SIZE, make
from tests.conversion.test_convert import find_run, home, trained  # noqa: F401
from tests.faults.runs import assert_same_end, attempt_command, equal, send_at


def test_sites_are_those_that_attn_decides():
    config = parse_config(compose("model=dae_former", "model.size=tiny", "attn=kv"))
    sites = find_sites(config, 1, 3)
    names = find_attentions(make("dae_former", "kv"))
    assert [n for own in sites.values() for n in own] == [n for n in names if "channel" not in n]
    assert list(sites) == list(range(len(sites)))


def test_a_mixed_network_is_that_of_by_layer():
    """Its surgery, block by block, is that of the whole; and the original is put back."""
    torch.manual_seed(0)
    old, new = make("setr", "qkv").eval(), make("setr", "kv").eval()
    by_layer = make("setr", "by_layer", options=("attn.layers=[1,3]",)).eval()
    for model in (new, by_layer):
        convert_model(model, old, "average", {})
    image = torch.randn(2, 1, *SIZE)
    names = ["encoder.1.attn", "encoder.3.attn"]
    with torch.no_grad():
        before = old(image)
        with mixed(old, new, names):
            assert torch.equal(old(image), by_layer(image))
            assert count_macs(old, (1, *SIZE)) == count_macs(by_layer, (1, *SIZE))
        assert torch.equal(old(image), before)
        assert not torch.equal(by_layer(image), before)


def test_a_search_in_several_processes_is_refused():
    config = parse_config(
        compose(
            "model=setr",
            "trainer=ddp",
            "trainer.devices=2",
            "trainer.accelerator=cpu",
            "trainer.precision=32",
        )
    )
    with pytest.raises(ConfigError, match="in one process"):
        convert_found_layers(lambda layers: config, 0.01, lambda folder: None)


def test_a_dice_that_is_not_known_is_null_in_the_report(tmp_path):
    folder = RunFolder(tmp_path)
    nan = float("nan")
    write_report(folder, {"dice": {"parent": 0.5, "surgery": nan, "epochs": [nan, 0.4]}})
    written = json.loads(folder.conversion_file.read_text())["dice"]
    assert written == {"parent": 0.5, "surgery": None, "epochs": [None, 0.4]}


def test_the_curve():
    found = search_layers([0, 2], lambda layers: 0.9 - sum({0: 0.1, 2: 0.02}[n] for n in layers))
    table = tabulate_search(found, {0: ["a"], 2: ["b", "c"]}, [100, 90, 80])
    assert table["block"].tolist() == [pd.NA, 2, 0]
    assert table["sites"].tolist() == ["", "b c", "a"]
    assert table["loss"].tolist() == pytest.approx([0, 0.02, 0.12])
    assert table["dice_alone"][1:].tolist() == pytest.approx([0.88, 0.8])
    assert table["macs_share"].tolist() == [1, 0.9, 0.8]
    table["chosen"] = [False, True, False]
    (axis,) = draw_curve(table, 0.05).axes
    curve, chosen, least = axis.lines
    assert curve.get_xdata().tolist() == pytest.approx([1e-7, 9e-8, 8e-8])
    assert curve.get_ydata().tolist() == table["dice"].tolist()
    assert chosen.get_ydata().tolist() == [table["dice"][1]]
    assert list(least.get_ydata()) == pytest.approx([0.85, 0.85])
    assert [text.get_text() for text in axis.texts] == ["original", "+2", "+0"]


def test_layers_by_hand_and_by_budget(call, home):  # noqa: F811
    parent = find_run(home, "qkv")
    words = (f"run={parent}", "attn=kv", "epochs=0")
    answer = call(*words, "layers=auto", "budget=1", command=cli.convert)
    assert answer.code == 0, answer.err
    run = RunFolder(find_run(home, "by_layer"))
    assert run.raw_config["attn"]["layers"] == [0, 1, 2, 3]
    assert run.option("attn@attn.default") == "qkv"
    assert run.option("attn@attn.other") == "kv"
    table = pd.read_csv(run.path / "conversion.csv")
    assert table["chosen"].tolist() == [False, True, True, True, True]
    report = json.loads(run.conversion_file.read_text())
    assert table["dice"].iloc[-1] == pytest.approx(report["dice"]["surgery"], abs=1e-6)
    assert table["dice"][0] == pytest.approx(report["dice"]["parent"], abs=1e-6)
    assert table["macs"].iloc[-1] == report["cost"]["converted"]["macs"]
    assert (run.path / "conversion.png").stat().st_size > 5000
    assert report["layers"]["blocks"] == [0, 1, 2, 3]
    # A conversion of one block by hand has the Dice that the search found for it.
    answer = call(*words, "layers=[2]", command=cli.convert)
    assert answer.code == 0, answer.err
    (other,) = {path.parent for path in run.path.parent.glob("*/run.json")} - {run.path}
    report = json.loads((other / "conversion.json").read_text())
    alone = table.set_index("block")["dice_alone"][2]
    assert report["dice"]["surgery"] == pytest.approx(alone, abs=1e-6)
    before, after = RunFolder(parent).model().state_dict(), RunFolder(other).model().state_dict()
    kept = {name: t for name, t in after.items() if ".2.attn." not in name}
    assert equal(kept, {name: before[name] for name in kept})
    # The whole in the place of its parts.
    blocks = tabulate_blocks(run)
    assert blocks["loss"].tolist() == pytest.approx(
        (table["dice"][0] - table[1:].sort_values("block")["dice_alone"]).tolist()
    )
    assert blocks["asymmetry"].between(0.1, 0.9).all()
    assert (blocks["beyond_kv"] > blocks["asymmetry"]).all()


def test_correlation_of_ranks():
    tables = [pd.DataFrame({"asymmetry": [0.1, 0.2], "beyond_kv": [0.4, 0.3], "loss": [1, 2]})] * 2
    found = correlate(tables)
    assert found["asymmetry"][0] == pytest.approx(1)
    assert found["beyond_kv"][0] == pytest.approx(-1)
    assert found["asymmetry"][2] == 4


def needing_block_1(*faults):
    """Return a fault: no network does without its block 1, and then whatever else goes wrong."""

    def measure(model, setup):
        return measure_dice(model, setup) - 0.5 * ("qk" in model.encoder[1].attn.project)

    def arrange():
        layer_conversion.measure_dice = measure
        for fault in faults:
            fault()

    return arrange


def kill_at_the_picture():
    """Kill the process when the network is trained and its table written, but nothing more."""
    layer_conversion.draw_curve = lambda *arguments: signal.raise_signal(signal.SIGKILL)


def test_found_layers_learn_and_killed_end_the_same(trained, tmp_path, call):  # noqa: F811
    parent = find_run(trained, "qkv")
    first, other = tmp_path / "first", tmp_path / "other"

    def convert(folder, *faults):
        paths = (f"paths.data={folder}/data", f"paths.outputs={folder}/outputs")
        words = (f"run={parent}", "attn=kv", "layers=auto", "budget=0.1", "epochs=2", *paths)
        # The masks teach nothing: all is learned from the parent.
        return attempt_command(
            folder, cli.convert, *words, "task=0", fault=needing_block_1(*faults)
        )

    for folder in (first, other):
        folder.mkdir()
        (folder / "data").symlink_to(trained / "data")
    assert convert(first) == 0, (first / "output").read_text()
    assert convert(other, send_at("step", 5, signal.SIGKILL)) == -signal.SIGKILL
    assert not list(other.glob("**/conversion.csv"))
    assert convert(other, kill_at_the_picture) == -signal.SIGKILL
    # What is trained is not trained again.
    assert convert(other, send_at("step", 1, signal.SIGKILL)) == 0, (other / "output").read_text()
    one, two = (find_run(folder, "by_layer") for folder in (first, other))
    assert one.name == two.name
    assert_same_end(one, two)
    for name in ("conversion.csv", "conversion.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    reports = [json.loads((run / "conversion.json").read_text()) for run in (one, two)]
    for report in reports:
        del report["compare"]  # It has the folder.
        for figures in report["cost"].values():
            for name in [name for name in figures if name.startswith("forward_")]:
                del figures[name]
    assert reports[0] == reports[1]
    # The mixed network has learned, in the blocks that were converted and in the other one.
    report, run = reports[0], RunFolder(one)
    assert report["layers"]["blocks"] == [0, 2, 3]
    assert report["dice"]["surgery"] == pytest.approx(report["layers"]["dice"], abs=1e-6)
    assert len(report["dice"]["epochs"]) == 2
    losses = run.history["train/loss"]
    assert 0 < losses[1] < losses[0]
    model = run.model()
    converted = ["qk" in block.attn.project for block in model.encoder]
    assert converted == [True, False, True, True]
    start, end = RunFolder(parent).model().state_dict(), model.state_dict()
    name = "encoder.{}.attn.project.{}.linear.weight"
    assert all(
        not torch.equal(start[name.format(n, "v")], end[name.format(n, "v")]) for n in range(4)
    )
    # It is a run like any other.
    scored = call(f"run={one}", "split=val", command=cli.evaluate)
    assert scored.code == 0, scored.err
    own, again = (
        pd.read_csv(path).query("split == 'val'").reset_index()["value"]
        for path in (run.cases_file, run.evaluation / "val/cases.csv")
    )
    pd.testing.assert_series_equal(own, again)
    (scans,) = trained.glob("data/phantoms/*/train")
    answer = call(f"run={one}", f"input={scans}/case1", "output=out", command=cli.predict)
    assert answer.code == 0, answer.err
    assert len(list(tmp_path.glob("out/masks/*.csv"))) == 1
