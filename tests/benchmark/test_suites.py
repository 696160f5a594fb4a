"""Each suite runs on tiny sizes, and its numbers fit each other."""

import importlib
import itertools
import json
import multiprocessing
import subprocess
import sys
import time
from functools import partial, wraps
from types import SimpleNamespace

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from attnseg.benchmark import machine, report, step, suites, timing, workload
from attnseg.benchmark.options import Benchmark
from attnseg.config.budget import build_model
from attnseg.config.errors import parse_options
from attnseg.config.folder import configs_folder
from attnseg.data.slices import SliceDataset
from attnseg.errors import ConfigError
from attnseg.training.module import SegmentationModule
from scripts.benchmarks import check, loader, overhead, safety, scaling, startup, volume
from scripts.benchmarks.run import MAINTAINERS_SUITES
from tests.contracts.groups import names
from tests.contracts.pairs import bare, product
from tests.limits import Clock

pytestmark = pytest.mark.system
BOTH = ["float32", "bf16"]


@pytest.fixture
def has_bf16(monkeypatch):
    monkeypatch.setattr(machine, "computed_precisions", lambda names, device: list(names))


def test_works_alternate():
    order = []
    shown = itertools.count()
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = timing.alternate(works, 3, lambda: {"n": next(shown)})
    assert order == list("ab" + "abbaab")  # one round to warm up, then there and back
    assert [sample.gauge["n"] for sample in samples["a"]] == [0, 3, 4]
    assert [sample.gauge["n"] for sample in samples["b"]] == [1, 2, 5]


def test_identical_works_take_the_same_time_and_a_double_one_twice_as_long(monkeypatch):
    monkeypatch.setattr(timing, "time", clock := Clock())
    works = {name: partial(clock.advance, 1) for name in ("once", "again")}
    works["double"] = partial(clock.advance, 2)
    found = {
        name: timing.median_and_range(s.seconds for s in samples)["median"]
        for name, samples in timing.alternate(works, 5).items()
    }
    assert found == {"once": 1, "again": 1, "double": 2}


def test_units_by_hand():
    """2 s at 100 GFLOP/s is 200 GFLOP, of 4 images 50 each; 40 of them counted is 80 %."""
    samples = [timing.Sample(2.0, {"float32": 100.0})]
    assert step.equivalents(samples, batch_size=4) == [50.0]
    assert step.mfu(work=40.0, seconds=2.0, rate=100.0, batch_size=4) == pytest.approx(0.8)


def test_gauge_multiplies():
    gauge = machine.Gemm(torch.device("cpu"), ["bf16"], size=128)
    assert gauge.rates().keys() == {"float32", "bf16"}
    assert all(0.001 < rate < 1e5 for rate in gauge.rates().values())


def test_imitated_precision_is_left_out(monkeypatch):
    rates = {"float32": 100.0, "bf16": 49.0}
    monkeypatch.setattr(machine.Gemm, "rates", lambda self: rates)
    assert machine.computed_precisions(BOTH, torch.device("cpu")) == ["float32"]
    rates["bf16"] = 51.0
    assert machine.computed_precisions(BOTH, torch.device("cpu")) == BOTH


def test_step(rows, has_bf16):
    float32, bf16 = rows("step", "workload=cvt")
    assert [float32["precision"], bf16["precision"]] == BOTH
    # 6 x MACs over the GEMM-equivalent, both per image, is the share of the rate.
    shares = [
        100 * float32["work"] / float32["equivalent"][end] for end in ("max", "median", "min")
    ]
    found = [float32["mfu"][end] for end in ("min", "median", "max")]
    assert found[::2] == pytest.approx(shares[::2])
    assert found[0] <= found[1] <= found[2]
    assert float32["ratio"] == pytest.approx(float32["equivalent"]["median"] / 39)
    assert float32["published_mfu"] == pytest.approx(100 * 27 / 39)
    assert float32["batch"] == 2
    assert 0.1 < float32["peak_gib"] < 8
    assert "published" not in bf16  # of CvT, nothing was measured under bf16


