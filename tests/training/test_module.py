from types import SimpleNamespace

import pytest
import torch

from attnseg.data.labels import Labels
from attnseg.errors import ConfigError
from attnseg.training.module import SegmentationModule, parameter_groups
from tests.contracts.test_models import make


def test_weight_decay_spares_biases_norms_and_positions():
    model = make("setr", "kv_pos")
    decayed, spared = (group["params"] for group in parameter_groups(model))
    assert len(decayed) + len(spared) == len(list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in decayed:
        assert names[id(parameter)].endswith("weight")
        assert parameter.ndim >= 2
    assert {"embed.pos_embed", "embed.cls_token"} <= {names[id(p)] for p in spared}
    assert parameter_groups(model)[1]["weight_decay"] == 0


def test_a_batch_too_small_for_its_normalisation_is_refused():
    components = SimpleNamespace(model=make("cvt", "qkv"), loss=None, optimizer=None, schedule=None)
    module = SegmentationModule(components, Labels(("a", "b"), False), [], [], 0.4, 0).train()
    assert len(module.compute_outputs(torch.randn(2, 1, 32, 32))) == 1
    with pytest.raises(
        ConfigError, match=r"^dataset\.batch_size: .* 1 slice of 32x32; use at least 2"
    ):
        module.compute_outputs(torch.randn(1, 1, 32, 32))
    with pytest.raises(ValueError, match="smaller than 16"):  # another error stays what it is
        module.compute_outputs(torch.randn(1, 1, 8, 8))
