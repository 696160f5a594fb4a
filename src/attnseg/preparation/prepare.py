"""Preparing a dataset by itself: everything decoded and checked, described, split and guarded."""

import json
import logging
from pathlib import Path

from attnseg.config.schema import Config
from attnseg.data import splits, store
from attnseg.errors import DataError, listed
from attnseg.files import write_text
from attnseg.preparation import fingerprint, fingerprint_page
from attnseg.preparation.datasets import (
    assign,
    given_roles,
    open_reader,
    root,
    same_pictures,
    select,
    store_folder,
)

log = logging.getLogger(__name__)
ADVICE = "mend the files or list the cases in dataset.exclude"


def prepare(config: Config) -> Path:
    """Prepare and describe a dataset; list every problem, not only the first.

    Returns:
        The folder of the prepared cases, with `fingerprint.json`, `fingerprint.png` and
        `split.csv`.

    Raises:
        DataError: cases are broken, or the split has somebody on two sides. All problems are on the
            standard error by then; where cases are whole, the fingerprint has been written, too.
    """
    folder = store_folder(config)
    try:
        reader = open_reader(config)
        table, refs = select(config, reader)
        cases = store.prepare(reader, refs, folder)
        if table is not None:
            splits.check_digests(config.dataset.split.file or "", table, cases)
    except DataError as error:
        raise listed(error, "dataset", ADVICE) from error
    pairs = same_pictures(cases)
    refused = None
    kept = cases
    roles: dict[str, str] = {}
    try:
        kept, roles = assign(config, cases, given_roles(refs, table), pairs)
    except DataError as error:
        refused = error
    facts = fingerprint.describe(reader, kept, roles, len(pairs))
    write_text(folder / "fingerprint.json", json.dumps(facts, indent=1) + "\n")
    title = f"{config.dataset_name} at {root(config)}"
    sealed = [case for case, role in roles.items() if role == "test"]
    fingerprint_page.draw(folder / "fingerprint.png", title, reader, kept, facts, sealed)
    fingerprint.show(facts)
    log.info("Written: %s", folder / "fingerprint.png")
    if refused is not None:
        raise listed(refused, "dataset", ADVICE) from refused
    write_text(folder / "split.csv", splits.table(kept, roles))
    return folder
