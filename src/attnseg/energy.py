"""Energy by the counters of the hardware: NVML's of GPUs, RAPL's of CPUs.

Nothing is estimated. Where a counter cannot be read, the energy is unknown and the reason is given.
The counter of a GPU leaves out the rest of the machine; that of a CPU covers its whole package (and
the memory, where there is a counter for it), other programs included.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from attnseg.nvml import find_gpu

POWERCAP = Path("/sys/class/powercap")
INTERVAL = 30.0  # Seconds between readings: RAPL's counters start again after some minutes.
JOULES_PER_WH = 3600.0


class Counter:
    """A counter of joules that may start again at 0 once it has reached `limit`."""

    def __init__(self, name: str, read: Callable[[], float], limit: float | None = None) -> None:
        self.name, self.read, self.limit = name, read, limit
        self.last, self.joules = read(), 0.0

    def update(self) -> None:
        """Add the energy since the last reading."""
        now = self.read()
        spent = now - self.last
        if spent < 0 and self.limit is not None:
            spent += self.limit
        self.joules, self.last = self.joules + spent, now


class EnergyMeter:
    """Measures the energy that the device of some work takes within a `with` block.

    Args:
        gpus: names of the GPUs as in CUDA_VISIBLE_DEVICES; `None` measures the CPUs.
        unknown: a reason why the energy of this work cannot be measured, if there is one.

    Attributes:
        source: what is measured, and by which counters; `None` if nothing can be.
        reason: why nothing can be measured.
    """

    def __init__(self, gpus: Sequence[str] | None = None, unknown: str | None = None) -> None:
        self.reason = unknown
        self.source: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_reading, daemon=True)
        self._counters: list[Counter] = []
        try:
            if unknown is None:
                self._counters = cpu_counters() if gpus is None else gpu_counters(gpus)
        except OSError as error:
            self.reason = str(error)
        if self._counters:
            kind = "RAPL" if gpus is None else "NVML"
            self.source = f"{kind}: {', '.join(c.name for c in self._counters)}"

    @property
    def joules(self) -> float | None:
        """The energy so far; `None` if it cannot be measured."""
        return sum(c.joules for c in self._counters) if self._counters else None

    def describe(self) -> dict[str, float | str | None]:
        """Return the energy in Wh, its source and the reason why it is unknown, for a record."""
        wh = None if self.joules is None else round(self.joules / JOULES_PER_WH, 4)
        return {"wh": wh, "source": self.source, "reason": self.reason}

    @property
    def note(self) -> str:
        """The energy for the end of a phrase; empty if it is unknown."""
        return "" if self.joules is None else f", {self.joules / JOULES_PER_WH:.3g} Wh"

    def __enter__(self) -> Self:
        if self._counters:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._counters:
            self._ended.set()
            self._thread.join()
            self._update()

    def _keep_reading(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._update()

    def _update(self) -> None:
        try:
            for counter in self._counters:
                counter.update()
        except OSError as error:  # The GPU has fallen off the bus, for example.
            self._counters, self.source, self.reason = [], None, str(error)


def gpu_counters(names: Sequence[str]) -> list[Counter]:
    """Return the counters of GPUs; an `OSError` says why there is none."""
    counters = []
    for name in names:
        gpu = find_gpu(name)
        if gpu is None:
            raise OSError(f"NVML does not know GPU {name}")
        counters.append(Counter(f"GPU {name} ({gpu.name})", gpu.read_joules))
    return counters


def cpu_counters() -> list[Counter]:
    """Return RAPL's counters of packages and memory; an `OSError` says why there is none."""
    counters = []
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):  # AMD's CPUs are called so, too.
        name = (zone / "name").read_text().strip()
        if not name.startswith(("package", "dram")):
            continue  # The cores are a part of the package.
        file, limit = zone / "energy_uj", float((zone / "max_energy_range_uj").read_text()) / 1e6
        try:
            counters.append(Counter(name, partial(_read_joules, file), limit))
        except PermissionError as error:
            raise OSError(f"{file} is readable for administrators only") from error
    if not counters:
        raise OSError(f"no RAPL counters in {POWERCAP} (virtual machine, container or other CPU)")
    return counters


def _read_joules(file: Path) -> float:
    return float(file.read_text()) / 1e6
