"""Cost of what happens once per dataset, epoch, study or run, against the number of its items.

    python scripts/benchmarks/scale.py [--factor 4] [STEP ...]

Everything is made up: signatures, prepared cases of a few pixels, and run folders as tests have
them. Each step is timed at three or four sizes, by the time of this process and its children, and
an exponent is fitted: 1 is linear. `--factor` multiplies all sizes. Writes `scale.csv` and
`scale.png` to `outputs/benchmark/`.
"""

import argparse
import contextlib
import csv
import io
import logging
import math
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from attnseg.data import duplicates, guard, splits  # noqa: E402
from attnseg.data.readers.uw_madison import UWMadison  # noqa: E402
from attnseg.data.slices import EpochSampler, SliceDataset  # noqa: E402
from attnseg.data.slicing import SliceView  # noqa: E402
from attnseg.data.store import StoredCase, prepare_cases  # noqa: E402
from attnseg.metrics.profiles.strict import Strict  # noqa: E402
from attnseg.runs.status import print_status  # noqa: E402
from attnseg.study.compare import compare_runs  # noqa: E402
from tests.data.uw_tree import Tree  # noqa: E402
from tests.study.folders import add_pictures, make_run  # noqa: E402

SCAN = 24  # slices of a made-up scan
Prepared = tuple[Callable[[], object], Callable[[], str]]  # what is timed, and a remark on it


