"""Who started a run's processes: read from the variables that SLURM and torchrun set."""

import os
import signal
import time

import pytest
from pytorch_lightning.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from attnseg.processes.launch import cluster_environment
from attnseg.processes.signals import ECHO, Stopping

BATCH = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train"}
STEP = {**BATCH, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "0"}
TWO = {**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_NTASKS_PER_NODE": "1"}
TORCHRUN = {**STEP, "TORCHELASTIC_RUN_ID": "7", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, LightningEnvironment),
        (BATCH, LightningEnvironment),  # python in an sbatch script, without srun
        (STEP, LightningEnvironment),  # a sweep's job: one task
        (TWO, SLURMEnvironment),
        (TORCHRUN, TorchElasticEnvironment),
    ],
    ids=["none", "sbatch", "srun", "srun of two", "torchrun in sbatch"],
)
def test_who_started_the_processes(monkeypatch, variables, kind):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert type(cluster_environment()) is kind


def test_lightning_does_not_requeue_by_itself(monkeypatch):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    assert not cluster_environment().auto_requeue


def test_a_one_task_job_trains_as_anywhere(call, tmp_path, monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert call("experiment=smoke", "trainer.max_epochs=1").code == 0
    assert not list(tmp_path.rglob("hpc_ckpt*"))


def test_a_signal_from_slurm_and_from_the_parent_counts_once():
    stopping = Stopping()
    stopping.install()
    try:
        stopping.deferring = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked == signal.SIGTERM
        time.sleep(ECHO)
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        stopping.restore()
