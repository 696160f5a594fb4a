"""Energy of CPUs, from counters as the kernel shows them."""

import shutil
import subprocess
import time

import pytest

from attnseg import energy
from attnseg.energy import EnergyMeter
from tests.limits import HANG


@pytest.fixture
def zones(tmp_path, monkeypatch):
    """Two packages and the memory of one, and zones that are parts of others."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    for zone, name in (
        ("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram"),
        ("intel-rapl:1", "package-1"), ("intel-rapl:2", "psys"),
    ):  # fmt: skip
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("1000000000\n")
        (tmp_path / zone / "energy_uj").write_text("999000000\n")
    return tmp_path


def set_joules(zones, **joules):
    for zone, value in joules.items():
        path = zones / zone.replace("rapl_", "intel-rapl:").replace("_", ":") / "energy_uj"
        new = path.with_name("new")
        new.write_text(f"{value * 1_000_000}\n")
        new.replace(path)  # A reader never sees an empty file.


def test_packages_and_memory_add_up_and_counters_start_again(zones):
    with EnergyMeter() as meter:
        set_joules(zones, rapl_0=2, rapl_0_1=999, rapl_1=1000, rapl_0_0=5, rapl_2=5)
    assert meter.joules == pytest.approx(3 + 0 + 1)  # the first has passed 1000 J
    assert meter.source == "RAPL: package-0, dram, package-1"
    assert meter.reason is None


def test_counters_are_read_in_between(zones, monkeypatch):
    """Else one that starts again twice would lose a round."""
    monkeypatch.setattr(energy, "INTERVAL", 0.01)
    with EnergyMeter() as meter:
        for joules in (500, 100, 500, 100):  # two rounds and more
            before, until = meter.joules, time.monotonic() + HANG
            set_joules(zones, rapl_0=joules)
            while meter.joules == before and time.monotonic() < until:
                time.sleep(0.01)
    assert meter.joules == pytest.approx(501 + 600 + 400 + 600)


def test_unknown_energy_has_a_reason(zones, monkeypatch):
    class Locked(type(zones)):
        def read_text(self, *arguments, **options):
            if self.name == "energy_uj":
                raise PermissionError(13, "Permission denied")
            return super().read_text(*arguments, **options)

    monkeypatch.setattr(energy, "POWERCAP", Locked(zones))
    with EnergyMeter() as meter:
        pass
    assert meter.joules is None
    assert "energy_uj is readable for administrators only" in meter.reason
    monkeypatch.setattr(energy, "POWERCAP", zones / "nothing")
    assert EnergyMeter().reason.startswith("no RAPL counters in ")


@pytest.mark.skipif(EnergyMeter().reason is not None, reason="no counter can be read here")
def test_perf_reads_the_same_energy():
    """`perf` counts packages alone."""
    command = ["perf", "stat", "-x", ",", "-a", "-e", "power/energy-pkg/", "sleep", "2"]
    if shutil.which("perf") is None:
        pytest.skip("perf is not installed")
    with EnergyMeter() as meter:
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or "<not" in done.stderr:
        pytest.skip(f"perf reads no energy here: {done.stderr}")
    packages = [c.joules for c in meter._counters if c.name.startswith("package")]
    assert float(done.stderr.split(",")[0]) == pytest.approx(sum(packages), rel=0.1)
