"""The kernels of softmax attention that a run notes, and those that it refuses."""

import pytest

from attnseg.config.training import Trainer
from attnseg.errors import ConfigError
from attnseg.training.attention_kernels import find_attention_kernels
from tests.contracts.test_models import SIZE, make

OPTIONS = Trainer(max_epochs=1)


def find(model, attn, backend, options=OPTIONS):
    net = make(model, attn, options=(f"attn.backend={backend}",)).train()
    kernels = find_attention_kernels(net, (1, *SIZE), options)
    assert net.training
    return kernels


def test_the_kernels_that_run_are_counted():
    assert find("setr", "qkv", "auto") == {"flash": 4}
    assert find("setr", "kv_pos", "math") == {"math": 4}
    assert find("setr", "transpose", "auto") == {}


def test_a_kernel_that_the_device_lacks_is_refused():
    with pytest.raises(ConfigError, match="cudnn is a kernel of GPUs; use one of auto, flash"):
        find("setr", "qkv", "cudnn")


def test_a_kernel_that_cannot_compute_the_attention_is_refused(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("No available kernel. Aborting execution.")

    net = make("setr", "qkv", options=("attn.backend=flash",))
    monkeypatch.setattr(type(net), "forward", refuse)
    with pytest.raises(ConfigError, match="flash cannot compute this attention with trainer"):
        find_attention_kernels(net, (1, *SIZE), OPTIONS)
