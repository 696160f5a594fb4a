"""Simulates a training step on a named GPU, without one, and prints what it would cost.

python -m attnseg.gpu.simulation setr/kv_pos cvt/transpose
python -m attnseg.gpu.simulation --size published
python -m attnseg.gpu.simulation dae_former dae_former:off --card t4
python -m attnseg.gpu.simulation --json pairs.json setr/kv

The forward pass, loss, backward pass, clipping and optimizer are those of a training run. The table
holds lower bounds, no measurements: each kernel takes at least the time of its arithmetic or of its
memory traffic at the card's published rates, or 2.5 us.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnseg.errors import AttnsegError, first_line
from attnseg.gpu.fake_device import load_fake_device
from attnseg.gpu.published import CARDS, SIZES

HEADINGS = (
    "model", "attention", "deterministic", "TFLOP", "kernels", "of them optimizer", "GB moved",
    "peak, GiB", "bound, ms", "attention kernels",
)  # fmt: skip


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shown)
    parser.add_argument(
        "pairs",
        nargs="*",
        help="MODEL[/ATTENTION][:MODE]; modes of determinism are strict, warn and off",
    )
    parser.add_argument("--size", default="tiny", choices=("tiny", "published"))
    parser.add_argument("--image", type=int, help="pixels of a side; 64, or 224 if published")
    parser.add_argument("--batch", type=int, help="2, or 24 if published")
    parser.add_argument("--card", default="h100", choices=tuple(CARDS))
    precisions = ("32", "tf32", "bf16-mixed", "16-mixed")
    parser.add_argument("--precision", default="bf16-mixed", choices=precisions)
    parser.add_argument("--options", default=[], nargs="+", help="KEY=VALUE of a training run")
    parser.add_argument("--json", help="file for all figures")
    return parser.parse_args(arguments)


def print_simulation(arguments: Sequence[str]) -> int:
    """Simulate every pair in its mode of determinism, and print a Markdown table.

    Returns:
        The exit code: 3 if a step would fail on a GPU.
    """
    options = read_arguments(arguments)
    load_fake_device()
    from attnseg.gpu.simulated_step import simulate_step  # imports torch
    from attnseg.gpu.training_step import Shape, compose_run

    records: list[dict[str, Any]] = []
    problems: list[str] = []
    usual = Shape(24, 3, 224, 8) if options.size == "published" else Shape()
    batch, side = options.batch or usual.batch, options.image or usual.side
    shape = usual._replace(batch=batch, side=side)
    more = [*options.options, f"trainer.precision={options.precision}"]
    for text in options.pairs or list(SIZES):
        pair, _, mode = text.partition(":")
        model, _, attn = pair.partition("/")
        size = SIZES.get(model, "tiny") if options.size == "published" else "tiny"
        try:
            config = compose_run(model, attn, size, shape, more)
            record = simulate_step(config, shape, options.card, mode or "strict")
            records.append({"mode": mode or "strict", **record})
        except RuntimeError as error:  # of PyTorch, such as tensors on two devices
            problems.append(f"broken: {text}: {find_place(error)}: {first_line(error)}")
    print("\n".join([format_records(records), *problems]))
    if options.json:
        Path(options.json).write_text(json.dumps(records, indent=1) + "\n")
    return 3 if problems else 0


def find_place(error: Exception) -> str:
    """Return the innermost line of the networks that led to an error, as `file:line`."""
    frames = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    own = [(path, n) for path, n in frames if "attnseg" in path.parts and path.parent.name != "gpu"]
    return f"{own[-1][0].name}:{own[-1][1]}" if own else "?"


def format_records(records: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of simulated steps."""
    rows = [HEADINGS, ["---"] * len(HEADINGS)]
    for record in records:
        chosen = ", ".join(f"{name} {count}" for name, count in record["attention"].items())
        rows.append(
            [
                record["model"], record["attn"], record["mode"], f"{record['flops'] / 1e12:.3g}",
                f"{record['kernels']:,}", str(record["optimizer_kernels"]),
                f"{record['moved'] / 1e9:.3g}", f"{record['peak'] / 2**30:.3g}",
                f"{1e3 * record['seconds']:.3g}", chosen or "-",
            ]
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    try:
        code = print_simulation(sys.argv[1:])
    except AttnsegError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Autograd's thread for the device cannot be joined.
