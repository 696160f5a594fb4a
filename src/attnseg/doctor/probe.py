"""Imports the libraries with machine code, one by one, and prints what torch can compute on.

`attnseg.doctor.libraries` runs this in a process of its own, since a library that was built for
another machine may end it. Each line is a JSON object: a library before its import, then the error
of the import (`null` if there was none), and at last what torch says.
"""

import importlib
import json
from typing import Any

LIBRARIES = ("numpy", "scipy", "cv2", "h5py", "torch")


def print_facts(**facts: Any) -> None:  # noqa: ANN401
    """Print a JSON object at once, so that it is not lost if the process crashes."""
    print(json.dumps(facts), flush=True)


def describe_torch() -> dict[str, Any]:
    """Return the build of torch, its devices, its threads, and the precision that is fastest."""
    import torch

    from attnseg.training.precision import fastest_precision

    cuda = torch.cuda.is_available()
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "built_for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU",
        "gpus": [f"{d.name}, {d.total_memory / 2**30:.0f} GiB" for d in devices if cuda],
        "threads": torch.get_num_threads(),
        "precision": fastest_precision("gpu" if cuda else "cpu"),
    }


def print_probe() -> None:
    """Import the libraries and print the facts."""
    for name in LIBRARIES:
        print_facts(importing=name)
        error = None
        try:
            importlib.import_module(name)
        except Exception as raised:  # Importing runs foreign code.
            error = " ".join(f"{type(raised).__name__}: {raised}".split())
        print_facts(imported=name, error=error)
    if error is None:
        print_facts(torch=describe_torch())


if __name__ == "__main__":
    print_probe()
