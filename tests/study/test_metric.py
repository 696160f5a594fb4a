"""The compared metric, as stated by metrics.json or, for version 0.1.0, by its name."""

import importlib
import json
import pkgutil

import pytest

from attnseg.errors import ConfigError
from attnseg.metrics import profiles
from attnseg.metrics.profiles.profile import Profile
from attnseg.metrics.profiles.strict import Strict
from attnseg.runs.variants import open_finished_runs
from attnseg.study.metric import BEST_AT_ZERO, LOWER_IS_BETTER, choose_metric, state_by_name
from tests.study.folders import PROFILE, make_run

DICE = {"p": 0.8}


def test_metric(tmp_path):
    def chosen(metric, wanted=None, profile=PROFILE):
        folder = make_run(tmp_path, "kv", DICE, name=metric + profile["name"], metric=metric,
                          profile=profile)  # fmt: skip
        return choose_metric(open_finished_runs([folder])[0], "test", wanted)

    dice, far = chosen("dice"), chosen("hd95_mm")
    assert (dice.label, dice.unit, dice.up, dice.text(0.12345)) == ("Dice", "Dice", True, "0.1235")
    assert (far.label, far.unit, far.up, far.text(1.234)) == ("HD95 (mm)", "mm", False, "1.23")
    assert chosen("nsd").label == "NSD (3 mm)"
    with pytest.raises(ConfigError, match="does not score nsd case by case; choose one of jaccard"):
        chosen("jaccard", "nsd")
    with pytest.raises(ConfigError, match="volume_error is best at 0"):
        chosen("volume_error")


def test_directions_by_name_are_those_of_the_profiles():
    for module in pkgutil.iter_modules(profiles.__path__):
        importlib.import_module(f"attnseg.metrics.profiles.{module.name}")
    found = [(m.name, m.up) for profile in Profile.__subclasses__() for m in profile.metrics]
    assert len(found) > 20
    for name, up in found:
        assert up is (None if name in BEST_AT_ZERO else name not in LOWER_IS_BETTER), name


def write_facts(folder, **facts):
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["profile"] = {**PROFILE, "metrics": facts}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return open_finished_runs([folder])[0]


def test_what_metrics_json_states_counts_more_than_the_name(tmp_path):
    folder = make_run(tmp_path, "kv", DICE, metric="hd95_mm")
    stated = {"label": "depth (m)", "unit": "m", "up": True, "digits": 1}
    depth = choose_metric(write_facts(folder, hd95_mm=stated), "test", None)
    assert (depth.label, depth.unit, depth.up, depth.text(1.26)) == ("depth (m)", "m", True, "1.3")
    with pytest.raises(ConfigError, match="hd95_mm is best at 0"):
        choose_metric(write_facts(folder, hd95_mm={**stated, "up": None}), "test", None)
    # A metric that metrics.json does not state is judged by its name.
    assert choose_metric(write_facts(folder, dice=stated), "test", None).label == "HD95 (mm)"


def test_the_worst_value_is_the_bound_if_there_is_one(tmp_path):
    folder = make_run(tmp_path, "kv", DICE, metric="hd95_mm")
    share = {"label": "error", "unit": "", "up": False, "digits": 4}

    def find_worst(**facts):
        return choose_metric(write_facts(folder, hd95_mm={**share, **facts}), "test", None).worst

    assert (find_worst(), find_worst(up=True), find_worst(unit="mm")) == (1, 0, None)
    assert (find_worst(bounds=[0.0, None]), find_worst(bounds=[0.0, 3.0])) == (None, 3)


def test_profiles_state_what_the_names_of_version_0_1_0_say():
    profile = Strict(nsd_tolerance_mm=3)
    described = profile.describe()["metrics"]
    assert set(described) == {metric.name for metric in profile.metrics}
    for name, facts in described.items():
        by_name = state_by_name(name, profile.describe())
        assert {**facts, "label": ""} == {**by_name, "label": ""}, name
    for name in ("dice", "jaccard", "weighted_jaccard", "nsd", "hd95_mm", "hd_mm", "assd_mm"):
        assert described[name]["label"] == state_by_name(name, profile.describe())["label"]
