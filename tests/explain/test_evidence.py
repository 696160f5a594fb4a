"""The share of attention on the pixels that show the answer."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import attnseg
from attnseg import cli
from attnseg.attention.attention import Attention
from attnseg.explain.evidence import load_evidence, measure_evidence_share
from attnseg.explain.recording import record_attentions

SIDE = 32


def first_record(attn, class_token=False, **options):
    torch.manual_seed(0)
    net = attnseg.create_model(
        "setr", attn, 1, 3, image_size=(SIDE, SIDE), size="tiny", dim=32, depth=1, num_heads=2,
        patch_size=4, head_channels=8, auxiliary=False, class_token=class_token, **options,
    ).eval()  # fmt: skip
    image = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    (record,) = record_attentions(net, image).values()
    return record


def mask(rows, columns):
    drawn = np.zeros((SIDE, SIDE), bool)
    drawn[rows, columns] = True
    return drawn


@pytest.mark.parametrize("class_token", [False, True])
def test_it_is_the_sum_of_the_weights_of_tokens_with_evidence(class_token):
    record = first_record("qkv", class_token)
    answers, evidence = mask(slice(20, 23), slice(5, 10)), mask(slice(0, 5), slice(8, 9))
    scores = record.mix.scale * record.q[0] @ record.k[0].mT
    weights = scores.softmax(-1)[:, class_token:, class_token:]
    queries, keys = [5 * 8 + 1, 5 * 8 + 2], [0 * 8 + 2, 1 * 8 + 2]  # of a grid of 8 x 8
    chosen = weights[:, queries]
    expected = (chosen[..., keys].sum(-1) / chosen.sum(-1)).mean(1)
    measured = measure_evidence_share(record, answers, evidence)
    assert measured.heads.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert measured.uniform == 2 / 64


@pytest.mark.parametrize(
    "attn",
    ["window", "pool", "spatial_reduction", "pooled_reduction", "deformable", "linear", "focal"],
)
def test_evidence_everywhere_has_all_of_the_weights_and_nowhere_none(attn):
    record = first_record(attn)
    answers, everywhere = mask(slice(12, 20), slice(12, 20)), mask(slice(None), slice(None))
    measured = measure_evidence_share(record, answers, everywhere)
    assert measured.heads.tolist() == pytest.approx([1] * len(measured.heads), rel=1e-5)
    assert measured.uniform == 1
    nothing = mask(slice(0, 0), slice(0, 0))
    assert measure_evidence_share(record, answers, nothing) is None
    assert measure_evidence_share(record, nothing, everywhere) is None
    half = mask(slice(None), slice(0, SIDE // 2))
    halves = [measure_evidence_share(record, answers, part) for part in (half, ~half)]
    assert all(0 <= share <= 1 for part in halves for share in part.heads.tolist())
    both = (halves[0].heads + halves[1].heads).tolist()
    if attn == "pooled_reduction":  # Keys between the halves hold both.
        assert min(both) > 1
    else:
        assert both == pytest.approx([1] * len(both), rel=1e-4)


def test_a_window_has_no_weight_outside():
    record = first_record(
        partial(Attention, mixing="window", mixing_options={"size": 4}),
    )
    answers = mask(slice(0, 4), slice(0, 4))
    measured = measure_evidence_share(record, answers, mask(slice(16, 32), slice(None)))
    assert measured.heads.tolist() == [0, 0]
    assert measured.uniform == 0.5


def test_channels_have_no_tokens_to_look_at():
    answers = mask(slice(0, 4), slice(0, 4))
    assert measure_evidence_share(first_record("transpose"), answers, answers) is None


@pytest.mark.full
def test_explain_measures_it_on_a_probe(call, tmp_path):
    short = ("experiment=probe", "phantom_size=tiny", "trainer.max_epochs=1", "logger=none")
    assert call(*short).code == 0
    (run,) = (path.parent for path in tmp_path.glob("outputs/*/*/*/*/run.json"))
    answer = call(f"run={run}", command=cli.explain)
    assert answer.code == 0 and "evidence," in answer.out, answer.err
    table = pd.read_csv(run / "attention/layers.csv")
    assert table["evidence_share"].between(0, 1).all() and len(table) == 2 * 4
    assert table["uniform_share"].nunique() == 1


def test_evidence_lies_beside_the_masks(tmp_path):
    assert load_evidence(tmp_path, "one") is None
    (tmp_path / "evidence").mkdir()
    drawn = mask(slice(3, 5), slice(7, 9))
    Image.fromarray(drawn.astype(np.uint8) * 255).save(tmp_path / "evidence/one.png")
    assert np.array_equal(load_evidence(tmp_path, "one"), drawn)