def test_latency(rows):
    (row,) = rows("latency", "workload=setr", "precisions=[float32]")
    assert row["share"]["max"] == pytest.approx(100 * row["work"] / row["equivalent"]["min"])
    assert row["published"] == pytest.approx(1.269 * 195)
    assert row["ms"]["min"] > 0


def test_memory_of_each_precision_is_of_a_process_of_its_own(rows, has_bf16):
    found = rows("memory", "model=setr")
    assert sorted(row["precision"] for row in found) == sorted(BOTH)
    assert all(row["step_mib"] > row["forward_mib"] > 0 for row in found)


def test_volume(rows, monkeypatch):
    monkeypatch.setattr(volume, "SLICES", 3)
    plain, ours = rows("volume", "model=setr", "precisions=[float32]")
    assert plain["speedup"] == {"median": 1, "min": 1, "max": 1}
    assert ours["per_slice_ms"] == pytest.approx(1e3 * ours["seconds"]["median"] / 3)
    assert ours["speedup"]["min"] <= ours["speedup"]["median"] <= ours["speedup"]["max"]


def test_loading(rows):
    found = {row["what"]: row for row in rows("loading", "precisions=[float32]")}
    assert found["store"]["speedup"] > 1
    assert found["decoding"]["speedup"] == pytest.approx(1)
    assert found["loader, 0 processes"]["rate"]["median"] > 10
    assert 0 <= found["training setr"]["waiting"] < 100


def test_loader(rows, monkeypatch):
    """Each augmented pixel counts as one second, so that nothing else matters."""
    change, augmented = SliceDataset._change, multiprocessing.Value("q")  # by all processes

    def count(dataset, image, mask, *arguments):
        with augmented:
            augmented.value += mask.size
        return change(dataset, image, mask, *arguments)

    def tell_time():
        return time.perf_counter() + augmented.value

    monkeypatch.setattr(SliceDataset, "_change", count)
    monkeypatch.setattr(loader, "time", SimpleNamespace(perf_counter=tell_time))
    monkeypatch.setattr(loader, "PROCESSES", (0, 2))
    monkeypatch.setattr(loader, "SIZES", (16, 128))
    *found, files = rows("loader", "augment=strong")
    assert [(row["size"], row["processes"]) for row in found] == [
        ("16x16", 0), ("16x16", 2), ("128x128", 0), ("128x128", 2),
    ]  # fmt: skip
    assert all(row[rate]["min"] > 0 for row in found for rate in ("rate", "cold"))
    small, large = found[0]["rate"], found[2]["rate"]
    for end in ("min", "max"):  # a sixty-fourth of the pixels to augment
        assert small[end] / large[end] == pytest.approx(64, rel=0.1)
    assert files["bytes"]["median"] > 0


CODE = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, classes, factor=1):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1, stride=factor)

    def forward(self, images):
        return self.layer(images), self.layer(images)


def broken():
    raise RuntimeError("no weights")


class Named(Network):
    def forward(self, images):
        return {"logits": self.layer(images)}


class OfOneSize(Network):
    def forward(self, images):
        assert images.shape[-1] == 224, "not 224 pixels"
"""
OPTIONS = """
import argparse

arguments = argparse.ArgumentParser()
arguments.add_argument("data")
arguments.parse_args()
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "code" / "networks").mkdir(parents=True)
    (tmp_path / "code" / "networks" / "published.py").write_text(CODE)
    (tmp_path / "code" / "networks" / "options.py").write_text(OPTIONS)
    yield f"checkout.folder={tmp_path / 'code'}"
    for name in ("networks.published", "networks.options", "networks"):
        sys.modules.pop(name, None)


NETWORK = ("checkout.network=networks.published:Network", "checkout.options={classes: 9}")


