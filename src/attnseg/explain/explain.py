"""Where a chosen token of finished runs attends: maps of every layer, and how far they spread."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import glob
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from attnseg.config.build import build
from attnseg.config.schema import Explain, nearest
from attnseg.data.labels import Masks
from attnseg.data.slices import network_tensor
from attnseg.data.store import StoredCase
from attnseg.drawing.cases import pixel_aspect, slice_image
from attnseg.errors import ConfigError, DataError, first_line
from attnseg.evaluation import summary as results
from attnseg.evaluation.evaluate import FinishedRun
from attnseg.explain import attention_pictures
from attnseg.explain.attention_maps import Reach, Site, asymmetry, reach, record, spread
from attnseg.explain.attention_pictures import Drawn, Scene
from attnseg.files import write_text
from attnseg.preparation.datasets import slice_view

log = logging.getLogger(__name__)

TRUSTED = 1e-3  # share of the output that a map may fail to give back without a warning


@dataclass(frozen=True)
class Explained:
    """The chosen layers of a run, and what the chosen token takes in each, by name."""

    run: FinishedRun
    sites: dict[str, Site]
    found: dict[str, Reach]

    @property
    def label(self) -> str:
        """What tells the run from others."""
        choices = self.run.config.choices
        return f"{choices['model']}, {choices['attn']}\n{self.run.folder.name}"


def explain(config: Explain) -> pd.DataFrame:
    """Draw and measure as configured; print tables, write files.

    Returns:
        The rows that `layers.csv` holds.

    Raises:
        AttnsegError: what the person at the terminal can mend.
    """
    runs = [FinishedRun(folder, config) for folder in folders(config)]
    by_name = [{case.case: case for case in run.cases(config, "explain")} for run in runs]
    name = config.case or median_case(runs[0], by_name[0], config.split)
    cases = [find_case(run, known, name) for run, known in zip(runs, by_name, strict=True)]
    case = cases[0]
    for run, other in zip(runs, cases, strict=True):
        if other.digest != case.digest:
            raise DataError(
                f"{run.folder}: its case {name} is another one; give runs on the same data"
            )
    index = choose_slice(case, config.slice)
    reader = runs[0].data.reader
    masks = reader.labels.split(case.mask[index])
    point = choose_point(masks, config.point)
    explained = [attend(run, case, index, point, config.layer) for run in runs]
    unit = "pixels" if case.spacing is None else "mm"
    title = f"{config.split} case {name}, slice {index + 1}"
    table = pd.concat([measure(one, case, unit) for one in explained], ignore_index=True)
    for one in explained:
        show(one, table, f"{title}, pixel {list(point)}", unit)
    certify(explained)
    folder = Path(config.outputs or default_folder(config))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "layers.csv", table.to_csv(index=False, lineterminator="\n"))
    scene = Scene(title, slice_image(case, index), masks, reader.classes, pixel_aspect(case), point)
    drawn = [Drawn(one.label, one.sites, one.found) for one in explained]
    attention_pictures.draw_maps(folder / "maps.png", scene, drawn)
    if config.heads:
        attention_pictures.draw_heads(folder / "heads.png", scene, drawn)
    if config.scores:
        attention_pictures.draw_scores(folder / "scores.png", scene, drawn)
    log.info("Written: %s", folder)
    return table


def folders(config: Explain) -> list[Path]:
    """Return the run folders asked for, each once."""
    if config.run is not None:
        return [Path(config.run)]
    named = (sorted(glob(pattern)) or [pattern] for pattern in config.runs)
    return [Path(name) for name in dict.fromkeys(name for found in named for name in found)]


def default_folder(config: Explain) -> Path:
    """Return where files go if nothing else is said: into the run's folder if it is one run."""
    return Path("outputs") / "attention" if config.run is None else Path(config.run) / "attention"


