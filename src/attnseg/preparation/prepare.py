"""The command `prepare`: decodes, checks, describes and splits a dataset without training."""

import json
import logging
from pathlib import Path

from attnseg.config.training import Config
from attnseg.data import splits
from attnseg.errors import DataError, listed
from attnseg.files import write_text
from attnseg.preparation import fingerprint, fingerprint_page
from attnseg.preparation.datasets import (
    dataset_root,
    find_shared_pictures,
    open_reader,
    prepare_selected_cases,
    split_cases,
    store_folder,
)

log = logging.getLogger(__name__)
REPAIR_ADVICE = "mend the files or list the cases in dataset.exclude"


def prepare_dataset(config: Config) -> Path:
    """Prepare and describe a dataset, and print every problem to standard error.

    Returns:
        The folder of the prepared cases, with `fingerprint.json`, `fingerprint.png` and
        `split.csv`.

    Raises:
        DataError: cases are broken, or a patient or picture has two roles in the split. In the
            latter case the fingerprint has been written nevertheless.
    """
    folder = store_folder(config)
    try:
        reader = open_reader(config)
        cases, given = prepare_selected_cases(config, reader)
    except DataError as error:
        raise listed(error, "dataset", REPAIR_ADVICE) from error
    pairs = find_shared_pictures(cases)
    refusal = None
    try:
        kept, roles = split_cases(config, cases, given, pairs)
    except DataError as error:
        kept, roles, refusal = cases, {}, error
    facts = fingerprint.compute_fingerprint(reader, kept, roles, len(pairs))
    write_text(folder / "fingerprint.json", json.dumps(facts, indent=1) + "\n")
    title = f"{config.dataset_name} at {dataset_root(config)}"
    closed = [case for case, role in roles.items() if role == "test"]
    picture = folder / "fingerprint.png"
    fingerprint_page.draw_fingerprint(picture, title, reader, kept, facts, closed)
    fingerprint.print_fingerprint(facts)
    log.info("Written: %s", picture)
    if refusal is not None:
        raise listed(refusal, "dataset", REPAIR_ADVICE) from refusal
    write_text(folder / "split.csv", splits.format_split(kept, roles))
    return folder
