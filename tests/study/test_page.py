"""The comparison's page: what it says, what it must not do, what it takes from run folders."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from attnseg import cli
from attnseg.runs.variants import group_by_variant, open_finished_runs
from attnseg.study import cases, figures, page
from attnseg.study.compare import compare_runs
from attnseg.study.contrasts import Decision, contrast_family
from attnseg.study.metric import ComparedMetric
from attnseg.study.verdict import failure_text, write_headline
from attnseg.study.wording import interval_text
from tests.study.folders import PROFILE, add_pictures, disc_masks, make_pair, make_run

DICE = ComparedMetric("dice", "Dice", up=True, unit="Dice")
HD95 = ComparedMetric("hd95_mm", "HD95 (mm)", up=False, unit="mm", digits=2)
BY = ("model", "attn")


def values(seed=0, shift=0.0, patients=8, classes=("liver", "duct")):
    rng = np.random.default_rng(seed)
    return {
        (f"p{i}", f"p{i}_day0", name): 0.8 + shift + 0.02 * rng.normal()
        for i in range(patients)
        for name in classes
    }


def made(tmp_path, **options):
    """Compare what is in `tmp_path/runs`; return the page."""
    compare_runs([f"{tmp_path}/runs/*/*"], outputs=tmp_path / "out", **options)
    return (tmp_path / "out" / "comparison.html").read_text()


class Reader(HTMLParser):
    """Gathers what a page holds."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.inside, self.stack = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "br", "input"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        tag = self.stack[-1] if self.stack else ""
        self.inside[tag] = self.inside.get(tag, "") + data


def embedded(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found[1])


@pytest.fixture
def runs(tmp_path):
    for at, attn in enumerate(("qkv", "kv", "kv_pos")):
        for seed in (0, 1):
            drop = -0.2 * (attn == "kv")
            folder = make_run(tmp_path / "runs", attn, values(9 * at + seed, drop), seed=seed)
            add_pictures(folder, shift=2 * at)
    return tmp_path


def test_the_page_says_what_the_tables_say(runs):
    text = made(runs)
    read = Reader(text)
    assert read.stack == []
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))
    assert "kv is worse than qkv" in read.inside["h1"]
    explained = said.index("The main verdict: what to expect if both are trained again")
    failure = (
        "if Dice is lower than under qkv by at least half of what a total failure (0) would cost"
    )
    assert explained < said.index(failure) < said.index("kv is worse than qkv by", explained)
    assert read.inside["caption"].count("strict (94e58393)") >= 4
    bold = [
        float(value.replace("\N{MINUS SIGN}", "-")) for value in re.findall("<b>(.+?)</b>", text)
    ]
    against = pd.read_csv(runs / "out" / "against.csv").set_index("variant")
    assert against["different"].to_dict() == {"kv": True, "kv_pos": False}
    assert round(against.loc["kv", "difference"], 4) in bold
    assert round(against.loc["kv_pos", "difference"], 4) not in bold
    for word in ("c0ffeec0ff", "attnseg 0.1.0", "train.py attn=kv", "opened 3 times", "8 patients"):
        assert word in said, word
    report = said[said.index("Reporting a comparison") :]
    for word in (
        "qkv, kv, kv_pos were trained",
        "kv is worse than qkv",
        "corrected for 2",
        "doubt:",
    ):
        assert word in report, word
    keys = re.findall(r'<th scope="row"><code>(.+?)</code>', text)
    assert sorted(keys) == ["attn.name", "seed"]
    assert "&lt;" not in text.split("<script", 1)[0]  # figures are elements, not text
    titles = re.findall("<g><title>([^<]+)</title>", text)
    learning = [f"{v}, {of}" for v in ("qkv", "kv", "kv_pos") for of in ("a run", "mean of 2 runs")]
    assert {title: titles.count(title) for title in learning} == {
        title: 2 * (2 if title.endswith("a run") else 1) for title in learning
    }
    assert titles.count("Pareto front") == 1
    difference = f"{against.loc['kv', 'difference']:.4f}"
    about = {
        "attention": "this attention, other trainings",
        "networks": "these networks, other patients",
    }
    for claim, unit in about.items():
        ends = against.loc["kv", [f"{claim}_simultaneous_{end}" for end in ("low", "high")]]
        interval = " to ".join(f"{end:.4f}" for end in ends)
        shown = f"kv, {unit}: {difference}, corrected interval {interval}"
        assert titles.count(shown) == 2  # the interval and the point
        ends = against.loc["kv", [f"{claim}_equivalence_{end}" for end in ("low", "high")]]
        deciding = " to ".join(f"{end:.4f}" for end in ends)
        assert f"kv, {unit}: 90 % interval of equivalence {deciding}" in titles
        assert interval in said.replace("\N{MINUS SIGN}", "-")
        assert deciding in said.replace("\N{MINUS SIGN}", "-")
    paired = re.findall(r"kv: 8 patients, from (\S+) to (\S+)", " ".join(titles))
    assert [float(lowest) < float(difference) < float(highest) for lowest, highest in paired] == [
        True
    ]
    assert sum(title.startswith("kv, seed 0: 0.") for title in titles) == 1
    assert all("scope" in a for t, a in read.tags if t == "th")


