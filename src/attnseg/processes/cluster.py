"""Who started the processes of a run: we ourselves, `srun` or `torchrun`."""

import os

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment


def environment() -> ClusterEnvironment:
    """Return how Lightning finds the other processes of a run.

    Left to itself, Lightning takes any process inside a SLURM job for one of several, and requeues
    it with a checkpoint of its own. A run that is requeued goes on from its last epoch here.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # set by srun, not by sbatch
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()
