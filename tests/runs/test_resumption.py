"""What has changed when a run is resumed: told, or refused where results could differ."""

import json
import logging
import signal

import pytest

from attnseg.config.identity import affects_rounding
from attnseg.errors import ConfigError
from attnseg.runs.active_run import ActiveRun
from attnseg.runs.facts import RunFacts
from attnseg.runs.resumption import check_resumption
from attnseg.runs.run_folder import RunFolder
from tests.faults.runs import attempt, configured, run_of, send_at

HERE = {"attnseg": "0.2.0", "torch": "2.11.0"}
GIT = {"commit": "a" * 40, "modified": False}


def resume(folder, *options, versions=HERE, git=GIT):
    """Check the resumption of a run with other options, versions or code."""
    run = RunFolder(folder)
    run.config_file.write_text(configured(folder).to_yaml())
    before = RunFacts(status="stopped", versions=HERE, git=GIT)
    check_resumption(run, before, configured(folder, *options), versions, git)


def test_nothing_is_said_of_what_has_not_changed(tmp_path, caplog):
    resume(tmp_path)
    resume(tmp_path, git=None)
    resume(tmp_path, versions={**HERE, "new": "1.0"})
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        ([], {"versions": {**HERE, "torch": "2.12.0"}}, "torch 2.11.0, now 2.12.0"),
        ([], {"versions": {**HERE, "attnseg": "0.3.0"}}, "attnseg 0.2.0, now 0.3.0"),
        (["trainer.accelerator=gpu"], {}, "trainer.accelerator=cpu, now gpu"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32"], {}, "trainer.devices"),
    ],
)
def test_what_could_change_results_is_refused_or_allowed_by_name(
    tmp_path, caplog, options, changed, message
):
    with pytest.raises(ConfigError, match=r"results could differ; restore that") as error:
        resume(tmp_path, *options, **changed)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    resume(tmp_path, *options, "trainer.resume_changed=true", **changed)
    assert message in caplog.text


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        (["trainer.num_workers=2"], {}, "trainer.num_workers=0, now 2"),
        ([], {"git": {"commit": "b" * 40, "modified": False}}, "commit aaaaaaaaaa, now bbbbbbbbbb"),
    ],
)
def test_what_cannot_is_told(tmp_path, caplog, options, changed, message):
    with caplog.at_level(logging.WARNING):
        resume(tmp_path, *options, **changed)
    assert message in caplog.text


def test_another_device_is_told(tmp_path, caplog, monkeypatch):
    config = configured(tmp_path)
    for processor in ("first", "first", "second"):
        assert caplog.text == ""
        monkeypatch.setattr("platform.processor", lambda name=processor: name)
        run = ActiveRun(config, "id")
        run.note_device(config)
        run.folder.last_checkpoint.touch()
        run.end("stopped")
    assert "results could differ: device first, " in caplog.text
    assert ", now second, " in caplog.text


def test_options_that_may_change_the_last_digits():
    assert affects_rounding("trainer.accelerator") and affects_rounding("trainer.devices")
    assert not affects_rounding("trainer.num_workers") and not affects_rounding("unheard.of")


def test_a_run_that_another_version_began(tmp_path):
    kill = send_at("step", 18, signal.SIGKILL)
    options = ("trainer.max_epochs=2",)
    assert attempt(tmp_path, *options, fault=kill) == -signal.SIGKILL
    path = run_of(tmp_path) / "run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "versions": {**facts["versions"], "torch": "2.0.0"}}))
    assert attempt(tmp_path, *options) == 2
    output = (tmp_path / "output").read_text()
    assert output[output.rindex("error: ") :].count("\n") == 1
    assert "torch 2.0.0, now " in output
    assert attempt(tmp_path, *options, "trainer.resume_changed=true") == 0