def test_nothing_from_elsewhere(runs):
    text = made(runs)
    read = Reader(text)
    policy = next(a["content"] for t, a in read.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    css, script = (re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S) for tag in ("style", "script"))
    assert page.security_policy(css[0], script[0]) == policy  # else the browser refuses both
    for _, attributes in read.tags:
        assert not {key for key in attributes if key.startswith("on") or key in ("src", "style")}
        assert attributes.get("href", "#").startswith(("#", "data:"))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "@import" not in css[0]
    assert "url(" not in css[0]


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{7*7}}"


def test_names_are_text_and_nothing_else(tmp_path):
    rows = {(f"{EVIL}{i}", f"c{i}{EVIL}", EVIL): 0.5 + 0.01 * i for i in range(3)}
    for attn in ("qkv", "kv"):
        folder = make_run(
            tmp_path / "runs",
            attn,
            {key: value for key, value in rows.items()},
            profile={**PROFILE, "name": EVIL},
            watermark=EVIL,
            config={"model": {"size": f"{attn}{EVIL}"}},
            model=f"{attn}{EVIL}",
        )
        facts = json.loads((folder / "run.json").read_text())
        facts |= {"command": [EVIL], "versions": {EVIL: EVIL}, "started": EVIL}
        (folder / "run.json").write_text(json.dumps(facts))
        # pandas reads the quotes of a CSV file; write it as pandas does.
        columns = ["split", "patient", "case", "class", "metric", "value", "profile"]
        table = [("test", *key, "dice", value, EVIL) for key, value in rows.items()]
        pd.DataFrame(table, columns=columns).to_csv(folder / "cases.csv", index=False)
        add_index(folder, rows)
    text = made(tmp_path, by=["model.size"], baseline=f"qkv{EVIL}")
    read = Reader(text)
    assert sum(t == "script" for t, _ in read.tags) == 2
    assert not any(t == "img" for t, _ in read.tags)
    assert (text.count("<script"), text.count("<img")) == (2, 0)
    assert "49" not in read.inside["h1"]
    assert embedded(text)["classes"] == [EVIL]


def add_index(folder, rows):
    """Write an index that names files outside its folder."""
    (folder / "pictures").mkdir()
    Image.new("L", (9, 9)).save(folder / "secret-image.jpg")
    Image.new("L", (9, 9)).save(folder / "secret-truth.png")
    entries = [
        {"case": case, "patient": p, "of": 1, "slices": [{"slice": 1, "name": "../secret"}]}
        for p, case, _ in rows
    ]
    index = {"split": "test", "classes": [EVIL], "overlapping": False, "cases": entries}
    (folder / "pictures" / "index.json").write_text(json.dumps(index))


def test_files_outside_a_run_are_not_taken_in(tmp_path):
    rows = {("p", f"c{i}", EVIL): 0.5 for i in range(2)}
    for attn in ("qkv", "kv"):
        folder = make_run(tmp_path / "runs", attn, {("p", f"c{i}", "a"): 0.5 for i in range(2)})
        add_index(folder, rows)
    found = embedded(made(tmp_path))["cases"]
    assert [case["slices"] for case in found] == [[], []]


