"""Command for the maintainers' suites: `python scripts/benchmarks/run.py suite=loading`.

It takes every option of `attnseg benchmark`, and knows that command's suites, too.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from attnseg.benchmark.suites import SUITES, Suite
from attnseg.cli import benchmark

DAE_FORMER = [{"workload": "dae_former"}]
OurSuite = partial(Suite, package="scripts.benchmarks", command="python scripts/benchmarks/run.py")
MAINTAINERS_SUITES = {
    "volume": OurSuite("A whole volume", (DAE_FORMER,)),
    "scaling": OurSuite("Scaling", (DAE_FORMER,)),
    "loading": OurSuite("Loading"),
    "loader": OurSuite("The loader, by processes and image size", in_all=False),
    "overhead": OurSuite("The training loop and plain Lightning against a bare loop"),
    "safety": OurSuite("What safety costs"),
    "startup": OurSuite("Start-up"),
    "check": OurSuite("Ratios within their bounds", in_all=False),
}

if __name__ == "__main__":
    SUITES.update(MAINTAINERS_SUITES)
    benchmark()
