"""Gradient checkpointing changes memory and time, never a number."""

import copy

import pytest
import torch

import attnseg
from attnseg.training.recompute import _frozen_batch_statistics, recompute_blocks


@pytest.mark.parametrize("name", attnseg.list_models())
def test_same_gradients_and_statistics_to_the_bit(name):
    torch.manual_seed(0)
    plain = attnseg.create_model(
        name, size="tiny", in_channels=1, num_classes=3, image_size=(32, 32)
    ).train()
    again = copy.deepcopy(plain)
    assert recompute_blocks(again) >= 2
    image = torch.randn(2, 1, 32, 32)
    outputs = []
    for model in (plain, again):
        torch.manual_seed(1)  # of dropout
        out = torch.cat([o.flatten() for o in model.training_outputs(image)])
        out.square().mean().backward()
        outputs.append(out.detach())
    assert torch.equal(*outputs)
    named = dict(again.named_parameters())
    for key, value in plain.named_parameters():
        assert torch.equal(value.grad, named[key].grad), key
    state = again.state_dict()
    for key, value in plain.state_dict().items():  # running means, counted once
        assert torch.equal(value, state[key]), key


def test_fewer_activations_are_kept():
    def kept(model) -> int:
        held = 0

        def count(tensor):
            nonlocal held
            held += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(torch.randn(1, 1, 64, 64))
        return held

    model = attnseg.create_model(
        "setr", size="tiny", in_channels=1, num_classes=3, image_size=(64, 64)
    ).train()
    before = kept(model)
    recompute_blocks(model)
    assert kept(model) < before / 2


@pytest.mark.parametrize("kind", [torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm])
def test_statistics_of_every_batch_norm_are_counted_once(kind):
    """Lightning's DDP replaces `BatchNorm2d` by `SyncBatchNorm` on GPUs."""
    block = torch.nn.Sequential(kind(2))
    norm = block[0]
    mean = norm.running_mean
    with _frozen_batch_statistics(block):
        norm.running_mean += 1
    assert norm.running_mean is mean
    assert not mean.any()


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_recompute_to_the_same_gradients_and_statistics():
    """CvT's blocks hold batch norms."""
    torch.manual_seed(0)
    plain = attnseg.create_model(
        "cvt", size="tiny", in_channels=1, num_classes=3, image_size=(32, 32)
    ).train()
    again = copy.deepcopy(plain)
    recompute_blocks(again, compiled=True)
    again.compile(backend="aot_eager")
    image = torch.randn(2, 1, 32, 32)
    for model in (plain, again):
        torch.manual_seed(1)
        model(image).square().mean().backward()
    named, state = dict(again.named_parameters()), again.state_dict()
    for key, value in plain.named_parameters():
        torch.testing.assert_close(named[key].grad, value.grad, rtol=1e-4, atol=1e-6, msg=key)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6, msg=key)