def find_case(run: FinishedRun, cases: dict[str, StoredCase], name: str) -> StoredCase:
    """Return a case of a run.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in cases:
        raise ConfigError(
            f"case: no {name!r} in that split of {run.folder}; {nearest(name, cases)}"
        )
    return cases[name]


def median_case(run: FinishedRun, cases: dict[str, StoredCase], split: str) -> str:
    """Return the name of a run's case with the median score; without scores, of the middle one.

    Raises:
        DataError: the run's scores cannot be read.
    """
    path = run.folder / "cases.csv"
    try:  # a case may be called 007 or NA: only an empty value is undefined
        scores = pd.read_csv(
            path, dtype={"case": str}, keep_default_na=False, na_values={"value": [""]}
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); give case=NAME") from error
    ((name, node),) = run.config.profile.items()
    order = results.ranked(build(f"profile.{name}", node), scores[scores["split"] == split])
    ranked = [str(case) for case in order.index if case in cases] or sorted(cases)
    return ranked[len(ranked) // 2]


def choose_slice(case: StoredCase, number: int | None) -> int:
    """Return the index of a slice; of the one with most foreground if no number is given.

    Raises:
        ConfigError: there is no slice of this number.
    """
    if number is None:
        return int(case.counts.sum(1).argmax())
    if number > case.shape[0]:
        raise ConfigError(f"slice: {number} of {case.shape[0]} slices; give 1 to {case.shape[0]}")
    return number - 1


def choose_point(masks: Masks, point: tuple[int, int] | None) -> tuple[int, int]:
    """Return a pixel (row, column); if none is given, one in the middle of the largest organ.

    That is the organ's pixel nearest to its centre of mass, which may lie outside it.

    Args:
        masks: `[classes, H, W]` of the slice.
        point: as configured.

    Raises:
        ConfigError: the pixel lies outside the slice.
    """
    height, width = masks.shape[1:]
    if point is not None:
        if point[0] >= height or point[1] >= width:
            raise ConfigError(
                f"point: {list(point)} is outside the slice of {height}x{width} pixels; give a row "
                f"up to {height - 1} and a column up to {width - 1}"
            )
        return point
    largest = masks[masks.sum((1, 2)).argmax()]
    if not largest.any():
        return height // 2, width // 2
    pixels = np.argwhere(largest)
    row, column = pixels[((pixels - pixels.mean(0)) ** 2).sum(1).argmin()]
    return int(row), int(column)


def attend(
    run: FinishedRun,
    case: StoredCase,
    index: int,
    point: tuple[int, int],
    layers: Sequence[str],
) -> Explained:
    """Let a run's model see a slice, and find what the token of a pixel takes.

    Args:
        run: opened.
        case: of its data.
        index: of the slice.
        point: row and column of the pixel.
        layers: names or patterns; empty for all.

    Raises:
        ConfigError: no layer of a name.
    """
    image = network_tensor(slice_view(run.config).image(case, index))[None]
    sites = record(run.model, image.to(next(run.model.parameters()).device))
    chosen = choose_layers(list(sites), layers, str(run.folder))
    size = (case.shape[1], case.shape[2])
    found = {name: reach(sites[name], sites[name].token(point, size)) for name in chosen}
    return Explained(run, {name: sites[name] for name in chosen}, found)


def choose_layers(names: Sequence[str], patterns: Sequence[str], place: str) -> list[str]:
    """Return the names that any pattern matches, in order; all if there is no pattern.

    Raises:
        ConfigError: a pattern matches none, or there are no layers.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"layer: no {pattern!r} in {place}; {nearest(pattern, names)}")
    return [n for n in names if not patterns or any(fnmatchcase(n, p) for p in patterns)]


def measure(explained: Explained, case: StoredCase, unit: str) -> pd.DataFrame:
    """Return how far attention is spread over the slice: a row per layer and head.

    Args:
        explained: a run.
        case: whose slice it was.
        unit: of the distance, mm or pixels.
    """
    choices, rows = explained.run.config.choices, []
    side = (1.0, 1.0) if case.spacing is None else case.spacing[1:]
    for name, site in explained.sites.items():
        found = explained.found[name]
        height, width = (
            pixels * size / tokens
            for pixels, size, tokens in zip(case.shape[1:], side, site.grid, strict=True)
        )
        spreads = spread(site, found, (height, width))
        tilt = asymmetry(site) if found.kind == "tokens" else None
        for head in range(site.q.shape[1]):
            row = {
                "run": explained.run.folder.name,
                "model": choices["model"],
                "attn": choices["attn"],
                "layer": name,
                "head": head + 1,
                "mixes": found.kind,
                "queries": "{}x{}".format(*site.grid),
                "keys": "{}x{}".format(*site.key_grid),
                "entropy_bits": math.nan,
                "highest_entropy_bits": math.nan,
                f"distance_{unit}": math.nan,
                "weight_on_grid": math.nan,
                "score_asymmetry": math.nan if tilt is None else float(tilt[head]),
                "unexplained": found.error,
            }
            if spreads is not None:
                row["entropy_bits"] = float(spreads.entropy[head])
                row["highest_entropy_bits"] = spreads.highest
                row[f"distance_{unit}"] = float(spreads.distance[head])
                row["weight_on_grid"] = float(spreads.on_grid[head])
            rows.append(row)
    return pd.DataFrame(rows)


def show(explained: Explained, table: pd.DataFrame, title: str, unit: str) -> None:
    """Print a run's layers, means over heads."""
    own = table[table["run"] == explained.run.folder.name]
    means = own.groupby("layer", sort=False).mean(numeric_only=True)
    printed = Table()
    printed.add_column("layer", no_wrap=True)
    printed.add_column("mixes")
    for column in ("entropy,\nof highest\n(bits)", f"distance\n({unit})", "Q K^T\nasym-\nmetry"):
        printed.add_column(column, justify="right")
    for name, row in means.iterrows():
        entropy, highest = row["entropy_bits"], row["highest_entropy_bits"]
        printed.add_row(
            str(name),
            explained.found[str(name)].kind,
            "-" if math.isnan(entropy) else f"{entropy:.2f} / {highest:.2f}",
            number(row[f"distance_{unit}"], 1),
            number(row["score_asymmetry"], 2),
        )
    printed.caption = "means over heads and over the tokens of the slice"
    console = Console()
    console.print(
        f"{explained.label}: {title}".replace("\n", ", "), highlight=False, soft_wrap=True
    )
    console.print(printed)


def number(value: float, digits: int) -> str:
    """Return a number as tables have it."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def certify(explained: Sequence[Explained]) -> None:
    """Say how exactly the maps give back what the networks computed."""
    error = max(found.error for one in explained for found in one.found.values())
    text = "Values mixed by the maps give each layer's own output to %.0e of its largest number"
    if error > TRUSTED:
        log.warning(
            text + ": a mixing is not linear in its values, its map is a linear part", error
        )
    else:
        log.info(text, error)
