"""What variants cost, and that it is counted right."""

import json
from functools import partial

import pytest
import torch
from torch import nn

import attnseg
from attnseg.attention.attention import Attention
from attnseg.config import cost
from attnseg.config.budget import build_model
from attnseg.config.build import ATTENTION, factory
from attnseg.config.training import parse_config
from tests.contracts.groups import compose
from tests.contracts.pairs import attending_models, attentions, each_pair, mixings

EVERY_ATTENTION = sorted([*attentions(), "none"])
UNCOUNTED = {"identity", "pool", "none"}  # no matrix product, no convolution
TWO_SITES = {"crossvit", "dae_former", "missformer"}  # Only one of them is chosen by `attn`.


def meta(model, attn, image=(3, 64, 96), **options):
    with torch.device("meta"):
        return attnseg.create_model(model, attn, image[0], 9, image[1:], **options)


@each_pair
def test_closed_form_and_counter_agree_exactly(model, attn):
    net = meta(model, attn)
    closed, counted = cost.count_attention_macs(net, (3, 64, 96))
    assert closed == counted
    assert (counted == 0) == (attn in UNCOUNTED and model not in TWO_SITES)
    assert counted < cost.count_macs(net, (3, 64, 96))


@pytest.mark.parametrize("sharing", ["k_v", "single"])
@pytest.mark.parametrize("mixing", mixings())
def test_closed_form_of_free_pairs(sharing, mixing):
    for model in attending_models():
        with torch.device("meta"):
            net = attnseg.create_model(
                model,
                partial(Attention, sharing=sharing, mixing=mixing),
                in_channels=3,
                num_classes=9,
                image_size=(64, 96),
                size="tiny",
            )
        closed, counted = cost.count_attention_macs(net, (3, 64, 96))
        assert closed == counted > 0


class Crossed(nn.Module):
    """Calls a mixer with a context beside a grid of tokens."""

    def __init__(self, mixer, tokens, grid, context, context_grid):
        super().__init__()
        self.mixer = mixer
        self.call = (tokens, grid, context, context_grid)

    def forward(self, image):
        tokens, grid, context, context_grid = self.call
        x, other = (image.new_zeros(1, n, self.mixer.dim) for n in (tokens, context))
        return self.mixer(x, grid, context=other, context_grid=context_grid)


CROSSED = {
    "coarser queries": (24, (4, 6), 96, (8, 12)),
    "in one row": (24, (4, 6), 96, None),
    "coarser context": (97, (8, 12), 25, (4, 6)),
    "same grid": (25, (4, 6), 25, (4, 6)),
    "class token": (1, (0, 0), 97, (8, 12)),
}


def crossed_macs(attn, case):
    """Closed and counted MACs, or the refusal of an attention that takes no context."""
    config = parse_config(compose("model=setr", f"attn={attn}"))
    tokens, grid, context, context_grid = CROSSED[case]
    with torch.device("meta"):
        mixer = factory("attn", config.attn, ATTENTION)(dim=16, num_heads=2)
        net = Crossed(mixer, tokens, grid, context, context_grid)
        try:
            return cost.count_attention_macs(net, (1, 8, 8))
        except ValueError as refusal:
            return str(refusal)


@pytest.mark.parametrize("attn", attentions())
def test_cross_attention_is_counted_right(attn):
    for case in CROSSED:
        macs = crossed_macs(attn, case)
        if isinstance(macs, str):
            assert attn not in {"qkv", "kv", "kv_pos", "efficient", "random"}
            assert "\n" not in macs
        else:
            assert macs[0] == macs[1] > 0, case


def test_cross_attention_by_hand():
    """Projections of queries, outputs, keys and values, then scores and their use."""
    assert crossed_macs("qkv", "coarser queries") == (135_168, 135_168)
    assert crossed_macs("qkv", "class token") == (53_280, 53_280)
    # The shared projection is applied to both grids.
    assert crossed_macs("kv", "coarser queries") == (135_168, 135_168)


def test_a_model_without_attention_has_no_macs_of_attention():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    assert cost.count_attention_macs(net, (3, 8, 8)) == (0, 0)
    assert cost.count_macs(net, (3, 8, 8)) == 3 * 4 * 9 * 64


@pytest.mark.parametrize(
    ("model", "share"), [("setr", None), ("transunet", 0.067), ("cvt", 0.080), ("dae_former", None)]
)
def test_kv_saves_the_query_projections(model, share):
    """Shares of the published parameters from arithmetic on the papers' sizes."""
    qkv, kv = (
        cost.count_parameters(meta(model, attn, (3, 224, 224)))["total"] for attn in ("qkv", "kv")
    )
    saved = {"setr": 7_087_104, "transunet": 7_087_104, "dae_former": 1_002_240}
    if model in saved:
        assert qkv - kv == saved[model]
    if share:
        assert (qkv - kv) / qkv == pytest.approx(share, abs=0.0007)