def test_checkout(rows, checkout, tmp_path):
    def git(*words):
        command = [
            "git",
            "-C",
            tmp_path / "code",
            "-c",
            "user.name=a",
            "-c",
            "user.email=a",
            *words,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "code")
    (tmp_path / "code/networks/options.py").write_text("")
    ours, theirs = rows("checkout", checkout, *NETWORK)
    assert theirs["checkout_commit"] == f"{git('rev-parse', 'HEAD')}, modified"
    assert theirs["parameters"] == 3 * 9 + 9
    assert theirs["macs"] == 2 * 3 * 9 * 32 * 32  # the network computes its layer twice
    assert ours["parameters"] > 1000
    assert ours["step_ratio"] > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "checkout: names no published code"),
        (["network=networks.published:broken"], "fails with RuntimeError: no weights"),
        (["network=networks.absent:Network"], "fails with ModuleNotFoundError"),
        (["network=networks.published:torch.Size"], "makes a Size, no network"),
        (["network=networks.options:Network"], "fails with SystemExit"),
        (["network=json:JSONDecoder"], "json is a module of"),
        (
            ["network=networks.published:Network", "options={classes: 9, factor: 2}"],
            "an output of 2 images is (2, 9, 16, 16) in place of (2, 9, 32, 32)",
        ),
        (
            ["network=networks.published:Named", "options={classes: 9}"],
            "an output of 2 images is str in place of (2, 9, 32, 32)",
        ),
        (
            ["network=networks.published:OfOneSize", "options={classes: 9}"],
            "fails with AssertionError: not 224 pixels",
        ),
    ],
)
def test_wrong_checkouts_are_refused(bench, checkout, options, message):
    options = [f"checkout.{option}" for option in options]
    code, _, err = bench("suite=checkout", checkout, *options)
    assert code == 2
    assert message in err


def test_a_failure_of_our_model_is_not_that_of_a_checkout(bench, checkout, monkeypatch):
    def fail(load, precision="float32"):
        raise RuntimeError("ours fails first")

    monkeypatch.setattr(workload.Workload, "forward", fail)
    code, _, err = bench("suite=checkout", checkout, *NETWORK)
    assert code == 1
    assert err.startswith("error: RuntimeError: ours fails first; this is a bug of ours")


def test_overhead(rows, monkeypatch):
    """Each loop's step takes exactly as long as is set here."""
    monkeypatch.setattr(overhead, "time", clock := Clock())

    def lengthen(owner, name, seconds):
        method = getattr(owner, name)

        @wraps(method)
        def longer(*arguments):
            clock.advance(seconds)
            return method(*arguments)

        monkeypatch.setattr(owner, name, longer)

    lengthen(SegmentationModule, "training_step", 1.5)
    lengthen(overhead.BareLoop, "autocast", 1.0)
    lengthen(overhead.PlainLightning, "training_step", 1.25)
    engine, bare, stock = rows("overhead", "trainer.limit_batches=4")
    # Of each epoch, all steps but the first.
    assert engine["steps"] == bare["steps"] == stock["steps"] == 2 * 3
    assert [loop["ms"]["median"] for loop in (engine, bare, stock)] == [1500, 1000, 1250]
    assert engine["overhead"]["median"] == 50
    assert stock["overhead"]["median"] == 25


def test_safety(rows, monkeypatch):
    check_loss = safety.SegmentationModule.check_loss
    save, step_of = safety.AtomicCheckpointIO.save_checkpoint, safety.Workload.step
    modes = []

    def slow_check(*arguments):
        time.sleep(0.02)
        return check_loss(*arguments)

    def slow_save(*arguments, **named):
        time.sleep(0.5)
        return save(*arguments, **named)

    def told(load):
        modes.append(torch.are_deterministic_algorithms_enabled())
        step_of(load)

    monkeypatch.setattr(safety.Workload, "step", told)
    monkeypatch.setattr(safety.SegmentationModule, "check_loss", slow_check)
    monkeypatch.setattr(safety.AtomicCheckpointIO, "save_checkpoint", slow_save)
    checks, deterministic, theirs, ours = rows("safety", "trainer.limit_batches=4")
    assert checks["ms"]["min"] >= 20
    assert checks["share"]["median"] > 0
    assert ours["ms"]["min"] >= 500
    assert ours["ratio"]["median"] > 1
    assert theirs["mib"] == ours["mib"] > 1
    assert modes == [True, False, True, False, False, True]  # one round to warm up
    assert deterministic["ms"]["min"] <= deterministic["ms"]["max"]


