"""`trainer.precision=auto` chooses by what the machine has, and says why."""

import numpy as np
import pytest
import torch
import yaml

from attnseg.processes.tf32 import tf32_products
from attnseg.runs.reopen import TorchNetwork
from attnseg.training.precision import fastest_precision, resolve_precision
from tests.faults.runs import configured


@pytest.mark.parametrize(
    ("bf16", "amx", "wanted"),
    [(False, False, 32), (True, False, "bf16-mixed"), (False, True, "bf16-mixed")],
)
def test_of_a_cpu(monkeypatch, bf16, amx, wanted):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    found, why = fastest_precision("cpu")
    assert found == wanted
    assert "CPU" in why


def test_what_is_chosen_takes_the_place_of_auto_and_nothing_else_changes(tmp_path):
    config = configured(tmp_path, "trainer.precision=auto")
    revised = resolve_precision(config)
    assert revised.trainer.precision == fastest_precision("cpu")[0]
    old, new = yaml.safe_load(config.to_yaml()), yaml.safe_load(revised.to_yaml())
    assert new["trainer"]["precision"] == revised.trainer.precision
    assert new | {"trainer": 0} == old | {"trainer": 0}
    assert resolve_precision(revised) == revised


def test_tf32_is_for_training_alone():
    """Predictions and scores are computed in full 32 bits, whatever is allowed outside."""
    allowed = []

    class Network(torch.nn.Module):
        def forward(self, image):
            own = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            allowed.append(own)
            return image

    network, image = TorchNetwork(Network()), np.zeros((1, 1, 2, 2), np.float32)
    with tf32_products(True):
        assert torch.backends.cuda.matmul.allow_tf32
        network(image)
        network.decide_on_device(image, (2, 2), True)
        assert torch.backends.cuda.matmul.allow_tf32
    assert allowed == [(False, False)] * 2
