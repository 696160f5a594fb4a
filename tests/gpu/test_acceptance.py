"""The acceptance run of a GPU: verdicts, limits, its report, and the command's rehearsal."""

import json
import os
import time

import pytest

from attnseg.cli.program import COMMANDS
from attnseg.errors import ConfigError
from attnseg.gpu import acceptance
from attnseg.gpu.acceptance import Section
from attnseg.gpu.settings import Settings


def run_rows(tmp_path, measure, limit=20.0):
    section = Section("some section", 10, measure, "all is well")
    return acceptance.run_section(section, Settings("cpu", str(tmp_path)), limit)


def test_a_section_passes_by_rows_without_a_problem(tmp_path, capsys):
    verdict = run_rows(tmp_path, lambda settings: iter([{"name": "speed", "ms": 1.23456}]))
    assert (verdict.rows, verdict.problems) == ([{"name": "speed", "ms": 1.23456}], [])
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
    verdict = run_rows(tmp_path, crash)
    assert verdict.rows == [{"name": "first"}]
    assert verdict.problems[0].startswith("died (7)")
    assert capsys.readouterr().out.count("FAIL some section") == 2


def test_a_section_is_cut_off_at_its_limit_and_keeps_its_rows(tmp_path):
    def sleep(settings):
        yield {"name": "first"}
        time.sleep(60)

    verdict = run_rows(tmp_path, sleep, limit=2.0)
    assert verdict.rows == [{"name": "first"}]
    assert verdict.problems[0].startswith("cut off at its limit of 2 s")
    assert verdict.seconds < 30


def test_the_report_names_verdicts_and_what_is_not_finite(tmp_path):
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


@pytest.mark.full
def test_a_rehearsal_of_equality_passes(tmp_path):
    wanted = {"devices", "steps", "determinism"}
    sections = [section for section in acceptance.SECTIONS if section.name in wanted]
    report = acceptance.run_acceptance("cpu", str(tmp_path), 4800, sections)
    assert [section["problems"] for section in report["sections"]] == [[], [], []]
    assert all(section["rows"] for section in report["sections"])
