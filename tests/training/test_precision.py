"""`trainer.precision=auto` chooses by what the machine has, and says why."""

import pytest
import torch
import yaml

from attnseg.training.precision import choose, resolve
from tests.faults.runs import configured


@pytest.mark.parametrize(
    ("bf16", "amx", "wanted"),
    [(False, False, 32), (True, False, "bf16-mixed"), (False, True, "bf16-mixed")],
)
def test_of_a_cpu(monkeypatch, bf16, amx, wanted):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    found, why = choose("cpu")
    assert found == wanted
    assert "CPU" in why


def test_configuration_and_text_agree(tmp_path):
    config, text = configured(tmp_path, "trainer.precision=auto")
    revised, new = resolve(config, text)
    assert revised.trainer.precision == choose("cpu")[0]
    assert yaml.safe_load(new)["trainer"]["precision"] == revised.trainer.precision
    assert yaml.safe_load(new) | {"trainer": 0} == yaml.safe_load(text) | {"trainer": 0}
    assert resolve(revised, new) == (revised, new)
