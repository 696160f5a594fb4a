"""Measures cost and speed, in suites: training steps, latency, memory, variants.

attnseg benchmark suite=step         every workload; workload=NAME for one
attnseg benchmark --cfg job          show the configuration and leave
attnseg benchmark -m attn=qkv,kv     one run for each value
attnseg benchmark --hydra-help       more about the command line
"""

import logging
import time
from functools import partial

from attnseg.benchmark import suites
from attnseg.benchmark.options import Benchmark
from attnseg.commands.command import Command, Invocation
from attnseg.processes.fork import run_in_child
from attnseg.progress import format_seconds

log = logging.getLogger(__name__)


def run(options: Benchmark, invocation: Invocation) -> None:
    """Measure a suite, or each of its divisions in a process of its own; exit if one fails."""
    divisions = suites.split_suite(options.suite, list(invocation.overrides))
    started = time.monotonic()
    for done, overrides in enumerate(divisions):
        left = (time.monotonic() - started) / (done or 1) * (len(divisions) - done)
        text = f", {format_seconds(left)} left" if done else ""
        log.info("== Measurement %d of %d%s", done + 1, len(divisions), text)
        if code := run_in_child(partial(invocation.call, overrides)):
            raise SystemExit(code)
    if options.suite == "all":
        suites.join_tables(options)
    elif not divisions:
        suites.run_suite(options)


COMMAND = Command("benchmark", __doc__, Benchmark, run_invocation=run)