def test_calls_are_timed_only_within_the_block():
    class Sleeper:
        def sleep(self):
            time.sleep(0.01)

    with safety.timed([(Sleeper, "sleep")]) as calls:
        Sleeper().sleep()
    Sleeper().sleep()
    assert len(calls) == 1
    assert calls[0] >= 0.01


def test_startup(rows, monkeypatch):
    kept = ("python (an empty program)", "train.py optimizer.lrr=1 (wrong)")
    monkeypatch.setattr(startup, "COMMANDS", {key: startup.COMMANDS[key] for key in kept})
    empty, wrong = rows("startup", "repeats=1")
    assert (empty["code"], wrong["code"]) == (0, 2)
    assert empty["seconds"]["median"] < wrong["seconds"]["median"]
    assert wrong["torch"] == "no"


def test_scaling(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "START", "fork")  # the tests have one thread
    monkeypatch.setattr(scaling, "TOKENS", (16, 64))
    found = rows("scaling", "model=setr", "repeats=1")
    assert {row["at"] for row in found if row["axis"] == "tokens"} == {16, 64}
    assert [row["at"] for row in found if row["axis"] == "batch"] == [1, 2]
    step = next(row for row in found if row["axis"] == "batch" and row["at"] == 2)
    assert step["images_per_s"]["median"] == pytest.approx(2e3 / step["ms"]["median"])
    (alone,) = [row for row in found if row["axis"] == "processes"]
    assert alone["images_per_s"]["median"] > 0
    assert (tmp_path / "outputs/benchmark/scaling/scaling.png").is_file()


def test_every_suite_has_a_module_with_its_function():
    assert set(suites.SUITES) == {"step", "latency", "memory", "cost", "checkout"}
    assert len(MAINTAINERS_SUITES) == 8
    for name, suite in {**suites.SUITES, **MAINTAINERS_SUITES}.items():
        module = importlib.import_module(f"{suite.package}.{name}")
        assert callable(getattr(module, f"measure_{name}"))
        assert module.COLUMNS


def test_a_suite_has_one_process_per_workload_and_precision_unless_the_command_line_chooses():
    found = suites.split_suite("memory", ["suite=memory"])
    assert len(found) == 2 * len(names("workload")) >= 18
    assert ["suite=memory", "workload=cvt", "precisions=[float32]"] in found
    assert len(suites.split_suite("memory", ["suite=memory", "model=setr"])) == 2
    assert suites.split_suite("memory", ["precisions=[float32]", "model=setr"]) == []
    variants = suites.split_suite("cost", ["batch_size=2"])
    assert len(variants) == len(product()) + len(bare())
    assert suites.split_suite("cost", ["attn=kv_pos", "against=kv"]) == []
    assert len(suites.split_suite("step", ["against=null"])) == len(names("workload"))
    every = [overrides[-1] for overrides in suites.split_suite("all", [])]
    assert every == [f"suite={name}" for name in suites.SUITES if name != "checkout"]


@pytest.mark.parametrize("key", ["attn", "against"])
def test_workloads_whose_models_cannot_have_the_attention_are_left_out(key, caplog):
    without = ["workload=unet", "workload=unet_resenc"]
    with caplog.at_level("INFO"):
        found = [overrides[-1] for overrides in suites.split_suite("step", [f"{key}=kv"])]
    assert len(found) == len(names("workload")) - 2 and not set(found) & set(without)
    assert "Left out" in caplog.text and "unet, unet_resenc" in caplog.text
    bare = suites.split_suite("step", [f"{key}=none"])
    assert [overrides[-1] for overrides in bare] == without


def test_all_leaves_out_what_is_measured_only_by_name(monkeypatch):
    monkeypatch.setattr(suites, "SUITES", {**suites.SUITES, **MAINTAINERS_SUITES})
    every = suites.split_suite("all", [])
    missing = {name for name in suites.SUITES if [f"suite={name}"] not in every}
    assert missing == {"check", "checkout", "loader"}


