"""What SETR base costs with each attention, at its published size."""

import torch

from attnseg.config import cost
from attnseg.config.build import ATTENTION, build, factory
from attnseg.config.training import parse_config
from tests.contracts.groups import compose

GRID = 14  # 224 / 16
TOKENS = GRID * GRID + 1  # and the class token
DIM, DEPTH = 768, 12


def measure(attn: str) -> tuple[dict[str, int], int]:
    model = build_setr(attn)
    return cost.count_parameters(model), cost.count_macs(model, (1, 224, 224))


def build_setr(attn: str) -> torch.nn.Module:
    config = parse_config(compose("model=setr", f"attn={attn}"))
    with torch.device("meta"):
        return build(
            "model",
            config.model,
            in_channels=1,
            num_classes=3,
            image_size=(224, 224),
            attn=factory("attn", config.attn, ATTENTION),
        )


def test_the_cost_of_attention_is_that_of_four_projections_and_the_scores():
    found = {}
    for attn in ("qkv", "identity"):
        model = build_setr(attn)
        inside = cost.count_all_macs(model, (1, 224, 224))[2]
        found[attn] = (cost.count_attention_parameters(model), inside)
    macs = DEPTH * (4 * TOKENS * DIM * DIM + 2 * TOKENS * TOKENS * DIM)
    assert found == {"qkv": (DEPTH * 4 * (DIM * DIM + DIM), macs), "identity": (0, 0)}


def test_kv_saves_the_twelve_query_projections():
    (qkv, qkv_macs), (kv, kv_macs) = measure("qkv"), measure("kv")
    assert qkv["encoder"] - kv["encoder"] == DEPTH * (DIM * DIM + DIM) == 7_087_104
    assert qkv["total"] - kv["total"] == 7_087_104
    assert qkv_macs - kv_macs == DEPTH * TOKENS * DIM * DIM


def test_counted_macs_include_attention():
    """The whole encoder in closed form: projections, scores and values, and the MLP."""
    per_token = (4 + 8) * DIM * DIM
    encoder = DEPTH * (TOKENS * per_token + 2 * TOKENS * TOKENS * DIM)
    embed = GRID * GRID * 16 * 16 * DIM
    channels, sides = 256, [GRID * 2**i for i in range(4)]
    head = sum(9 * a * channels * s * s for a, s in zip((DIM, *[channels] * 3), sides, strict=True))
    head += channels * 3 * sides[-1] ** 2
    assert measure("qkv")[1] == embed + encoder + head


def test_the_position_term_is_nearly_free():
    (kv, kv_macs), (pos, pos_macs) = measure("kv"), measure("kv_pos")
    assert 0 < pos["encoder"] - kv["encoder"] == DEPTH * 50
    assert kv_macs <= pos_macs <= 1.01 * kv_macs


def test_linear_attentions_are_counted_by_hand():
    # All of them, in every model: tests/benchmark/test_cost.py.
    macs = {attn: measure(attn)[1] for attn in ("qkv", "efficient", "transpose")}
    linear = macs["qkv"] - DEPTH * 2 * TOKENS * TOKENS * DIM
    # Linear mixings cost d x d contexts per head instead of N x N scores.
    for attn in ("efficient", "transpose"):
        assert macs[attn] == linear + DEPTH * 2 * TOKENS * DIM * 64
