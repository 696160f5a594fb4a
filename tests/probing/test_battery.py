"""Trainings on probes: kept, resumed, given up and within a budget; and the chart of them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from attnseg.commands import probe
from attnseg.config.errors import OptionError
from attnseg.errors import ConfigError
from attnseg.probing import battery, probing
from attnseg.probing.battery import CellStore, make_plan, plan_cells, run_battery
from attnseg.probing.chart import PAGE, write_chart
from attnseg.probing.options import Battery
from attnseg.probing.run import CellResult, run_cell
from attnseg.probing.verdicts import collect_entries, tabulate_entries, tabulate_levels
from tests.probing.subjects import make_cell, make_subject

SHORT = make_plan(make_cell("qkv", "far_place").skeleton, 4)
FACTS = {
    "levels": {}, "curve": [(2, 0.4), (4, 0.4)], "ending": "finished", "evidence_share": 0.2,
    "uniform_share": 0.1, "evidence_layer": "encoder.0.attn", "unnormalised": 0.0, "seconds": 1.0,
}  # fmt: skip


@pytest.fixture
def store(tmp_path):
    return CellStore(tmp_path / "cells")


def facts_of(result):
    return {key: value for key, value in result.facts.items() if key != "seconds"}


def test_a_training_is_repeatable_and_differs_by_seed():
    cells = [make_cell("qkv", "reach", seed, SHORT) for seed in (0, 0, 1)]
    first, again, other = map(run_cell, cells)
    assert facts_of(first) == facts_of(again) != facts_of(other)
    assert first.facts["levels"].keys() == {"1", "2", "3", "5", "7", "10", "13"}
    assert first.facts["ending"] == "finished" and len(first.facts["curve"]) == 1
    assert first.pictures["failure_image"].shape == (64, 16)


def test_pictures_can_be_enlarged_for_models_with_a_longer_reach():
    plain, large = (make_cell("qkv", "far_place", 0, SHORT, enlarge=n) for n in (1, 2))
    shapes = {run_cell(cell).pictures["failure_predicted"].shape for cell in (plain, large)}
    assert shapes == {(32, 32)}  # Scores and pictures are of the probe's own pixels.


def fake_training(monkeypatch, scores, ran):
    """Let trainings end at once, with the score of their attention."""

    def run(cell):
        ran.append((cell.subject.name, cell.seed, cell.may_give_up))
        return CellResult({"score": scores[cell.subject.name], **FACTS}, {})

    monkeypatch.setattr(battery, "run_cell", run)


def plan(seeds):
    subjects = [make_subject(name) for name in ("qkv", "identity")]
    return plan_cells(subjects, ["far_place"], seeds, make_cell("qkv", "far_place", 0, SHORT))


def test_further_seeds_may_give_up_where_the_first_saw_nothing(monkeypatch, store):
    ran = []
    fake_training(monkeypatch, {"qkv": 0.97, "identity": 0.48}, ran)
    cells = run_battery(plan([0, 1]), [0, 1], store, 1, 100)
    assert ran == [
        ("qkv", 0, False),
        ("identity", 0, False),
        ("qkv", 1, False),
        ("identity", 1, True),
    ]
    # The curve of qkv is at chance at half of its steps, and its score is not.
    assert battery.late_learners(cells, 0, store) == (1, 2)
    run_battery(plan([0, 1]), [0, 1], store, 1, 100)
    assert len(ran) == 4  # Nothing is trained twice.
    run_battery(plan([0, 1, 2]), [0, 1, 2], store, 1, 100)
    assert ran[4:] == [("qkv", 2, False), ("identity", 2, True)]
    files = store.folder.glob("*.json")
    broken = next(path for path in files if json.loads(path.read_text())["seed"] == 0)
    broken.write_text(broken.read_text()[:20])
    run_battery(plan([0, 1]), [0, 1], store, 1, 100)
    assert len(ran) == 7


def test_no_training_starts_after_the_budget(monkeypatch, store, caplog):
    ran = []
    fake_training(monkeypatch, {"qkv": 0.97, "identity": 0.48}, ran)
    run_battery(plan([0]), [0], store, 1, -1)
    assert ran == [] and "2 of 2 trainings are missing; the same command goes on" in caplog.text


def test_giving_up_ends_at_half_of_the_steps():
    cell = make_cell("identity", "far_place", 1, make_plan(SHORT, 100), may_give_up=True)
    facts = run_cell(cell).facts
    assert facts["ending"] == "gave up" and facts["curve"][-1][0] == 50


def test_the_key_of_a_training_holds_all_that_it_depends_on(monkeypatch, store):
    cell = make_cell("qkv", "far_place", 0, SHORT)
    model = cell.subject.model.model_copy(update={"mlp_ratio": 3.0})
    others = [
        replace(cell, seed=1), replace(cell, probe="reach"), replace(cell, may_give_up=True),
        replace(cell, precision="bf16-mixed"), replace(cell, skeleton=make_plan(SHORT, 5)),
        replace(cell, subject=make_subject("kv")), replace(cell, enlarge=2),
        replace(cell, subject=replace(cell.subject, model=model)),
    ]  # fmt: skip
    keys = {json.dumps(battery.describe_cell(each), sort_keys=True) for each in [cell, *others]}
    monkeypatch.setattr(battery, "digest_code", lambda: "other")
    keys.add(json.dumps(battery.describe_cell(cell), sort_keys=True))
    assert len(keys) == len(others) + 2


@pytest.mark.full
def test_processes_change_nothing(tmp_path, monkeypatch):
    results = []
    for jobs, method in ((1, "fork"), (2, "fork"), (2, "spawn")):
        monkeypatch.setattr(battery, "START_METHOD", method)
        store = CellStore(tmp_path / f"{jobs} {method}")
        cells = run_battery(plan([0]), [0], store, jobs, 1000)
        results.append([{**store.load(cell), "seconds": 0} for cell in cells])
    assert results[0] == results[1] == results[2]


def test_differences_are_of_pairs_with_the_same_seed(store):
    scores = {("qkv", 0): 0.5, ("qkv", 1): 0.9, ("identity", 0): 0.6, ("identity", 2): 0.3}
    cells = plan([0, 1, 2])
    for cell in cells:
        if (score := scores.get((cell.subject.name, cell.seed))) is not None:
            facts = {**FACTS, "score": score, "levels": {"5": score}}
            store.save(cell, CellResult(facts, {}))
    traits = {name: battery.describe_subject(make_subject(name), "", 32) for name, _ in scores}
    entries = collect_entries(cells, store, traits)
    table = tabulate_entries(entries, traits, "qkv").set_index("attention")
    assert table["difference_from_qkv"]["identity"] == pytest.approx(0.1)
    assert np.isnan(table["difference_margin"]["identity"])  # One pair has no interval.
    levels = tabulate_levels(entries)
    assert {(r.attention, r.seed): r.score for r in levels.itertuples()} == scores


def test_cores_are_counted_where_the_system_does_not_tell_which_are_usable(monkeypatch):
    monkeypatch.delattr(battery.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(battery.os, "cpu_count", lambda: 6)
    assert battery.choose_machine("cpu", None) == ("cpu", 6)
    assert battery.choose_machine("cpu", 3) == ("cpu", 3)


def test_the_chart_says_where_results_are_not_as_predicted(monkeypatch, store, tmp_path):
    scores, ran = {"qkv": 0.97, "identity": 0.9}, []
    fake_training(monkeypatch, scores, ran)
    cells = run_battery(plan([0, 1, 2]), [0, 1, 2], store, 1, 100)
    picture = np.zeros((32, 32), np.uint8)
    shown = {f"success_{kind}": picture for kind in ("image", "labels", "predicted")}
    shown |= {"success_map": picture.astype(np.float16), "success_point": np.array([3, 4])}
    store.save(cells[0], CellResult(store.load(cells[0]), shown))
    traits = {
        name: battery.describe_subject(make_subject(name), f"<b>{name}</b>", 32) for name in scores
    }
    assert traits["qkv"].sees["far_place"] and not traits["identity"].sees["far_place"]
    entries = collect_entries(cells, store, traits)
    write_chart(tmp_path, entries, traits, store, {"command": "attnseg probe <x>"})
    table = (tmp_path / "chart.csv").read_text().splitlines()
    rows = [dict(zip(table[0].split(","), line.split(","), strict=True)) for line in table[1:]]
    assert [(r["verdict"], r["declared"], r["surprise"]) for r in rows] == [
        ("sees", "sees", "False"), ("sees", "blind", "True"),
    ]  # fmt: skip
    assert float(rows[1]["difference_from_qkv"]) == pytest.approx(-0.07)
    assert float(rows[0]["margin"]) == pytest.approx(0, abs=1e-9)
    page = (tmp_path / PAGE).read_text()
    assert "identity was predicted to be blind to far_place and scores 0.90 ±0.00" in page
    assert "&lt;b&gt;qkv&lt;/b&gt;" in page and "<b>qkv" not in page and "probe &lt;x&gt;" in page
    assert page.count("data:image/png;base64,") == 2
    assert "looks 2.0x" in page and "Predicted: sees far_place" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert (tmp_path / "chart.png").stat().st_size > 5000


def make_battery(**options):
    common = {
        "attn": "all", "probes": ["all"], "seeds": 3, "budget": "15min", "jobs": None,
        "device": None, "precision": "32", "enlarge": 1, "steps": None, "scaled": {},
    }  # fmt: skip
    return Battery.model_validate({**common, **options})


def test_durations_seeds_and_names():
    assert make_battery().budget == 900 and make_battery().seeds == [0, 1, 2]
    assert [make_battery(budget=b).budget for b in ("90s", "1.5h", 20)] == [90, 5400, 20]
    assert make_battery(seeds=[4, 7]).seeds == [4, 7] and make_battery(attn="kv").attn == ["kv"]
    for wrong in ("15 minutes", "0s", "-3min", "min"):
        with pytest.raises((ValueError, OptionError), match=r"is no duration|greater than 0"):
            make_battery(budget=wrong)
    with pytest.raises(ConfigError, match="probes: no 'far_plase'; did you mean far_place"):
        probing.choose_probes(["far_plase"])


def test_short_options_of_the_command():
    typed = ["attn=qkv,kv", "probes=[reach]", "budget=2h", "seeds=5", "match=macs", "model=cvt"]
    assert probe.to_options(typed) == [
        "probe.attn=[qkv,kv]", "probe.probes=[reach]", "probe.budget=2h", "probe.seeds=5",
        "model.match=macs", "model=cvt",
    ]  # fmt: skip
