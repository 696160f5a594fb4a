"""The acceptance run of a GPU: outcomes, limits, its report, and the command's rehearsal."""

import json
import math
import multiprocessing
import os
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch

from attnseg.cli.program import COMMANDS
from attnseg.commands import check_gpu
from attnseg.errors import ConfigError
from attnseg.gpu import acceptance, machine, settings, training_step
from attnseg.gpu.acceptance import Section
from attnseg.gpu.equality import compare_gradients
from attnseg.gpu.published import find_card
from attnseg.gpu.settings import Settings
from attnseg.gpu.training_step import Shape, TrainingStep, compose_run


def run_rows(tmp_path, measure, limit=20.0):
    section = Section("some section", 10, measure, "all is well")
    return acceptance.run_section(section, Settings("cpu", str(tmp_path)), limit)


def test_a_section_passes_by_rows_without_a_problem(tmp_path, capsys):
    outcome = run_rows(tmp_path, lambda settings: iter([{"name": "speed", "ms": 1.23456}]))
    assert (outcome.rows, outcome.problems) == ([{"name": "speed", "ms": 1.23456}], [])
    assert "   speed: ms 1.23\nPASS some section" in capsys.readouterr().out


def test_a_problem_an_error_and_a_crash_fail(tmp_path, capsys):
    def fail(settings):
        yield {"name": "speed", "problem": "too slow"}
        raise RuntimeError("no such kernel")

    def crash(settings):
        yield {"name": "first"}
        os._exit(7)

    problems = run_rows(tmp_path, fail).problems
    assert problems == ["speed: too slow", "error: RuntimeError: no such kernel"]
    assert "no such kernel" in (tmp_path / "check-gpu.log").read_text()
    outcome = run_rows(tmp_path, crash)
    assert outcome.rows == [{"name": "first"}]
    assert outcome.problems[0].startswith("died (7)")
    assert capsys.readouterr().out.count("FAIL some section") == 2


def test_a_section_is_cut_off_at_its_limit_and_keeps_its_rows(tmp_path):
    def sleep(settings):
        yield {"name": "first"}
        time.sleep(60)

    outcome = run_rows(tmp_path, sleep, limit=2.0)
    assert outcome.rows == [{"name": "first"}]
    assert outcome.problems[0].startswith("cut off at its limit of 2 s")
    assert outcome.seconds < 30


def test_an_interrupted_section_leaves_no_process(tmp_path, monkeypatch):
    """Ctrl-C reaches the parent alone, which would wait for its child without end."""

    def interrupt(row):
        raise KeyboardInterrupt

    monkeypatch.setattr(acceptance, "format_row", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_rows(tmp_path, lambda settings: iter([{"name": "first"}]))
    assert multiprocessing.active_children() == []


def test_chosen_sections_share_the_whole_budget(tmp_path):
    sections = [Section(n, 10, lambda s: iter([{"name": "row"}]), "all is well") for n in "ab"]
    report = acceptance.run_acceptance("cpu", str(tmp_path), 120, sections)
    assert [section["limit"] for section in report["sections"]] == [60, 60]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([{"name": "GPU"}, {"name": "products", "problem": "slow"}], ["machine", "next"]),
        ([{"name": "GPU", "problem": "no kernel image"}], ["machine"]),
        ([], ["machine"]),
    ],
)
def test_only_an_unusable_gpu_ends_the_run(tmp_path, monkeypatch, rows, wanted):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(acceptance, "check_driver", lambda: None)
    sections = [Section(n, 10, lambda s: iter(rows), "all is well") for n in ("machine", "next")]
    report = acceptance.run_acceptance("cuda", str(tmp_path), 480, sections)
    assert [section["name"] for section in report["sections"]] == wanted


def test_clocks_are_those_of_the_tested_gpu(tmp_path, monkeypatch):
    commands = []

    def record(command, **options):
        commands.append(command)
        return SimpleNamespace(stdout="clocks\n1980 MHz\n")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    monkeypatch.setattr(subprocess, "run", record)
    assert acceptance.read_clocks(Settings("cuda", str(tmp_path))) == "clocks; 1980 MHz"
    assert commands[0][1:3] == ["-i", "2"]


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA T400 4GB", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None), ("NVIDIA A100X", None),
    ],
)  # fmt: skip
def test_cards_are_named_by_whole_words_without_variants(name, card):
    assert find_card(name) == card