def unpacked(text, shape):
    pairs = np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 2)
    return np.repeat(pairs[:, 0], pairs[:, 1]).reshape(shape)


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_give_the_mask_back(seed):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 3, (37, 41), np.uint8) * (rng.random((37, 41)) < 0.1 * seed)
    mask[3:20] = 7  # longer than a byte counts
    assert (unpacked(cases.encode_mask(mask.astype(np.uint8)), mask.shape) == mask).all()
    assert len(cases.encode_mask(np.zeros((256, 256), np.uint8))) < 700


def test_cases_show_every_variants_own_picture_and_score(runs):
    data = embedded(made(runs))
    assert data["variants"] == ["qkv", "kv", "kv_pos"]
    assert (data["classes"], data["overlapping"]) == (["liver", "duct"], True)
    assert len(data["cases"]) == 8
    case = next(c for c in data["cases"] if c["case"] == "p3_day0")
    by_seed = [values(seed) for seed in (0, 1)]
    liver, duct = (
        np.mean([v["p3", "p3_day0", name] for v in by_seed]) for name in ("liver", "duct")
    )
    assert case["scores"][0] == pytest.approx([(liver + duct) / 2, liver, duct], abs=1e-6)
    first = by_seed[0]
    assert case["shown"][0]["score"] == pytest.approx(
        np.mean([first["p3", "p3_day0", name] for name in ("liver", "duct")]), abs=1e-6
    )
    assert case["shown"][0]["seed"] == 0
    means = [row[0] for row in case["scores"]]
    assert case["spread"] == pytest.approx(max(means) - min(means), abs=2e-6)
    assert case["worst"] == min(means)
    assert [s["slice"] for s in case["slices"]] == [2, 5]
    shown = case["slices"][0]
    for variant, mask in enumerate(shown["masks"]):
        wanted = disc_masks((48, 64), ["liver", "duct"], 3, 2 * variant, True)
        assert (unpacked(mask, (48, 64)) == wanted).all()
    assert base64.b64decode(shown["image"])[:2] == b"\xff\xd8"


def test_so_many_cases_and_no_more(runs):
    text = made(runs, cases=3)
    assert len(embedded(text)["cases"]) == 3
    assert "3 of 8 cases are on this page" in text
    means = cases.tabulate_cases(
        group_by_variant(open_finished_runs(sorted((runs / "runs").glob("*/*"))), BY),
        "test",
        "dice",
    )
    by_hand = pd.DataFrame({"a": [0.9, 0.1, 0.5, 0.8], "b": [0.9, 0.1, 0.9, 0.9]})
    assert cases.select_telling_cases(by_hand, DICE, 3) == [2, 1, 3]
    assert cases.select_telling_cases(by_hand, HD95, 2) == [2, 0]
    assert len(means) == 8


def test_runs_without_pictures_or_history_compare(tmp_path):
    for seed, attn in enumerate(("qkv", "kv")):
        make_run(tmp_path / "runs", attn, values(seed))
    text = made(tmp_path)
    assert "kept no pictures of test cases" in text
    assert "kept no history" in text
    assert all(case["slices"] == [] for case in embedded(text)["cases"])


def test_broken_and_missing_pictures_leave_a_gap(runs):
    pictures = runs / "runs" / "kv" / "0" / "pictures"
    (pictures / "0003-0001-prediction.png").write_bytes(b"no picture")
    (runs / "runs" / "kv_pos" / "0" / "pictures" / "index.json").write_text("[]")
    case = next(c for c in embedded(made(runs))["cases"] if c["case"] == "p3_day0")
    assert [mask is None for mask in case["slices"][0]["masks"]] == [False, True, False]
    assert case["shown"][2]["seed"] == 1


def test_pictures_of_another_split_are_not_shown(tmp_path):
    for seed, attn in enumerate(("qkv", "kv")):
        add_pictures(make_run(tmp_path / "runs", attn, values(seed), split="val"))
    text = made(tmp_path, split="val")
    assert "kept no pictures of val cases" in text


def test_undefined_scores_are_neither_best_nor_worst(tmp_path):
    own = values()
    own["p1", "p1_day0", "duct"] = own["p1", "p1_day0", "liver"] = float("nan")
    for attn, found in (("qkv", values()), ("kv", own)):
        make_run(tmp_path / "runs", attn, found)
    data = embedded(made(tmp_path))
    case = next(c for c in data["cases"] if c["case"] == "p1_day0")
    assert case["scores"][1] == [None, None, None]
    assert case["spread"] == 0


