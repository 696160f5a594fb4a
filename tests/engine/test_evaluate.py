"""Evaluation puts slices back where they were."""

import numpy as np
import pytest
import torch

from attnseg.data import store
from attnseg.data.uw_madison import UWMadison
from attnseg.engine.evaluate import predict, score_cases, true_masks
from attnseg.metrics.strict import Strict
from attnseg.models.model import SegmentationModel

NAMES = UWMadison.classes


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


@pytest.fixture(scope="module")
def cases(phantom, tmp_path_factory):
    reader = UWMadison(phantom)
    return store.prepare(reader, reader.cases(), tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_a_perfect_model_is_perfect_at_any_batch_size(cases, batch_size):
    case = cases[0]
    truth = true_masks(case, 3, True)
    prediction = predict(Oracle(truth), case, case.shape[1:], True, batch_size)
    assert prediction.shape == (3, *case.shape)
    assert np.array_equal(prediction, truth)


def test_a_model_at_another_size_is_scored_at_the_native_one(cases):
    case = cases[0]
    double = true_masks(case, 3, True).repeat(2, 2).repeat(2, 3)
    size = (2 * case.shape[1], 2 * case.shape[2])
    frame = score_cases(Oracle(double), [case], size, NAMES, True, 4, Strict(), "test")
    assert frame["value"][frame["metric"] == "dice"].min() > 0.9


def test_there_is_a_row_per_case_class_and_metric(cases):
    case = cases[1]
    upside_down = true_masks(case, 3, True)[:, ::-1].copy()
    frame = score_cases(
        Oracle(upside_down), [case], case.shape[1:], NAMES, True, 4, Strict(), "val"
    )
    assert len(frame) == len(NAMES) * len(Strict.METRICS)
    assert set(frame["profile"]) == {"strict"}
    assert set(frame["split"]) == {"val"}
    assert frame["value"][frame["metric"] == "dice"].max() < 0.9  # the order of the slices counts
