"""The processes of a distributed run, started by Lightning, `torchrun` or `srun`."""

import hashlib
import os
from datetime import timedelta
from pathlib import Path

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from attnseg.errors import ConfigError
from attnseg.system import count_usable_cores

PATIENCE = timedelta(days=2)  # The leader may have to prepare a large dataset first.


def cluster_environment() -> ClusterEnvironment:
    """Return the environment by which Lightning finds the other processes of a run.

    Left to itself, Lightning takes any process inside a SLURM job for one of several, and requeues
    the job with a checkpoint of its own. Here, a requeued run resumes from its last epoch.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # Set by srun, not by sbatch.
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def count_own_cores(world: int) -> int:
    """Return the number of cores of this machine for each of a run's `world` processes."""
    cores = count_usable_cores()
    if isinstance(cluster_environment(), SLURMEnvironment):
        allocated = int(os.environ.get("SLURM_CPUS_ON_NODE", cores))
        if cores < allocated:
            return cores  # srun has bound this process to cores of its own.
        machines = int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
        return allocated * machines // world
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", world))  # Set by torchrun.


class ProcessGroup:
    """The processes that train one run together.

    Started by `torchrun` or `srun`, all of them run the same command. The first one leads: it makes
    the run folder, passes it to the others, and writes all files. Otherwise this process leads and
    Lightning starts the others.

    Args:
        world: number of processes that the run is configured for.
        config_text: the configuration, which identifies the run among the processes.

    Raises:
        ConfigError: another number of processes was started.
    """

    def __init__(self, world: int, config_text: str = "") -> None:
        self.leads = True  # whether this process is the first
        self.machines = 1  # number of machines that the processes are on
        self.per_machine = world  # number of processes on each machine
        self._store: Store | None = None
        self._key = f"attnseg/{hashlib.sha256(config_text.encode()).hexdigest()}"
        environment = cluster_environment()
        if isinstance(environment, LightningEnvironment):
            return
        started, rank = environment.world_size(), environment.global_rank()
        if started != world:
            raise ConfigError(
                f"trainer.devices: {world}, but {started} processes were started; set "
                f"trainer.devices={started}"
            )
        self.leads = rank == 0
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))  # Set by torchrun.
        self.machines = world // local if local else int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
        self.per_machine = world // self.machines
        if world > 1:
            os.environ["MASTER_ADDR"] = environment.main_address
            os.environ["MASTER_PORT"] = str(environment.main_port)
            self._store, _, _ = next(rendezvous("env://", rank, world))

    def send_folder(self, folder: Path | None) -> None:
        """Pass the run folder to the other processes; `None` tells them that nothing is trained."""
        if self._store is not None:
            self._store.set(self._key, "" if folder is None else str(folder.resolve()))

    def receive_folder(self) -> Path | None:
        """Wait for the leader's run folder; `None` if nothing is trained."""
        assert self._store is not None
        self._store.wait([self._key], PATIENCE)
        folder = self._store.get(self._key).decode()
        return Path(folder) if folder else None
