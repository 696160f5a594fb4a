"""Attention maps of finished runs, as a person asks for them."""

import json
import sys

import pandas as pd
import pytest
import torch
from PIL import Image

from attnseg import cli


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two finished runs, of KV and of QKV attention."""
    folder = tmp_path_factory.mktemp("explained")
    for attn in ("kv", "qkv"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.chdir(folder)
            words = ["experiment=smoke", f"attn={attn}", "trainer.max_epochs=0", "logger=none"]
            patch.setattr(sys, "argv", ["train.py", *words])
            cli.train()
        assert ended.value.code == 0
    return folder


@pytest.fixture
def explain(place, call, monkeypatch):
    """Call the command there."""
    monkeypatch.chdir(place)
    return lambda *words: call(*words, command=cli.explain)


@pytest.fixture
def kv(place):
    (path,) = place.glob("outputs/*/*/kv/*/run.json")
    return path.parent.relative_to(place)


def test_one_run(explain, place, kv):
    (ledger,) = place.glob("outputs/*/test_openings.jsonl")
    before = ledger.read_bytes()
    answer = explain(f"run={kv}", "heads=true", "scores=true")
    assert answer.code == 0, answer.err
    folder = kv / "attention"
    for name in ("maps", "heads", "scores"):
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 250
    table = pd.read_csv(folder / "layers.csv")
    assert set(table["layer"]) == {f"encoder.{i}.attn" for i in range(4)}
    assert (table["unexplained"] < 1e-5).all()
    assert (table["score_asymmetry"] < 1e-6).all()
    assert (table["distance_mm"] > 0).all()
    assert (table["entropy_bits"] <= table["highest_entropy_bits"] + 1e-4).all()
    assert "distance" in answer.out
    assert "(mm)" in answer.out
    assert max(map(len, answer.out.splitlines()[1:-2])) <= 80
    assert ledger.read_bytes() == before  # validation cases only


def test_variants_side_by_side_on_the_same_pixel(explain):
    answer = explain(
        "runs=[outputs/*/setr/*/*]", "point=[20,30]", "slice=2", "layer=encoder.1.attn",
        "outputs=here",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    table = pd.read_csv("here/layers.csv")
    tilt = table.groupby("attn")["score_asymmetry"].mean()
    assert tilt["kv"] < 1e-6
    assert 0.5 < tilt["qkv"] < 0.9
    assert set(table["layer"]) == {"encoder.1.attn"}
    assert answer.out.count("slice 2, pixel [20, 30]") == 2


def test_opening_the_test_set_goes_on_record(explain, place, kv):
    (ledger,) = place.glob("outputs/*/test_openings.jsonl")
    before = len(ledger.read_text().splitlines())
    answer = explain(f"run={kv}", "split=test", "outputs=there")
    assert answer.code == 0, answer.err
    lines = ledger.read_text().splitlines()
    assert len(lines) == before + 1
    assert json.loads(lines[-1])["purpose"] == "explain"


FAULTS = {
    "nothing": ([], "run: give a run folder as run=DIR"),
    "both": (["run=x", "runs=[y]"], "run: give a run folder as run=DIR"),
    "no run": (["run=nowhere"], "nowhere: not a run folder"),
    "no runs": (["runs=[nowhere/*]"], "nowhere/*: not a run folder"),
    "outside": (["run=KV", "point=[500,3]"], "point: [500, 3] is outside the slice of "),
    "negative": (["run=KV", "point=[-1,3]"], "point.0: -1 is not allowed"),
    "one number": (["run=KV", "point=[7]"], "point.1: missing"),
    "layer": (["run=KV", "layer=encodr.1.attn"], "did you mean encoder.1.attn?"),
    "case": (["run=KV", "case=case999_day0"], "case: no 'case999_day0' in that split of"),
    "no GPU": (["run=KV", "device=cuda"], "device: no GPU found on this machine"),
    "slice": (["run=KV", "slice=999"], "slice: 999 of "),
    "slice 0": (["run=KV", "slice=0"], "slice: 0 is not allowed"),
    "key": (["run=KV", "pont=[1,2]"], "pont: no such key; did you mean point?"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_requests(explain, kv, fault):
    words, message = FAULTS[fault]
    if fault == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    answer = explain(*(word.replace("run=KV", f"run={kv}") for word in words))
    assert (answer.code, answer.err.count("\n")) == (2, 1), answer.err
    assert message in answer.err


def test_a_run_that_is_not_finished(explain, place, kv):
    path = place / kv / "run.json"
    facts = path.read_text()
    path.write_text(json.dumps({**json.loads(facts), "status": "stopped"}))
    answer = explain(f"run={kv}")
    path.write_text(facts)
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "the run is stopped, not done; train it first" in answer.err


def test_a_model_without_attention(explain, kv, monkeypatch):
    monkeypatch.setattr("attnseg.explain.recording.find_attentions", lambda model: {})
    answer = explain(f"run={kv}")
    assert (answer.code, answer.err.count("\n")) == (2, 1), answer.err
    assert "is of a model without attention" in answer.err


def test_the_temperature_of_each_layer_is_in_history_log_and_table(call, tmp_path):
    options = ("attn=kv_pos", "+attn.mixing_options.init=published", "trainer.ema_decay=0.5")
    trained = call("experiment=smoke", *options, "logger=none")
    assert trained.code == 0, trained.err
    (run,) = (path.parent for path in tmp_path.glob("outputs/*/*/*/*/run.json"))
    best = json.loads((run / "run.json").read_text())["best_epoch"]
    epoch = pd.read_csv(run / "history.csv").set_index("epoch").loc[best]
    weights = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    answer = call(f"run={run}", command=cli.explain)
    assert answer.code == 0, answer.err
    table = pd.read_csv(run / "attention/layers.csv").groupby("layer")["temperature"].first()
    findings = 0
    for layer in (f"encoder.{i}.attn" for i in range(4)):
        wanted = weights[f"model.{layer}.mix.weight"].sum().item()
        assert epoch[f"{layer}/temperature"] == pytest.approx(wanted, abs=1e-6)
        assert table[layer] == pytest.approx(wanted, abs=1e-6)
        for word, true in (("inverted", wanted < 0), ("flat", abs(wanted) < 0.1)):
            findings += true
            for text in (" ".join(said.out.split()) for said in (trained, answer)):
                warned = f"{layer} is {word}: its temperature is {wanted:.2g}," in text
                assert warned == true
    assert findings  # or the test shows nothing
    assert "temperature" in answer.out