def test_a_watermark_stands_on_every_table(tmp_path):
    for seed, attn in enumerate(("qkv", "kv")):
        add_pictures(make_run(tmp_path / "runs", attn, values(seed), watermark="WATCHED: look"))
    text = made(tmp_path)
    assert text.count("WATCHED: look") >= 1 + 4 + 1 + 1  # head, tables, classes, cases
    assert "watched test Dice" in text


def test_tints_begin_at_the_margin():
    tints = [page._tint(d, True, 0.01) for d in (0.0099, 0.01, 0.02, 0.0399, 0.04, 0.5, -0.011)]
    assert tints == ["even", "better-1", "better-2", "better-2", "better-3", "better-4", "worse-1"]
    assert page._tint(-2.0, False, 1.0) == "better-2"
    assert page._tint(float("nan"), True, 0.01) == "even"


def test_headline_claims_no_more_than_the_verdicts():
    rng = np.random.default_rng(0)
    shifts = {"a": -0.05, "b": 0.05, "c": 0.0, "d": 0.003}
    noise = {"a": 0.01, "b": 0.01, "c": 0.4, "d": 0.002}
    pairs = [make_pair(n, rng.normal(shifts[n], noise[n], 600)) for n in shifts]
    found = contrast_family(pairs, Decision(0.01))

    def headline(contrasts, metric=DICE):
        """Return the headline with `#` for each difference."""
        return re.sub(r"-?\d\.\d\d\d*", "#", write_headline(contrasts, "qkv", metric, 0.01))

    sample = "On 600 patients of one split, 3 seeds each:"
    assert headline(found) == (
        f"{sample} a is worse than qkv by # Dice; b is better than qkv by # Dice; no difference "
        "from qkv is shown for c (#); d is better than qkv by # Dice, though within # Dice."
    )
    assert f"by {-found[0].difference:.4f} Dice" in write_headline(found, "qkv", DICE, 0.01)
    assert headline(found[2:3]) == f"{sample} no difference from qkv is shown for c (#)."
    closer = contrast_family(pairs[:1], Decision(0.01, up=False, worst=None))
    assert headline(closer, HD95) == f"{sample} a is better than qkv by # mm."
    many = [make_pair(str(n), rng.normal(-0.05, 0.01, 60 - n)) for n in range(5)]
    assert headline(contrast_family(many, Decision(0.01))) == (
        "On 56 to 60 patients of one split, 3 seeds each: 5 variants are worse than qkv by # to # "
        "Dice."
    )
    same = [make_pair(n, rng.normal(0, 0.01, 600)) for n in ("x", "y")]
    said = headline(contrast_family(same, Decision(0.01)))
    equal = "x and y are equivalent to qkv within # Dice (difference # and #)."
    assert said == f"{sample} {equal}"
    single = [make_pair("a", rng.normal(-0.05, 0.01, 60), seeds=1)]
    assert headline(contrast_family(single, Decision(0.01))) == (
        "Of these networks alone (one seed gives no verdict on an attention): on 60 patients of "
        "one split: a is worse than qkv by # Dice."
    )


def test_the_caution_of_a_null_control_excepts_what_is_shown():
    rng = np.random.default_rng(1)
    shifts = {"kv": -0.05, "pos": -0.2, "identity": -0.002}
    pairs = [make_pair(name, rng.normal(shift, 0.01, 600)) for name, shift in shifts.items()]
    found = contrast_family(pairs, Decision(0.01))

    def caution(contrasts, margin=0.01, controls=("identity",)):
        return write_headline(contrasts, "qkv", DICE, margin, controls).partition(" Caution: ")[2]

    apart = "these data cannot tell attentions apart."
    size = f"{-found[2].difference:.4f}"
    near = f"identity, which mixes no tokens, is only {size} Dice worse than qkv (margin 0.01): "
    assert caution(found[2:]) == near + apart
    assert caution(found[1:]) == f"{near}beyond the difference shown, {apart}"
    assert caution(found) == f"{near}beyond the differences shown, {apart}"
    assert caution(found, margin=0.001) == ""
    assert caution(found, controls=()) == ""


