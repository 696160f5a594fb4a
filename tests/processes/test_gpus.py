"""Jobs that run at once share GPUs out. The GPUs are names: none is needed, only the locks."""

import multiprocessing
import os
from types import SimpleNamespace

import pytest
import torch

from attnseg.processes import gpus
from tests.limits import HANG


def config(devices=1, share=1, accelerator="gpu"):
    trainer = SimpleNamespace(accelerator=accelerator, devices=devices, jobs_per_gpu=share)
    return SimpleNamespace(trainer=trainer)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Three GPUs, and a folder of locks that no other test has."""
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(gpus, "PAUSE", 0.02)
    for name in (gpus.VISIBLE, *gpus.CHOSEN):
        monkeypatch.delenv(name, raising=False)


def hold(settings, connection):
    with gpus.leased(settings) as lease:
        lease()
        connection.send(os.environ.get(gpus.VISIBLE))
        connection.poll(HANG)


class Job:
    """A process that holds a lease until it is told to go on, or killed."""

    def __init__(self, settings):
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=hold, args=(settings, theirs))
        self.process.start()

    def waits(self):
        return not self.connection.poll(0.5)

    def answer(self):
        assert self.connection.poll(HANG)
        return self.connection.recv()


@pytest.fixture
def start():
    """Start jobs; none outlives the test."""
    started = []

    def job(settings):
        started.append(Job(settings))
        return started[-1]

    yield job
    for one in started:
        one.process.kill()
        one.process.join()


def test_each_job_gets_another_gpu_and_the_next_one_waits(machine, start):
    jobs = [start(config()) for _ in range(3)]
    found = [job.answer() for job in jobs]
    assert set(found) == {"0", "1", "2"}
    last = start(config())
    assert last.waits()
    jobs[1].connection.send("go on")
    assert last.answer() == found[1]


def test_a_killed_job_gives_its_gpu_back(machine, start, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "GPU-a")
    job = start(config())
    assert job.answer() == "GPU-a"
    job.process.kill()
    assert start(config()).answer() == "GPU-a"


def test_two_jobs_share_a_gpu_if_asked_and_spread_out_first(machine, start, monkeypatch):
    monkeypatch.setenv(gpus.VISIBLE, "4,7")
    found = [start(config(share=2)).answer() for _ in range(4)]
    assert sorted(found[:2]) == ["4", "7"]
    assert sorted(found) == ["4", "4", "7", "7"]


def test_a_job_on_several_gpus_takes_all_or_none(machine, start):
    assert start(config()).answer() == "0"
    assert start(config(devices=3)).waits()
    assert start(config(devices=2)).answer() == "1,2"


@pytest.mark.parametrize(
    ("settings", "variable"), [(config(accelerator="cpu"), None), (config(), "SLURM_JOB_ID")]
)
def test_nothing_is_leased_without_a_gpu_or_where_a_cluster_chose(
    machine, start, monkeypatch, settings, variable
):
    if variable:
        monkeypatch.setenv(variable, "1")
    assert [start(settings).answer() for _ in range(4)] == [None] * 4
