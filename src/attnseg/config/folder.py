"""The folder of YAML files that Hydra composes configurations from."""

from pathlib import Path


def configs_folder() -> Path:
    """Return the folder `configs/`, of a wheel or of the clone that this module lies in."""
    shipped = Path(__file__).parents[1] / "configs"  # in a wheel
    return shipped if shipped.is_dir() else Path(__file__).parents[3] / "configs"