def test_failures_have_a_limit_and_a_direction():
    values = np.random.default_rng(2).normal(0, 0.01, 60)
    (dice,) = contrast_family([make_pair("a", values)], Decision(0.01))
    (length,) = contrast_family([make_pair("a", values)], Decision(1, up=False, worst=None))
    start = "of 60 patients failed under a alone; at most"
    end = "of all patients do (95 % limit), which would"
    assert failure_text(dice, DICE).startswith(f"none {start} 4.9 % {end} lower the mean by 0.0")
    assert f"{end} raise the mean by " in failure_text(length, HD95)
    assert failure_text(length, HD95).endswith(" mm")


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((-0.0283, 0.000021), "-0.0283 to 0.00002"),
        ((-0.0283, -0.000021), "-0.0283 to -0.00002"),
        ((-1e-17, 0.01), "0.0000 to 0.0100"),
        ((float("nan"),) * 2, "-"),
    ],
)
def test_ends_of_intervals_say_whether_zero_is_included(ends, text):
    assert interval_text(*ends, DICE) == text


def test_minus_signs_only_where_numbers_are_negative():
    assert page.use_minus_signs("-0.1 to -0.2 (-3 %), kv-2, 1e-3") == (
        "~0.1 to ~0.2 (~3 %), kv-2, 1e-3".replace("~", "\N{MINUS SIGN}")
    )


def test_labels_do_not_cover_each_other():
    apart = figures._separate_labels([(0.0, 10.0), (300.0, 11.0), (5.0, 12.0), (8.0, 13.0)])
    assert apart[:2] == [10.0, 11.0]
    assert apart[2] - apart[0] >= 16
    assert apart[3] - apart[2] >= 16


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_colours_have_contrast_in_light_and_dark(runs):
    css = re.search("<style>(.*?)</style>", made(runs), re.S)[1]
    light, dark = css.split("@media (prefers-color-scheme: dark)")[:2]
    for text in (light, dark.split("* {")[0]):
        found = {k: luminance(v) for k, v in re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text)}

        def contrast(one, two, found=found):
            low, high = sorted((found[one], found[two]))
            return (high + 0.05) / (low + 0.05)

        tints = [f"{way}-{step}" for way in ("better", "worse") for step in range(1, 5)]
        for ink, papers, least in (
            ("ink", ("paper", "card", "band", "grid", *tints), 4.5),
            ("soft", ("paper", "card"), 4.5),
            ("accent", ("paper", "card"), 4.5),
            ("doubt", ("doubt-paper",), 4.5),
            ("mark", ("mark-paper", "paper"), 4.5),
            *((f"v{at}", ("paper", "band"), 3) for at in range(figures.VARIANT_COLOURS)),
        ):
            for paper in papers:
                assert contrast(ink, paper) >= least, (ink, paper, contrast(ink, paper))


def test_from_runs_to_pictures(call, tmp_path):
    quick = ("experiment=smoke", "trainer.max_epochs=0")
    assert call(*quick, "attn=qkv").code == 0
    assert call(*quick, "attn=kv", "trainer.keep_pictures=false").code == 0
    assert "Done before" in call(*quick, "attn=kv").out  # pictures make no other run of it
    answer = call("runs=[outputs/phantom/setr/*/*]", "cases=1", command=cli.compare)
    assert answer.code == 0, answer.err
    assert "Written: outputs/comparison/comparison.html\n" in answer.out
    data = embedded((tmp_path / "outputs/comparison/comparison.html").read_text())
    (case,) = data["cases"]
    assert data["variants"] == ["qkv", "kv"]
    assert data["classes"] == ["large_bowel", "small_bowel", "stomach"]
    assert data["overlapping"]
    assert len(case["slices"]) == 3
    for shown in case["slices"]:
        prediction, none = shown["masks"]
        shape = shown["height"], shown["width"]
        assert unpacked(shown["truth"], shape).any()
        assert unpacked(prediction, shape).shape == shape
        assert none is None


def test_one_patient_is_counted_as_one(tmp_path):
    for attn, shift in (("qkv", 0.0), ("kv", 0.01)):
        make_run(tmp_path / "runs", attn, values(1, shift, patients=1))
    page_text = made(tmp_path)
    assert "mean of 2 classes, 1 patient, profile" in page_text
    assert not re.search(r"\b1 patients", page_text)