@pytest.mark.parametrize(("chosen", "rate"), [("16-mixed", "float16"), ("bf16-mixed", "bf16")])
def test_a_card_is_held_to_the_precision_that_training_would_choose(
    tmp_path, monkeypatch, chosen, rate
):
    """A T4 emulates bfloat16, at a fraction of float16's rate."""
    monkeypatch.setattr(settings, "fastest_precision", lambda accelerator: (chosen, "as it is"))
    subject = Settings("cuda", str(tmp_path))
    assert subject.precision == chosen
    assert subject.precisions == list(dict.fromkeys([chosen, "16-mixed"]))
    gemm = machine.Gemm(torch.device("cpu"), [training_step.PRODUCTS[chosen]], 16)
    assert set(gemm.rates()) == {"float32", rate}


@pytest.mark.parametrize("spoilt", [0, 1])
def test_a_gradient_that_is_nan_is_the_worst(spoilt):
    here, there = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for net in (here, there):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
    name, parameter = list(there.named_parameters())[spoilt]
    parameter.grad[0] = math.nan
    share, worst = compare_gradients(here, there)
    assert math.isnan(share) and worst == name
    share, worst = compare_gradients(there, here)  # on the CPU
    assert math.isnan(share) and worst == name


def test_float16_is_scaled_and_an_overflow_changes_no_weight():
    options = ["trainer.precision=16-mixed", "trainer.gradient_clip=null"]
    training = TrainingStep(compose_run("setr", "kv", "tiny", Shape(), options), Shape())
    training.move_to("cpu")
    weight = next(training.module.model.parameters())
    before, scale = weight.detach().clone(), training.scaler.get_scale()
    for value, moves in ((math.inf, False), (scale, True)):
        for parameter in training.module.model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        training.scaler.scale(torch.zeros(()))
        training.module.on_before_optimizer_step = lambda optimizer: None
        training.update_weights()
        assert torch.equal(weight, before) != moves
        assert training.scaler.get_scale() == scale / 2  # after the overflow, and kept later
        assert moves is False or torch.allclose(weight.grad, torch.tensor(2.0))


def test_the_report_names_outcomes_and_what_is_not_finite(tmp_path):
    def measure(settings):
        yield {"name": "loss", "value": float("nan"), "problem": "not finite"}

    section = Section("some section", 10, measure, "all is well")
    report = acceptance.run_acceptance("cpu", str(tmp_path), 480, [section])
    page = acceptance.format_report(report)
    assert "A rehearsal on a CPU" in page
    assert "## some section: FAIL" in page
    assert json.loads(acceptance.report_to_json(report))["sections"][0]["rows"][0]["value"] == "nan"


def test_the_command_measures_the_machine_without_a_gpu(tmp_path, capsys):
    command = COMMANDS["check-gpu"]
    raw = {
        "device": "cpu", "budget": 480, "sections": ["machine"], "page": str(tmp_path / "gpu.md"),
        "json": str(tmp_path / "gpu.json"), "folder": str(tmp_path), "choices": {},
    }  # fmt: skip
    command.run(command.parse(raw))
    assert "PASS machine" in capsys.readouterr().out
    assert "## machine: PASS" in (tmp_path / "gpu.md").read_text()
    assert json.loads((tmp_path / "gpu.json").read_text())["device"] == "cpu"
    with pytest.raises(ConfigError, match="sections: 'machin' is not allowed"):
        command.run(command.parse({**raw, "sections": ["machin"]}))


@pytest.mark.parametrize("problems", [[], ["too slow"]])
def test_temporary_files_are_kept_only_if_a_section_fails(tmp_path, monkeypatch, capsys, problems):
    report = {"sections": [{"problems": problems}]}
    monkeypatch.setattr(acceptance, "run_acceptance", lambda *arguments: report)
    monkeypatch.setattr(check_gpu.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "files"))
    command = COMMANDS["check-gpu"]
    raw = {"device": "cpu", "budget": 9, "sections": [], "page": None, "json": None}
    options = command.parse({**raw, "folder": None, "choices": {}})
    if problems:
        with pytest.raises(SystemExit, match="3"):
            command.run(options)
        assert capsys.readouterr().out == f"files: {tmp_path / 'files'}\n"
    else:
        command.run(options)
    assert (tmp_path / "files").exists() == bool(problems)


@pytest.mark.full
def test_a_rehearsal_of_equality_passes(tmp_path):
    wanted = {"devices", "steps", "determinism"}
    sections = [section for section in acceptance.SECTIONS if section.name in wanted]
    report = acceptance.run_acceptance("cpu", str(tmp_path), 4800, sections)
    assert [section["problems"] for section in report["sections"]] == [[], [], []]
    assert all(section["rows"] for section in report["sections"])
