"""What each profile makes of empty masks, against the stacks that they are named after."""

import importlib.util
import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric
from scipy import stats

from attnseg.metrics.intervals import interval_of_average, leave_out_patients
from attnseg.metrics.profiles.detailed import Detailed
from attnseg.metrics.profiles.isic import ISIC
from attnseg.metrics.profiles.isic_pooled import ISICPooled
from attnseg.metrics.profiles.monai import MONAI
from attnseg.metrics.profiles.nnunet import NNUNet
from attnseg.metrics.profiles.profile import VOLUMES, Profile
from attnseg.metrics.profiles.strict import Strict
from attnseg.metrics.profiles.transunet import TransUNet
from attnseg.metrics.profiles.uw_madison import UWMadison

NAN = float("nan")
SHAPE, SPACING = (4, 10, 12), (3.0, 1.0, 2.0)
DIAGONAL = math.sqrt(12**2 + 10**2 + 24**2)
EMPTY = np.zeros(SHAPE, bool)
ORGAN = EMPTY.copy()
ORGAN[1:3, 2:6, 3:8] = True
STATES = {
    "both": (ORGAN, ORGAN), "missed": (ORGAN, EMPTY), "spurious": (EMPTY, ORGAN),
    "neither": (EMPTY, EMPTY),
}  # fmt: skip
# Dice, HD95, NSD in each state: of transunet, nnunet as their code has it, of monai as it runs.
TABLE = {
    "strict": [(1, 0, 1), (0, DIAGONAL, 0), (0, DIAGONAL, 0), (NAN, NAN, NAN)],
    "transunet": [(1, 0, None), (0, 0, None), (1, 0, None), (0, 0, None)],
    "monai": [(1, 0, 1), (0, NAN, 0), (NAN, NAN, 0), (NAN, NAN, NAN)],
    "nnunet": [(1, None, None), (0, None, None), (0, None, None), (NAN, None, None)],
    "isic": [(1, None, None), (0, None, None), (0, None, None), (NAN, None, None)],
}
PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Strict(),
        TransUNet(),
        MONAI(),
        NNUNet(),
        ISIC(),
        ISICPooled(),
        UWMadison(),
        Detailed(),
    )
}


def test_truth_table():
    wrong = []
    for name, (at, state) in product(TABLE, enumerate(STATES)):
        scores = PROFILES[name].score(*STATES[state], SPACING)
        quantities = {k.removesuffix("_mm").removesuffix("_voxels"): v for k, v in scores.items()}
        found = [quantities.get(metric) for metric in ("dice", "hd95", "nsd")]
        if found != [pytest.approx(v, nan_ok=True) for v in TABLE[name][at]]:
            wrong.append((name, state, found))
    assert not wrong


def test_the_page_has_the_truth_table():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for name, states in TABLE.items():
        cells = []
        for values in states:
            numbers = [v for v in values if v is not None]
            words = ["-" if math.isnan(v) else f"{v:g}" for v in numbers]
            cells.append(", ".join(words).replace(f"{DIAGONAL:g}", "diagonal"))
        assert f"| `{name}` | {' | '.join(cells)} |" in page


@pytest.mark.parametrize("state", STATES)
def test_monai_profile_is_monai(state):
    truth, prediction = (torch.from_numpy(m[None, None]).float() for m in STATES[state])
    scores = MONAI().score(*STATES[state], SPACING)
    metrics = {
        "dice": DiceMetric(),
        "hd95_mm": HausdorffDistanceMetric(include_background=True, percentile=95),
        "nsd": SurfaceDiceMetric([3.0], include_background=True),
    }
    for name, metric in metrics.items():
        options = {} if name == "dice" else {"spacing": SPACING}
        theirs = metric(prediction, truth, **options).item()
        assert scores[name] == pytest.approx(theirs, nan_ok=True)


def blob(rng, shape):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(rng.standard_normal(shape), 1.5) > 0.1


def test_monai_profile_averages_as_monai():
    rng = np.random.default_rng(0)
    cases = [(blob(rng, (2, *SHAPE)), blob(rng, (2, *SHAPE))) for _ in range(4)]
    cases[0][0][1], cases[1][1][0], cases[2][0][:] = False, False, False
    ours = summarised(MONAI(), cases)
    theirs = {
        "dice": DiceMetric(),
        "hd95_mm": HausdorffDistanceMetric(include_background=True, percentile=95),
        "nsd": SurfaceDiceMetric([3.0, 3.0], include_background=True),
    }
    for name, metric in theirs.items():
        for truth, prediction in cases:
            pair = (torch.from_numpy(m[None]).float() for m in (prediction, truth))
            metric(*pair, **({} if name == "dice" else {"spacing": SPACING}))
        assert ours.loc["mean", name] == pytest.approx(metric.aggregate().item(), abs=1e-5)


