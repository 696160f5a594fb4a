"""SETR's own options hold the model contract, too."""

import pytest
import torch

from tests.contracts import test_models as contract


@pytest.mark.parametrize("head", ["naive", "pup", "mla"])
@pytest.mark.parametrize("auxiliary", ["true", "false"])
def test_no_head_has_dead_parameters(head, auxiliary):
    net = contract.make(
        "setr", "kv", options=(f"model.head={head}", f"model.auxiliary={auxiliary}")
    ).train()
    outputs = net.training_outputs(torch.randn(2, 1, *contract.SIZE))
    expected = {"naive": 2, "pup": 2, "mla": 5}[head] if auxiliary == "true" else 1
    assert [o.shape for o in outputs] == [(2, 3, *contract.SIZE)] * expected
    sum(output.square().mean() for output in outputs).backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_auxiliary_outputs_only_while_training():
    net = contract.make("setr", "qkv")
    assert isinstance(net(torch.randn(2, 1, *contract.SIZE)), torch.Tensor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("model.patch_size=5",), "not divisible by 5"),
        (("model.head=mla", "model.depth=3"), "depth of at least 4"),
        (("model.head=up",), "naive, pup, mla"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options, message):
    with pytest.raises(Exception, match=message):
        contract.make("setr", "qkv", options=options)
