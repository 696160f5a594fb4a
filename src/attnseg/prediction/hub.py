"""Publishes and fetches capsules, in a folder or on the Hugging Face Hub.

No other module of the package contacts the Hub.
"""

import logging
import re
from pathlib import Path

from attnseg.errors import ConfigError, ResourceError, first_line, require
from attnseg.files import write_bytes
from attnseg.prediction.capsule import Capsule

log = logging.getLogger("attnseg.prediction")

FILE, CARD = "capsule.zip", "README.md"
SCHEME = "hf://"
REPOSITORY = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
HEADER = """---
library_name: attnseg
pipeline_tag: image-segmentation
tags: [attnseg, medical]
---

"""


def publish_capsule(capsule: str, to: str) -> None:
    """Check a capsule, and copy it and its model card to a folder or the Hub.

    Args:
        capsule: path of the file.
        to: folder, which is created, or `hf://owner/name`, which is created as private.
    """
    checked = Capsule(Path(capsule))
    for name in checked.names:
        checked.read(name)
    card = (HEADER + checked.text("MODEL_CARD.md")).encode()
    files = {FILE: Path(capsule).read_bytes(), CARD: card}
    if not to.startswith(SCHEME):
        folder = to_local_path(to, "to")
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_bytes(folder / name, data)
        log.info("Published: %s, sealed with %s", folder / FILE, checked.digest)
        return
    owner_and_name, revision = parse_repository(to, "to")
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(owner_and_name, private=True, exist_ok=True)
        for name, data in files.items():
            api.upload_file(
                path_or_fileobj=data,
                path_in_repo=name,
                repo_id=owner_and_name,
                revision=revision,
                commit_message=f"{name} of {checked.spec.run}",
            )
    except Exception as error:  # Its errors have no common base class.
        raise request_error(to, error) from error
    log.info("Published: %s, sealed with %s", to, checked.digest)


def fetch_capsule(place: str) -> Path:
    """Return the path of a capsule, downloaded from the Hub if necessary.

    Args:
        place: a file, the folder in which the capsule was published, or
            `hf://owner/name@revision`, by default the latest revision.
    """
    if not place.startswith(SCHEME):
        path = to_local_path(place, "capsule")
        return path / FILE if path.is_dir() else path
    owner_and_name, revision = parse_repository(place, "capsule")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(owner_and_name, FILE, revision=revision))
    except Exception as error:  # Its errors have no common base class.
        raise request_error(place, error) from error


def to_local_path(place: str, key: str) -> Path:
    """Return a place as a path; refuse a URL."""
    if re.match(r"\w+://", place):
        raise ConfigError(f"{key}: {place} is no place we know; give a file or hf://owner/name")
    return Path(place)


def parse_repository(place: str, key: str) -> tuple[str, str | None]:
    """Return `owner/name` and the revision, if given; check that the Hub's client is installed."""
    match = REPOSITORY.fullmatch(place)
    if match is None:
        raise ConfigError(f"{key}: {place} names no repository; give hf://owner/name")
    require("hf://", "hub", "huggingface_hub", otherwise="give a file")
    return match[1], match[2]


def request_error(place: str, error: Exception) -> ResourceError:
    """Return the error to raise for a failed request."""
    return ResourceError(
        f"{place}: {first_line(error)[:200]}; check the name, the network and your login there"
    )