def test_all_joins_the_tables(bench, tmp_path, monkeypatch):
    kept = {name: suites.SUITES[name] for name in ("latency", "memory")}
    monkeypatch.setattr(suites, "SUITES", kept)
    code, _, err = bench("suite=all", "model=setr", "precisions=[float32]")
    assert code == 0, err
    page = (tmp_path / "outputs/benchmark/benchmarks.md").read_text()
    assert page.count("    attnseg benchmark suite=") == page.count("\n## ") + 1 == 2
    assert page.count("| setr-tiny-qkv | float32 |") == 2


# Those whose published code was not measured.
UNMEASURED = {"crossvit", "hierarchical", "missformer", "unet", "unet_resenc"}


@pytest.mark.parametrize("name", names("workload"))
def test_workloads_are_published_sizes(name):
    config = parse_options(Benchmark, _compose(f"workload={name}"))
    assert (config.published is None) == (name in UNMEASURED)
    assert config.optimizer.target == "torch.optim.SGD"
    assert config.optimizer.options["momentum"] == 0.9
    assert (config.loss.options["dice_weight"], config.loss.options["ce_weight"]) == (0.6, 0.4)
    with torch.device("meta"):
        build_model(config.model, config.attn, 3, 9, config.image_size)


def _compose(*overrides):
    with hydra.initialize_config_dir(str(configs_folder()), version_base="1.3"):
        composed = hydra.compose("benchmark", list(overrides))
    return {**OmegaConf.to_container(composed, resolve=True), "choices": {"dataset": "phantom"}}


@pytest.mark.parametrize(("ratio", "code"), [(1.0, 0), (99.0, 1)])
def test_check_fails_beyond_a_bound(bench, monkeypatch, ratio, code):
    measured = []

    def measure(config, device):
        measured.append(ratio)
        return ratio

    assert set(json.loads(check.BOUNDS.read_text())) == set(check.RATIOS)
    monkeypatch.setattr(check, "RATIOS", {"engine step / bare loop": measure})
    found, out, err = bench("suite=check")
    assert found == code, err
    assert "engine step / bare loop: " in out
    assert len(measured) == 1 + code  # what is beyond its bound is measured again
    if code:
        assert err.count("\n") == 1
        assert "bounds: engine step / bare loop 99.0 instead of at most" in err


def test_check_measures_every_ratio(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SLICES", 2)
    bounds = {key: {"default": 1000000000.0} for key in check.RATIOS}
    (tmp_path / "bounds.json").write_text(json.dumps(bounds))
    monkeypatch.setattr(check, "BOUNDS", tmp_path / "bounds.json")
    code, out, err = bench("suite=check", "repeats=1", "trainer.limit_batches=3")
    assert code == 0, err
    assert [name for name in check.RATIOS if f"{name}: " in out] == list(check.RATIOS)


def test_cells():
    assert report.format_cell({"median": 1.2345, "min": 1, "max": 123.4}) == "1.23 (1 to 123)"
    assert report.format_cell(21_490_000_000) == "21.49 G"
    assert report.format_cell(29_690_201) == "29,690,201"
    assert (report.format_cell(0.0228), report.format_cell(None), report.format_cell("kv")) == (
        "0.0228",
        "-",
        "kv",
    )


def test_a_column_in_which_nothing_stands_is_left_out():
    found = [{"label": "a", "rows": [{"x": 1, "y": None}, {"x": 2}]}]
    text = report.format_table({"label": "model", "x": "X", "y": "Y"}, found)
    assert text.splitlines() == ["| model | X |", "|---|---|", "| a | 1 |", "| a | 2 |"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["suite=stepp"], "suite: 'stepp' is not allowed"),
        (["suite=step", "workload=transnet"], "workload: no 'transnet'; did you mean transunet?"),
        (["suite=step", "precisions=[]"], "precisions: [] is not allowed"),
        (["suite=step", "threads=0"], "threads: 0 is not allowed"),
    ],
)
def test_wrong_suites(bench, arguments, message):
    code, _, err = bench(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU found"):
        machine.choose_device("cuda", None)