def rows(profile, cases, names=("a", "b"), patients=None):
    found = []
    for number, (truth, prediction) in enumerate(cases):
        patient = patients[number] if patients else f"p{number}"
        scores = profile.score_case(truth, prediction, SPACING, names)
        found += [(patient, f"c{number}", *score) for score in scores]
    return pd.DataFrame(found, columns=["patient", "case", "class", "metric", "value"])


def summarised(profile, cases, **options):
    return profile.summarise(rows(profile, cases, **options))


def mixture():
    """Four cases of two classes: perfect; missed; spurious; and one empty, one half right."""
    half = ORGAN.copy()
    half[1] = False
    right = (ORGAN, ORGAN)
    pairs = [[right, right], [(ORGAN, EMPTY), right], [(EMPTY, ORGAN), right]]
    pairs.append([(EMPTY, EMPTY), (ORGAN, half)])
    return [tuple(np.stack(masks) for masks in zip(*case, strict=True)) for case in pairs]


def test_counts_of_what_is_undefined_missed_and_spurious():
    table = summarised(Strict(), mixture())
    assert table.loc["a", ["cases", "undefined", "missed", "spurious"]].tolist() == [4, 1, 1, 1]
    assert table.loc["b", ["cases", "undefined", "missed", "spurious"]].tolist() == [4, 0, 0, 0]
    assert table.loc["mean", ["undefined", "missed", "spurious"]].tolist() == [1, 1, 1]


def test_means_by_hand():
    expected = {
        "strict": (1 / 3, (1 + 1 + 1 + 2 / 3) / 4),
        "transunet": (2 / 4, (3 + 2 / 3) / 4),
        "nnunet": (1 / 3, (3 + 2 / 3) / 4),
    }
    for name, (a, b) in expected.items():
        table = summarised(PROFILES[name], mixture())
        assert table["dice"].tolist() == pytest.approx([a, b, (a + b) / 2])
    # MONAI: the spurious organ is left out, and cases are averaged first.
    table = summarised(MONAI(), mixture())
    assert table["dice"].tolist() == pytest.approx(
        [1 / 2, (3 + 2 / 3) / 4, (1 + 0.5 + 1 + 2 / 3) / 4]
    )


def test_weighted_jaccard_by_hand():
    """Class a: 2 cases of 40 voxels, Jaccard 1, 0, 0; class b: 160 voxels, 1, 1, 1, 0.5."""
    a, b = 1 / 3, 3.5 / 4
    table = summarised(Strict(), mixture())
    assert table.loc["mean", "weighted_jaccard"] == pytest.approx((80 * a + 160 * b) / 240)
    assert math.isnan(table.loc["a", "weighted_jaccard"])


