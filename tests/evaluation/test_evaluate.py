"""Evaluation puts slices back where they were."""

import threading

import numpy as np
import pandas as pd
import pytest
import torch

from attnseg.data import store
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.data.slicing import SliceView
from attnseg.evaluation.pipelines import segment_case
from attnseg.evaluation.scoring import make_segmenter, score_cases
from attnseg.metrics.profiles.strict import Strict
from attnseg.metrics.profiles.transunet import TransUNet
from attnseg.models.model import SegmentationModel
from tests.limits import HANG

LABELS = UWMadison.labels
NAMES = LABELS.names


class Oracle(SegmentationModel):
    """Answers with logits of its own, slice after slice, whatever it is shown."""

    def __init__(self, masks):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.masks, self.at = masks, 0

    def forward(self, image):
        answer = torch.from_numpy(
            self.masks[:, self.at : self.at + len(image)].transpose(1, 0, 2, 3)
        )
        self.at += len(image)
        return answer.float() * 2 - 1


def segmenter(model, view, batch_size=4):
    return make_segmenter(model, LABELS, view, batch_size)


@pytest.fixture(scope="module")
def cases(phantom, tmp_path_factory):
    reader = UWMadison(phantom)
    return store.prepare_cases(reader, reader.cases(), tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_a_perfect_model_is_perfect_at_any_batch_size(cases, batch_size):
    case = cases[0]
    truth = LABELS.split(case.mask)
    prediction = segmenter(Oracle(truth), SliceView(case.shape[1:]), batch_size)(case).masks
    assert prediction.shape == (3, *case.shape)
    assert np.array_equal(prediction, truth)


def test_a_model_at_another_size_is_scored_at_the_native_one(cases):
    case = cases[0]
    double = LABELS.split(case.mask).repeat(2, 2).repeat(2, 3)
    size = SliceView((2 * case.shape[1], 2 * case.shape[2]))
    frame = score_cases(segmenter(Oracle(double), size), [case], [Strict()], "test")
    assert frame["value"][frame["metric"] == "dice"].min() > 0.9


def test_there_is_a_row_per_case_class_and_metric(cases):
    case = cases[1]
    upside_down = LABELS.split(case.mask)[:, ::-1].copy()
    frame = score_cases(
        segmenter(Oracle(upside_down), SliceView(case.shape[1:])), [case], [Strict()], "val"
    )
    names = {m.name for m in Strict.metrics} - {"weighted_jaccard"}
    assert set(frame["metric"]) == names | {"truth_voxels", "predicted_voxels"}
    assert len(frame) == len(NAMES) * (len(names) + 2)
    assert set(frame["profile"]) == {"strict"}
    assert set(frame["split"]) == {"val"}
    assert frame["value"][frame["metric"] == "dice"].max() < 0.9  # the order of the slices counts


def test_profiles_score_the_same_prediction(cases):
    truth = LABELS.split(cases[0].mask)
    view = SliceView(cases[0].shape[1:])
    oracle = Oracle(truth)
    frame = score_cases(segmenter(oracle, view), [cases[0]], [Strict(), TransUNet()], "val")
    assert set(frame["profile"]) == {"strict", "transunet"}
    assert (frame["value"][frame["metric"] == "dice"] == 1).all()
    assert oracle.at == cases[0].shape[0]  # predicted once


def test_a_case_is_scored_while_the_next_one_is_segmented(cases):
    """As on a GPU, which must not wait for distances."""
    segmenting_second, scoring_first = threading.Event(), threading.Event()
    case, met = cases[0], []
    truth, view = LABELS.split(case.mask), SliceView(case.shape[1:])

    class Network(Oracle):
        def forward(self, image):
            if self.at == case.shape[0]:
                segmenting_second.set()
                met.append(scoring_first.wait(HANG))
            return super().forward(image)

    class Patient(Strict):
        def score_case(self, *given):
            met.append(segmenting_second.wait(HANG))
            scoring_first.set()
            return super().score_case(*given)

    network = Network(np.concatenate([truth, truth], 1))
    frame = score_cases(segmenter(network, view, 1), [case, case], [Patient()], "val")
    assert met == [True] * 3
    alone = score_cases(segmenter(Oracle(truth), view), [case], [Strict()], "val")
    pd.testing.assert_frame_equal(frame, pd.concat([alone, alone], ignore_index=True))


def test_an_error_in_a_metric_ends_the_scoring(cases):
    class Broken(Strict):
        def score_case(self, *given):
            raise ZeroDivisionError

    truth, view = LABELS.split(cases[0].mask), SliceView(cases[0].shape[1:])
    with pytest.raises(ZeroDivisionError):
        score_cases(segmenter(Oracle(truth), view), cases[:1], [Broken()], "val")


@pytest.mark.parametrize("pipeline", ["native", "zoom", "network_size"])
@pytest.mark.parametrize("factor", [1, 2])
def test_pipelines_keep_masks_in_their_place(cases, pipeline, factor):
    case = cases[0]
    size = tuple(factor * n for n in case.shape[1:])
    answer = LABELS.split(case.mask).repeat(factor, 2).repeat(factor, 3)
    truth, prediction = segment_case(pipeline, segmenter(Oracle(answer), SliceView(size), 3), case)
    expected = (3, case.shape[0], *(size if pipeline == "network_size" else case.shape[1:]))
    assert truth.shape == prediction.shape == expected
    dice = 2 * (truth & prediction).sum() / (truth.sum() + prediction.sum())
    assert dice == 1 if factor == 1 else dice > 0.93