def make_signatures(count: int) -> list[duplicates.Signatures]:
    """Return the signatures of unrelated scans of `SCAN` slices, whose slices differ little."""
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(max(2, count // SCAN)):
        steps = rng.standard_normal((2 * SCAN, 1024), np.float32)
        slices = np.cumsum(steps, 0) + 2 * rng.standard_normal((2 * SCAN, 1024), np.float32)
        cases.append((slices / np.linalg.norm(slices, axis=1, keepdims=True)).astype(np.float16))
    return cases


def search_duplicates(count: int, folder: Path, most: int) -> Prepared:
    """Search `count` slices, with all compared if they are at most `most`."""
    cases = make_signatures(count)
    names = [str(number) for number in range(len(cases))]
    found: list[duplicates.DuplicatePair] = []

    def search() -> None:
        duplicates.COMPARED_WITH_ALL = most
        found.extend(duplicates.find_duplicates(cases, names, names))

    return search, lambda: f"{len(found)} pairs"


def compare_all(count: int, folder: Path) -> Prepared:
    """Compare all slices with all."""
    return search_duplicates(count, folder, 10**9)


def hash_slices(count: int, folder: Path) -> Prepared:
    """Compare the slices that share a hash."""
    return search_duplicates(count, folder, 0)


def draw_split(count: int, folder: Path) -> Prepared:
    """Give roles to cases of which a patient has three, in five folds of four classes."""
    rng = np.random.default_rng(0)
    cases = [f"case{number}" for number in range(count)]
    groups = {case: f"patient{number // 3}" for number, case in enumerate(cases)}
    presence = dict(zip(cases, (rng.random((count, 4)) < 0.3).tolist(), strict=True))
    given = dict.fromkeys(cases)

    def draw() -> None:
        for fold in (None, 0):
            splits.assign_roles(
                groups, given, presence, val=0.2, test=0.2, fold=fold, count=5, seed=0
            )

    return draw, lambda: ""


def make_cases(count: int, slices: int) -> list[StoredCase]:
    """Return prepared cases without files."""
    size = (slices, 8, 8)
    rest = ((0.0,), (1.0,), (), (1,), ((0,),), "", (), "", "")
    return [
        StoredCase(Path(), f"p{n // 3}", f"c{n}", None, ("f",), size, None, None, *rest)
        for n in range(count)
    ]


def check_roles(count: int, folder: Path) -> Prepared:
    """Check a split in which each case shares a picture with the next one."""
    cases = make_cases(count, 1)
    pairs = [duplicates.DuplicatePair(n, n + 1, (0, 0), 1.0) for n in range(count - 1)]

    def check() -> None:
        groups = guard.group_patients(cases, pairs)
        guard.choose_left_out(cases, dict.fromkeys(groups, "train"), pairs)

    return check, lambda: ""


def start_epoch(count: int, folder: Path) -> Prepared:
    """Make the dataset of `count` slices and the order of an epoch, to the first key."""
    cases = make_cases(count // 100, 100)

    def start() -> None:
        dataset = SliceDataset(cases, SliceView((8, 8)))
        next(iter(EpochSampler(len(dataset), shuffle=True)))

    return start, lambda: ""


def make_tree(count: int, folder: Path) -> UWMadison:
    """Write scans of three slices of 5 x 4 pixels."""
    Tree(folder / "root", tuple(f"case{n}_day0" for n in range(1, count + 1))).write()
    return UWMadison(folder / "root")


def prepare(count: int, folder: Path) -> Prepared:
    """Prepare scans that nobody has prepared yet."""
    reader = make_tree(count, folder)
    return lambda: prepare_cases(reader, reader.cases(), folder / "store"), lambda: ""


def open_prepared(count: int, folder: Path) -> Prepared:
    """Open scans that are prepared, as every run does."""
    work, _ = prepare(count, folder)
    work()
    reader = UWMadison(folder / "root")
    return lambda: prepare_cases(reader, reader.cases(), folder / "store"), lambda: ""


def make_balls(classes: int) -> np.ndarray:
    """Return masks `[classes, 24, 48, 48]`, a ball each, at random places."""
    rng = np.random.default_rng(0)
    places = np.indices((24, 48, 48)).reshape(3, 1, 24, 48, 48)
    centres = rng.uniform((6, 12, 12), (18, 36, 36), (classes, 3)).T[..., None, None, None]
    return np.asarray(((places - centres) ** 2).sum(0) < 25)


def score(count: int, folder: Path) -> Prepared:
    """Score three classes of `count` cases under the default profile, with all distances."""
    truth, prediction = make_balls(3), np.roll(make_balls(3), 1, -1)

    def work() -> None:
        for _ in range(count):
            Strict().score_case(truth, prediction, (1.0, 1.0, 1.0), ("a", "b", "c"))

    return work, lambda: ""


def score_classes(count: int, folder: Path) -> Prepared:
    """Score a case of `count` classes, as `score` does."""
    truth, prediction = make_balls(count), np.roll(make_balls(count), 1, -1)
    names = tuple(map(str, range(count)))
    return lambda: Strict().score_case(truth, prediction, (1.0, 1.0, 1.0), names), lambda: ""


def show_status(count: int, folder: Path) -> Prepared:
    """Show the state of finished runs."""
    for number in range(count):
        root = folder / "phantom" / "setr"
        run = make_run(
            root, "qkv", {"p0": 0.5}, name=str(number), config={"trainer": {"max_epochs": 3}}
        )
        (run / "history.csv").write_text(
            "epoch,seconds,val/dice\n1,2.0,0.5\n2,2.0,0.6\n3,2.0,0.7\n"
        )
    return lambda: print_status(folder), lambda: ""


def compare(count: int, folder: Path) -> Prepared:
    """Compare two variants of two seeds each on `count` patients, with pictures of all."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.8, 0.05, count)
    for attn, shift in (("qkv", 0.0), ("kv", -0.01)):
        for seed in (0, 1):
            values = base + shift + rng.normal(0, 0.01, count)
            scores = {f"p{n}": float(value) for n, value in enumerate(values)}
            add_pictures(make_run(folder / "runs", attn, scores, seed=seed), size=(24, 32))
    page = folder / "out" / "comparison.html"
    return (
        lambda: compare_runs([f"{folder}/runs/*/*"], outputs=folder / "out"),
        lambda: f"page {page.stat().st_size / 1e6:.1f} MB",
    )


STEPS: dict[str, tuple[Callable[[int, Path], Prepared], str, tuple[int, ...]]] = {
    "duplicates, all": (compare_all, "slices", (600, 1200, 2400)),
    "duplicates, hashed": (hash_slices, "slices", (600, 1200, 2400)),
    "split": (draw_split, "cases", (1250, 2500, 5000, 10000)),
    "roles and groups": (check_roles, "cases", (1250, 2500, 5000, 10000)),
    "epoch start": (start_epoch, "slices", (12500, 25000, 50000, 100000)),
    "prepare": (prepare, "cases", (25, 50, 100)),
    "open prepared": (open_prepared, "cases", (100, 200, 400)),
    "score": (score, "cases", (10, 20, 40)),
    "score classes": (score_classes, "classes", (12, 25, 50, 100)),
    "status": (show_status, "runs", (100, 200, 400)),
    "compare and page": (compare, "patients", (100, 300, 900)),
}


def spent() -> float:
    """Return the seconds of processor time of this process and the children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def time_step(name: str, factor: float) -> Iterator[dict[str, object]]:
    """Yield a row for each size of a step."""
    make, unit, sizes = STEPS[name]
    for size in (int(size * factor) for size in sizes):
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(io.StringIO()):
                work, remark = make(size, Path(folder))
                started = spent()
                work()
                seconds = spent() - started
            yield {"step": name, "size": size, "unit": unit, "seconds": seconds, "remark": remark()}


def fit_exponent(rows: list[dict[str, object]]) -> float:
    """Return the slope of seconds over size, both as logarithms; the smallest size is a warm-up."""
    x, y = (np.log([float(str(row[key])) for row in rows[1:]]) for key in ("size", "seconds"))
    return float(np.polyfit(x, np.maximum(y, math.log(1e-3)), 1)[0])


def main() -> None:
    """Time the steps, print a table, and write it with a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factor", type=float, default=1.0)
    parser.add_argument("steps", nargs="*", choices=[[], *STEPS], metavar="STEP")
    options = parser.parse_args()
    logging.disable()
    rows: list[dict[str, object]] = []
    axis = plt.subplots(figsize=(8, 5))[1]
    for name in options.steps or STEPS:
        timed = list(time_step(name, options.factor))
        exponent = fit_exponent(timed)
        for row in timed:
            size = f"{row['size']:>8} {row['unit']:8}"
            print(f"{name:20} {size} {row['seconds']:8.3f} s  {row['remark']}")
        print(f"{name:20} exponent {exponent:.2f}", flush=True)
        label = f"{name}: {exponent:.2f}"
        axis.loglog(
            *zip(*((r["size"], r["seconds"]) for r in timed), strict=True), "o-", label=label
        )
        rows += [{**row, "exponent": round(exponent, 3)} for row in timed]
    axis.set(xlabel="items", ylabel="seconds of processor time")
    axis.legend(fontsize=8)
    folder = REPOSITORY / "outputs" / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    axis.figure.savefig(folder / "scale.png", dpi=150)
    with (folder / "scale.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
