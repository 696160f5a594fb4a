"""The fingerprint of a prepared dataset: its counts, sizes, intensities, classes and patients."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from attnseg.data.closed_test import count_cases, digest_cases
from attnseg.data.reader import Reader, shape_text
from attnseg.data.store import PERCENTILES, StoredCase

Fingerprint = dict[str, Any]
MAX_PATIENT_ROWS = 25  # patients in the table on the terminal


def compute_fingerprint(
    reader: Reader, cases: Sequence[StoredCase], roles: Mapping[str, str], pairs: int
) -> Fingerprint:
    """Return the fingerprint of a dataset in plain values.

    `roles` is empty if the split was refused; `pairs` is the number of pairs of cases of different
    patients that share a picture.

    Returns:
        The content of `fingerprint.json`. Sizes are in voxels, spacings in mm along slices, rows
        and columns, volumes in ml; spacings and volumes are null where the spacing is unknown.
    """
    names = reader.classes
    slices = np.sum([(case.counts > 0).sum(0) for case in cases], 0)
    return {
        "counts": count_cases(cases),
        "roles": {
            role: count_cases([c for c in cases if roles.get(c.case) == role])
            for role in dict.fromkeys(roles.values())
        },
        "digest": digest_cases(c.digest for c in cases),
        "multilabel": reader.labels.overlapping,
        "channels": reader.channels,
        "sizes": dict(Counter(shape_text(c.shape[1:]) for c in cases).most_common()),
        "slices": _min_median_max([c.shape[0] for c in cases]),
        "spacing_mm": [
            _min_median_max([c.spacing[axis] for c in cases if c.spacing is not None])
            for axis in range(3)
        ],
        "types": dict(Counter(str(c.image.dtype) for c in cases)),
        "intensities": [
            {
                f"{percentile:g}%": _min_median_max([c.percentiles[channel][at] for c in cases])
                for at, percentile in enumerate(PERCENTILES)
            }
            for channel in range(reader.channels)
        ],
        "classes": {
            name: {
                "voxels": sum(c.voxels[k] for c in cases),
                "cases": sum(c.voxels[k] > 0 for c in cases),
                "slices": int(slices[k]),
                "volume_ml": _min_median_max([v for c in cases if (v := class_volume(c, k))]),
            }
            for k, name in enumerate(names)
        },
        "overlaps": {
            f"{names[a]} & {names[b]}": voxels
            for a, b in combinations(range(len(names)), 2)
            if (voxels := sum(c.overlaps[a][b] for c in cases))
        },
        "pictures_of_two_patients": pairs,
        "patients": _patient_rows(names, cases, roles),
    }


def _patient_rows(
    names: Sequence[str], cases: Sequence[StoredCase], roles: Mapping[str, str]
) -> list[Fingerprint]:
    """Return one row per patient, with its role, cases, slices and voxels of each class."""
    by_patient: dict[str, list[StoredCase]] = {}
    for case in cases:
        by_patient.setdefault(case.patient, []).append(case)
    return [
        {
            "patient": patient,
            "role": roles.get(own[0].case),
            "cases": [case.case for case in own],
            "slices": sum(case.shape[0] for case in own),
            "voxels": {name: sum(c.voxels[k] for c in own) for k, name in enumerate(names)},
        }
        for patient, own in by_patient.items()
    ]


def class_volume(case: StoredCase, at: int) -> float | None:
    """Return a class's volume in ml; `None` if the spacing is unknown."""
    return None if case.spacing is None else case.voxels[at] * float(np.prod(case.spacing)) / 1000


def _min_median_max(values: Sequence[float]) -> dict[str, float] | None:
    """Return smallest, median and largest value; `None` if there are no values."""
    if not values:
        return None
    least, middle, most = (round(float(v), 4) for v in np.percentile(values, (0, 50, 100)))
    return {"min": least, "median": middle, "max": most}


def describe_counts(facts: Fingerprint) -> str:
    """Return the counts and the digest of a dataset as one line."""
    return f"{_join_counts(facts['counts'])}; digest {facts['digest'][:12]}"


def _join_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {unit}" for unit, number in counts.items())


def print_fingerprint(facts: Fingerprint) -> None:
    """Print a fingerprint as tables on the terminal."""
    console = Console()
    console.print(describe_counts(facts), highlight=False)
    for role, numbers in facts["roles"].items():
        console.print(f"  {role}: {_join_counts(numbers)}", highlight=False)
    sizes = ", ".join(f"{size} ({number})" for size, number in facts["sizes"].items())
    console.print(f"Sizes (rows x columns): {sizes}", highlight=False)
    spacing = " x ".join(_range_text(axis) for axis in facts["spacing_mm"])
    console.print(f"Spacing (mm, slices x rows x columns): {spacing}", highlight=False)
    for channel, percentiles in enumerate(facts["intensities"]):
        low, middle, high = (percentiles[f"{p:g}%"]["median"] for p in (0.5, 50.0, 99.5))
        console.print(
            f"Channel {channel + 1}: intensities of a usual case {low:g} to {high:g}, "
            f"median {middle:g}",
            highlight=False,
        )
    console.print(_class_table(facts))
    for both, voxels in facts["overlaps"].items():
        console.print(f"Overlap of {both}: {voxels} voxels", highlight=False)
    console.print(_patient_table(facts))


def _range_text(values: dict[str, float] | None) -> str:
    """Return smallest and largest value as text, such as `1.5 to 3`."""
    if values is None:
        return "unknown"
    low, high = f"{values['min']:g}", f"{values['max']:g}"
    return low if values["min"] == values["max"] else f"{low} to {high}"


def _class_table(facts: Fingerprint) -> Table:
    table = Table(title="Classes", title_justify="left")
    for name in ("class", "cases", "slices", "voxels", "volume, ml"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, numbers in facts["classes"].items():
        volume = numbers["volume_ml"]
        text = "{median:.1f} ({min:.1f} to {max:.1f})".format(**volume) if volume else "-"
        table.add_row(name, *(str(numbers[key]) for key in ("cases", "slices", "voxels")), text)
    return table


def _patient_table(facts: Fingerprint) -> Table:
    table = Table(title="Patients", title_justify="left")
    for name in ("patient", "role", "cases", "slices", "classes"):
        table.add_column(name, justify="right" if name in ("cases", "slices") else "left")
    for row in facts["patients"][:MAX_PATIENT_ROWS]:
        lacks = [name for name, voxels in row["voxels"].items() if not voxels]
        classes = f"all but {', '.join(lacks)}" if lacks else "all"
        cases, slices = str(len(row["cases"])), str(row["slices"])
        table.add_row(row["patient"], row["role"] or "-", cases, slices, classes)
    if left := len(facts["patients"]) - MAX_PATIENT_ROWS:
        table.caption = f"and {left} more in fingerprint.json" if left > 0 else None
    return table