def test_pooled_counts_by_hand():
    table = summarised(ISICPooled(), mixture())
    size = EMPTY.size
    tp, fp, fn = 40, 40, 40  # of class a
    assert table.loc["a", "dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert table.loc["a", "sensitivity"] == pytest.approx(0.5)
    assert table.loc["a", "specificity"] == pytest.approx((4 * size - 120) / (4 * size - 80))
    assert table.loc["a", "accuracy"] == pytest.approx(1 - 80 / (4 * size))


def test_thresholded_jaccard():
    half = ORGAN.copy()
    half[1] = False
    more = np.roll(ORGAN, 1, 2)
    scores = [ISIC().score(ORGAN, other, None) for other in (ORGAN, half, more)]
    assert [s["jaccard"] for s in scores] == pytest.approx([1, 0.5, 32 / 48])
    assert [s["thresholded_jaccard"] for s in scores] == pytest.approx([1, 0, 32 / 48])


def test_competition_score_by_hand():
    """Two slices of four differ: the Hausdorff distance is one slice of four, over sqrt(3)."""
    half = ORGAN.copy()
    half[1] = False
    table = summarised(UWMadison(), [(ORGAN[None], half[None])], names=("a",))
    assert (
        table.loc["mean", "dice"] == 0.5
    )  # slice 1 scores 0, slice 2 scores 1, others are left out
    assert table.loc["mean", "hausdorff"] == pytest.approx(0.25 / math.sqrt(3))
    assert table.loc["mean", "score"] == pytest.approx(0.4 * 0.5 + 0.6 * (1 - 0.25 / math.sqrt(3)))


@pytest.mark.parametrize(
    ("truth", "prediction", "far"),
    [(EMPTY, EMPTY, NAN), (ORGAN, EMPTY, 1), (EMPTY, ORGAN, 1), (ORGAN, ORGAN, 0)],
)
def test_competition_hausdorff_of_empty_masks(truth, prediction, far):
    assert UWMadison().hausdorff(truth, prediction) == pytest.approx(far, nan_ok=True)


def test_a_prediction_ten_times_too_large_is_as_far_as_can_be():
    point = EMPTY.copy()
    point[1, 3, 4] = True
    assert UWMadison().hausdorff(point, np.roll(point, 1, 2)) < 0.1
    assert UWMadison().hausdorff(point, ORGAN) == 1


@pytest.mark.parametrize("name", PROFILES)
def test_intervals_hold_the_mean_and_shrink_with_patients(name):
    rng = np.random.default_rng(1)
    cases = [(blob(rng, (2, *SHAPE)), blob(rng, (2, *SHAPE))) for _ in range(12)]
    profile = PROFILES[name]
    metric = next(m.name for m in profile.metrics if m.name in ("score", "dice"))
    widths = []
    for repeats in (1, 4):
        frame = pd.concat(
            rows(profile, cases).assign(
                case=lambda f, n=n: f["case"] + f"-{n}",
                patient=lambda f, n=n: f["patient"] + f"-{n}",
            )
            for n in range(repeats)
        )
        mean = profile.summarise(frame).loc["mean"]
        assert mean[f"{metric}_low"] < mean[metric] < mean[f"{metric}_high"]
        widths.append(mean[f"{metric}_high"] - mean[f"{metric}_low"])
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.25)


def test_intervals_leave_out_patients_not_cases():
    weights = leave_out_patients(["b", "b", "a", "c"])
    assert weights.tolist() == [[1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]]
    assert leave_out_patients(["a", "b"]).tolist() == [[1, 1]]
    for patients in (["p"] * 4, ["p", "p", "q", "q"]):
        assert "dice_low" not in summarised(Strict(), mixture(), patients=patients)


def test_interval_of_an_average_by_hand():
    """Student's interval of the logit, which stays a share; of the logarithm; of the number."""
    values = np.array([0.7, 0.8, 0.9, 0.96])
    n, mean = len(values), values.mean()
    without = [np.delete(values, i).mean() for i in range(n)]
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
    averages = np.array([mean, *without])
    free = interval_of_average(averages, n)
    assert free == pytest.approx((mean - half, mean + half))
    shared = interval_of_average(averages, n, (0.0, 1.0))
    logits = [math.log(end / (1 - end)) - math.log(mean / (1 - mean)) for end in shared]
    assert logits == pytest.approx([s * half / (mean * (1 - mean)) for s in (-1, 1)])
    positive = interval_of_average(averages, n, (0.0, math.inf))
    assert [math.log(end / mean) for end in positive] == pytest.approx([-half / mean, half / mean])


def test_equal_patients_do_not_prove_that_all_are_equal():
    """Of six patients without an error, none tells of those that were not seen."""
    low, high = interval_of_average(np.ones(7), 6, (0.0, 1.0))
    assert (low, high) == pytest.approx((stats.beta.ppf(0.025, 6, 1), 1))
    assert all(map(math.isnan, interval_of_average(np.ones(7), 6, (0.0, math.inf))))
    assert all(map(math.isnan, interval_of_average(np.array([0.5, 0.4, 0.6]), 2, (0.0, 1.0))))


@pytest.mark.full
@pytest.mark.parametrize("patients", [3, 6, 10, 20, 60])
def test_intervals_of_a_run_cover_what_is_stated(patients):
    """Dice with a long tail to the left: the logistic of a normal variable."""
    rng = np.random.default_rng(patients)
    truth = float((1 / (1 + np.exp(-rng.normal(2.2, 0.8, 10**6)))).mean())
    hits = []
    for _ in range(1000):
        values = 1 / (1 + np.exp(-rng.normal(2.2, 0.8, patients)))
        averages = leave_out_patients(list(map(str, range(patients)))) @ values
        averages /= np.array([patients, *[patients - 1] * patients])
        low, high = interval_of_average(averages, patients, (0.0, 1.0))
        hits.append(low <= truth <= high)
    assert 0.91 <= np.mean(hits) <= 0.975


