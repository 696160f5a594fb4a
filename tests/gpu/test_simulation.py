"""Training steps on a simulated GPU: devices, waits, determinism, kernels and memory."""

import json
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform != "linux",
    reason="needs g++ on Linux, to compile a device that PyTorch lacks without a GPU",
)
MODELS = ("setr/kv_pos", "transunet/qkv", "cvt/kv", "dae_former/efficient")
OTHERS = ("setr/deformable", "setr/token_merging", "setr/differential", "setr/stripes")


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Steps by pair and mode, in bfloat16 on an H100; some also without determinism."""
    file = tmp_path_factory.mktemp("simulation") / "steps.json"
    pairs = [*MODELS, *OTHERS, *(f"{pair}:off" for pair in MODELS)]
    command = [sys.executable, "-m", "attnseg.gpu.simulation", *pairs, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads(file.read_text())
    assert len(records) == len(pairs)
    return {(f"{record['model']}/{record['attn']}", record["mode"]): record for record in records}


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