def test_published_sizes():
    sizes = {
        ("transunet", "base"): 105_277_081,
        ("dae_former", "base"): 48_073_065 - 18_382_864,
    }
    for (model, size), wanted in sizes.items():
        net = meta(model, None, (3, 224, 224), size=size)
        assert cost.count_parameters(net)["total"] == wanted
    setr = meta("setr", "qkv", (3, 256, 256), size="large", auxiliary=False)
    assert cost.count_parameters(setr)["total"] == 307_501_842 - 4_617


def test_transient_memory_is_what_is_held_at_once():
    def step():
        for _ in range(3):
            torch.zeros(1 << 20)  # 4 MiB, freed before the next

    assert cost.transient_memory(step, on_gpu=False) == pytest.approx(4 << 20, rel=0.01)


def test_tables_and_plots_of_a_multirun(bench, tmp_path):
    code, _, _ = bench("-m", "attn=qkv,kv", "precisions=[float32]")
    assert code == 0
    folder = tmp_path / "outputs" / "benchmark" / "cost"
    kv, qkv = (
        json.loads((folder / f"setr-tiny-{attn}.json").read_text()) for attn in ("kv", "qkv")
    )
    (kv,), (qkv,) = kv["rows"], qkv["rows"]
    assert qkv["parameters"] - kv["parameters"] == 4 * (192 * 192 + 192)
    assert all(row["attention_macs"] == row["attention_macs_counted"] for row in (kv, qkv))
    assert (folder / "cost.md").read_text().count("\n| setr") == 2
    assert [path.name for path in folder.glob("*.png")] == ["pareto.png"]


def test_null_controls_in_the_table(bench, tmp_path):
    code, _, err = bench("-m", "attn=identity,random", "precisions=[float32]", "repeats=1")
    assert code == 0, err
    folder = tmp_path / "outputs" / "benchmark" / "cost"
    identity, random = (
        json.loads((folder / f"setr-tiny-{attn}.json").read_text())["rows"][0]
        for attn in ("identity", "random")
    )
    assert identity["attention_macs"] == identity["attention_macs_counted"] == 0
    assert random["attention_macs"] == random["attention_macs_counted"] == 4 * 17 * 17 * 192
    assert random["macs"] - identity["macs"] == 4 * 17 * 17 * 192


def test_against_reports_ratios(bench):
    code, out, _ = bench("attn=kv_pos", "against=kv")
    assert code == 0
    assert "kv_pos against kv, in alternation: forward" in out


MATCHED = [("kv", "params"), ("efficient", "macs")]


def test_matched_variants_in_the_table(bench, tmp_path):
    folder = tmp_path / "outputs" / "benchmark" / "cost"
    assert bench("attn=qkv", "precisions=[float32]")[0] == 0
    (qkv,) = json.loads((folder / "setr-tiny-qkv.json").read_text())["rows"]
    for attn, budget in MATCHED:
        assert bench(f"attn={attn}", f"model.match={budget}", "precisions=[float32]")[0] == 0
        (row,) = json.loads((folder / f"setr-tiny-{attn}-{budget}.json").read_text())["rows"]
        key = {"params": "parameters", "macs": "macs"}[budget]
        assert row[key] == pytest.approx(qkv[key], rel=0.01)


def measure_size(model, attn, match, budget):
    """Parameters or MACs of a tiny model, by the budget."""
    config = parse_config(
        compose(f"model={model}", f"attn={attn}", "model.size=tiny", f"model.match={match}")
    )
    net = build_model(config.model, config.attn, 1, 3, (64, 96))
    if budget == "params":
        return cost.count_parameters(net)["total"]
    return cost.count_macs(net, (1, 64, 96))


@pytest.mark.full
@pytest.mark.parametrize(("attn", "budget"), MATCHED)
@pytest.mark.parametrize("model", attending_models())
def test_matched_variants_cost_what_qkv_does(model, attn, budget):
    wanted = measure_size(model, "qkv", "null", budget)
    assert measure_size(model, attn, "null", budget) != wanted
    assert measure_size(model, attn, budget, budget) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(
    ("attn", "budget"),
    [
        ("spatial_reduction", "params"),
        ("identity", "macs"),
        pytest.param("spatial_reduction", "macs", marks=pytest.mark.full),
        pytest.param("identity", "params", marks=pytest.mark.full),
    ],
)
def test_any_attention_is_matched_against_qkv(attn, budget):
    """Whatever its class and its options: the baseline is built anew."""
    wanted = measure_size("setr", "qkv", "null", budget)
    assert measure_size("setr", attn, "null", budget) != pytest.approx(wanted, rel=0.01)
    assert measure_size("setr", attn, budget, budget) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["repeat=3"], "repeat: no such key; did you mean repeats?"),
        (["against=kw"], f"attn: no 'kw'; choose one of {', '.join(EVERY_ATTENTION)}"),
        (["num_classes=1"], "num_classes: 1 is not allowed"),
        (["model.match=time"], "model.match: 'time' is not allowed"),
    ],
)
def test_wrong_benchmarks(bench, arguments, message):
    code, _, err = bench(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