def test_interval_of_a_mean_agrees_with_theory():
    rng = np.random.default_rng(0)
    values = rng.normal(0.7, 0.1, 60)
    frame = pd.DataFrame(
        [(f"p{i}", f"c{i}", "a", m, v) for i, v in enumerate(values)
         for m, v in (("dice", v), ("jaccard", v), *((n, 1.0) for n in VOLUMES))],
        columns=["patient", "case", "class", "metric", "value"],
    )  # fmt: skip
    mean = NNUNet().summarise(frame).loc["a"]
    error = 1.96 * values.std() / math.sqrt(60)
    assert mean["dice_high"] - mean["dice"] == pytest.approx(error, rel=0.15)
    assert mean["dice"] - mean["dice_low"] == pytest.approx(error, rel=0.15)


def test_profiles_say_what_they_do():
    assert len({profile.digest for profile in PROFILES.values()}) == len(PROFILES)
    assert Strict().digest != Strict(nsd_tolerance_mm=2).digest
    needed = {"name", "digest", "version", "unit", "missed", "spurious", "both_empty", "metrics"}
    wrong = []
    for name, profile in PROFILES.items():
        described = profile.describe()
        wrong += [(name, key) for key in needed - set(described)]
        if described["metrics"].keys() != {metric.name for metric in profile.metrics}:
            wrong.append((name, described["metrics"]))
        for metric in profile.metrics:
            label = profile.label(metric)
            far = metric.name.startswith(("hd", "assd", "nsd"))
            if "{" in label or (far and "mm" not in label and "voxels" not in label):
                wrong.append((name, label))
            digits = 2 if metric.unit else 4
            facts = {"label": label, "unit": metric.unit, "up": metric.up, "digits": digits}
            facts["silent"] = {True: 1.0, False: 0.0, None: None}[metric.up]
            if metric.limits is not None:
                ends = [None if math.isinf(end) else end for end in metric.limits]
                facts["bounds"] = ends
            if described["metrics"][metric.name] != facts:
                wrong.append((name, facts))
            if metric.unit and not metric.name.endswith(f"_{metric.unit}"):
                wrong.append((name, metric))
    assert not wrong


def test_directions_and_units_by_hand():
    metrics = Strict().describe()["metrics"]
    assert metrics["hd95_mm"] == {
        "label": "HD95 (mm)", "unit": "mm", "up": False, "digits": 2, "silent": 0.0,
    }  # fmt: skip
    dice = {"label": "Dice", "unit": "", "up": True, "digits": 4, "silent": 1.0}
    assert metrics["dice"] == dice
    assert metrics["volume_error"]["up"] is None  # 0 is best
    assert TransUNet().describe()["metrics"]["hd95_voxels"]["unit"] == "voxels"
    assert {name for name, facts in metrics.items() if facts["up"] is False} == {
        "hd95_mm", "hd_mm", "assd_mm", "ece", "brier",
    }  # fmt: skip


def test_missed_organs_help_transunet_and_hurt_strict():
    path = Path(__file__).parents[2] / "scripts" / "plot_missed_organs.py"
    spec = importlib.util.spec_from_file_location("plot_missed_organs", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    table = script.means()
    hd95 = {name: found["HD95"].tolist() for name, found in table.groupby("profile")}
    assert hd95["strict"] == sorted(hd95["strict"])
    assert hd95["strict"][-1] > 5 * hd95["strict"][0]
    assert hd95["transunet"] == sorted(hd95["transunet"], reverse=True)
    assert hd95["transunet"][-1] < 0.9 * hd95["transunet"][0]
    assert max(hd95["monai"]) < 1.1 * min(hd95["monai"])


def test_an_error_in_one_class_is_raised():
    class Broken(Strict):
        def score(self, truth, prediction, spacing):
            raise ValueError("broken")

    masks = np.ones((2, 1, 2, 2), bool)
    with pytest.raises(ValueError, match="broken"):
        Broken().score_case(masks, masks, (1.0, 1.0, 1.0), ["a", "b"])
    with pytest.raises(ValueError, match="longer"):  # Masks without a name are not left out.
        Strict().score_case(masks, masks, (1.0, 1.0, 1.0), ["a"])
