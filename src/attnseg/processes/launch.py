"""Processes that `torchrun` or `srun` started for one run: the first leads, the others follow."""

import hashlib
import os
from datetime import timedelta
from pathlib import Path

from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from attnseg.errors import ConfigError
from attnseg.processes.cluster import environment

PATIENCE = timedelta(days=2)  # the first process may have a dataset to prepare


class Together:
    """The processes of a run, if somebody else started them.

    Args:
        devices: how many the run is configured for.
        text: the configuration, by which processes know each other's run.

    Attributes:
        follows: whether this process is one of the others.
        processes: on this machine, if somebody else started them.
        machines: on which they are.

    Raises:
        ConfigError: another number was started.
    """

    def __init__(self, devices: int, text: str = "") -> None:
        self.processes, self.machines, self.follows = devices, 1, False
        self._store: Store | None = None
        self._key = f"attnseg/{hashlib.sha256(text.encode()).hexdigest()}"
        found = environment()
        if isinstance(found, LightningEnvironment):
            return
        world, rank = found.world_size(), found.global_rank()
        if world != devices:
            raise ConfigError(
                f"trainer.devices: {devices}, but {world} processes were started; set "
                f"trainer.devices={world}"
            )
        self.follows = rank > 0
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 0))  # torchrun's
        self.machines = world // here if here else int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
        self.processes = world // self.machines
        if world > 1:
            os.environ["MASTER_ADDR"] = found.main_address
            os.environ["MASTER_PORT"] = str(found.main_port)
            self._store, _, _ = next(rendezvous("env://", rank, world))

    def wait(self) -> Path | None:
        """Return the run folder once the first process has it; `None` if there is none to train."""
        assert self._store is not None
        self._store.wait([self._key], PATIENCE)
        folder = self._store.get(self._key).decode()
        return Path(folder) if folder else None

    def tell(self, folder: Path | None) -> None:
        """Let the others follow in a run folder, or end."""
        if self._store is not None:
            self._store.set(self._key, "" if folder is None else str(folder.resolve()))
