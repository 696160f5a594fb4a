"""Training steps on a simulated GPU: devices, waits, determinism, kernels and memory."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from attnseg.errors import ConfigError
from attnseg.gpu import fake_device
from attnseg.gpu.account import Account
from attnseg.gpu.published import CARDS
from attnseg.processes.tf32 import tf32_products

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform != "linux",
    reason="needs g++ on Linux, to compile a device that PyTorch lacks without a GPU",
)
MODELS = ("setr/kv_pos", "transunet/qkv", "cvt/kv", "dae_former/efficient")
OTHERS = ("setr/deformable", "setr/token_merging", "setr/differential", "setr/stripes")
NETWORKS = (
    "missformer/spatial_reduction", "crossvit/qkv", "hierarchical/window", "unet/none",
    "unet_resenc/none",
)  # fmt: skip


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Steps by pair and mode, in bfloat16 on an H100; some also without determinism."""
    folder = tmp_path_factory.mktemp("simulation")
    return simulate(folder, *MODELS, *OTHERS, *(f"{pair}:off" for pair in MODELS))


def run_simulation(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


def simulate(folder, *pairs, program=("-m", "attnseg.gpu.simulation")):
    file = folder / "steps.json"
    options = ["--options", "augment=gpu", "augment.warp=0.02"]
    done = run_simulation(*program, *pairs, "--json", str(file), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads(file.read_text())
    assert len(records) == len(pairs)
    return {(f"{record['model']}/{record['attn']}", record["mode"]): record for record in records}


SPOIL = """
import os, sys
from attnseg.gpu import fake_device, simulation
fake_device.load_fake_device()
simulation.load_fake_device = lambda: None
import torch
from attnseg.gpu import training_step
from attnseg.layers import conv, vit
from attnseg.training.module import SegmentationModule
{}
code = simulation.print_simulation(sys.argv[1:])
sys.stdout.flush()
os._exit(code)
"""
LOOP_OPTIMIZER = """
training_step.optimizer_factory = lambda config: (
    lambda groups: torch.optim.AdamW(groups, fused=False, foreach=False)
)
"""
PYTORCHS_RESIZE = """
class BilinearResize:
    apply = lambda x, size, corners: torch.nn.functional.interpolate(
        x, size=size, mode="bilinear", align_corners=corners
    )
conv.BilinearResize = BilinearResize
"""
READ_LOSS = """
compute_loss = SegmentationModule.compute_loss
def read(self, logits, mask):
    loss = compute_loss(self, logits, mask)
    loss.item()
    return loss
SegmentationModule.compute_loss = read
"""
CPU_CONSTANT = """
forward = vit.Block.forward
vit.Block.forward = lambda self, x, *more: forward(self, x, *more) * torch.ones(1)
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("fault", "checks"),
    [
        (LOOP_OPTIMIZER, ["test_the_optimizer_takes_all_weights_at_once"]),
        (PYTORCHS_RESIZE, ["test_determinism_costs_no_memory"]),
        (READ_LOSS, ["test_nothing_waits_for_the_gpu"]),
        ("", []),
    ],
    ids=["loop optimizer", "PyTorch's resizing", "the loss is read", "no fault"],
)
def test_a_fault_fails_the_test_that_is_there_for_it(tmp_path, monkeypatch, fault, checks):
    monkeypatch.setitem(globals(), "MODELS", MODELS[:1])
    program = ("-c", SPOIL.format(fault))
    steps = simulate(tmp_path, MODELS[0], f"{MODELS[0]}:off", program=program)
    for check in (
        test_every_weight_gets_its_gradient_on_the_gpu,
        test_nothing_waits_for_the_gpu,
        test_every_operation_of_strict_training_has_a_deterministic_kernel,
        test_no_attention_computes_all_scores,
        test_the_optimizer_takes_all_weights_at_once,
        test_determinism_costs_no_memory,
    ):
        fails = pytest.raises(AssertionError) if check.__name__ in checks else nullcontext()
        with fails:
            check(steps)


@pytest.mark.full
def test_a_constant_on_the_cpu_ends_the_simulation():
    done = run_simulation("-c", SPOIL.format(CPU_CONSTANT), MODELS[0])
    assert done.returncode == 3
    assert f"broken: {MODELS[0]}: encoder.py" in done.stdout


@pytest.mark.full
def test_the_other_networks_train_as_strictly(tmp_path):
    steps = simulate(tmp_path, *NETWORKS)
    test_every_weight_gets_its_gradient_on_the_gpu(steps)
    test_nothing_waits_for_the_gpu(steps)
    test_every_operation_of_strict_training_has_a_deterministic_kernel(steps)
    test_the_optimizer_takes_all_weights_at_once(steps)
    kernels = {k for r in steps.values() for k in (*r["attention"], *r["validation"]["attention"])}
    assert kernels == {"flash", "efficient"}


def test_the_rate_of_products_is_that_of_their_precision():
    card = CARDS["h100"]
    with tf32_products(False):
        assert Account(card).find_rate(2) == card.half
        assert Account(card).find_rate(4) == card.single
    with tf32_products(True):
        assert Account(card).find_rate(4) == card.tf32


def test_views_cost_nothing():
    """The product of tokens and a matrix is one kernel between two views."""
    with FakeTensorMode(), Account(CARDS["h100"]) as account:
        tokens, matrix = torch.zeros(2, 3, 4, device="cuda"), torch.zeros(4, 5, device="cuda")
        account.reset()
        torch.ops.aten._unsafe_view(tokens, [6, 4])
        tokens.view(4, 6).t()
        assert (account.kernels, account.moved, account.peak) == (0, 0, 4 * (24 + 20))
        product = tokens @ matrix
        assert (account.kernels, account.peak) == (1, 4 * (24 + 20 + product.numel()))


def test_the_fake_device_lies_in_a_folder_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with fake_device.open_cache_folder() as folder:
        assert folder == tmp_path / "cache/attnseg"
        assert folder.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # in which nothing can be made
    with fake_device.open_cache_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    first = fake_device.name_guard(tmp_path)
    monkeypatch.setattr(fake_device, "version", lambda package: "9.9.9")
    assert fake_device.name_guard(tmp_path) != first


def test_a_library_of_another_user_is_refused(tmp_path, monkeypatch):
    library = tmp_path / "fake-cuda.so"
    library.touch()
    fake_device.check_owner(library)
    monkeypatch.setattr(os, "getuid", lambda: library.stat().st_uid + 1)
    with pytest.raises(ConfigError, match=r"fake-cuda\.so: belongs to another user; remove it"):
        fake_device.check_owner(library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "attnseg").mkdir()  # the other user's
    with fake_device.open_cache_folder() as folder:
        assert folder.parent != tmp_path


def test_every_weight_gets_its_gradient_on_the_gpu(steps):
    """An operation between tensors on CPU and GPU would already have ended the simulation."""
    assert [record["without_gradient"] for record in steps.values()] == [[]] * len(steps)


def test_nothing_waits_for_the_gpu(steps):
    waits = {key: {**r["waits"], **r["validation"]["waits"]} for key, r in steps.items()}
    assert waits == {key: {} for key in steps}


def test_every_operation_of_strict_training_has_a_deterministic_kernel(steps):
    strict = {key: r for key, r in steps.items() if key[1] == "strict"}
    alerts = {key: {**r["alerts"], **r["validation"]["alerts"]} for key, r in strict.items()}
    assert alerts == {key: {} for key in strict}


def test_no_attention_computes_all_scores(steps):
    """Neither in training nor in float32, in which networks are evaluated."""
    chosen = {key: set(record["attention"]) for key, record in steps.items()}
    later = {key: set(record["validation"]["attention"]) for key, record in steps.items()}
    assert not any("math" in kernels for kernels in [*chosen.values(), *later.values()])
    assert later["setr/kv_pos", "strict"] == {"efficient"}
    assert chosen["setr/kv_pos", "strict"] == {"flash"}
    assert chosen["setr/kv_pos", "off"] == {"cudnn"}


def test_the_optimizer_takes_all_weights_at_once(steps):
    kernels = {key: record["optimizer_kernels"] for key, record in steps.items()}
    assert 2 <= min(kernels.values()) and max(kernels.values()) <= 20, kernels


def test_determinism_costs_no_memory(steps):
    for pair in MODELS:
        strict, plain = steps[pair, "strict"], steps[pair, "off"]
        assert plain["peak"] > 0
        assert strict["peak"] <= 1.05 * plain["peak"], pair
        assert strict["kernels"] <= 1.2 * plain["kernels"], pair
