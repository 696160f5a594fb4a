"""Publishes and fetches capsules, in a folder or on the Hugging Face Hub.

No other module of the package contacts the Hub.
"""

import logging
import re
from pathlib import Path

from attnseg.errors import ConfigError, ResourceError, first_line, require
from attnseg.files import replacing
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
        capsule: file.
        to: folder, which is made, or `hf://owner/name`, which is made private if it is new.

    Raises:
        CheckpointError: not a capsule.
        ConfigError: the place is malformed, or the Hub's client is not installed.
        ResourceError: the Hub does not take it.
    """
    checked = Capsule(Path(capsule))
    for name in checked.names:
        checked.read(name)
    card = (HEADER + checked.text("MODEL_CARD.md")).encode()
    if not to.startswith(SCHEME):
        folder = to_local_path(to, "to")
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in ((FILE, Path(capsule).read_bytes()), (CARD, card)):
            with replacing(folder / name) as file:
                file.write(data)
        log.info("Published: %s, sealed with %s", folder / FILE, checked.digest)
        return
    owner_and_name, revision = parse_repository(to, "to")
    check_client()
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(owner_and_name, private=True, exist_ok=True)
        for name, data in ((FILE, Path(capsule).read_bytes()), (CARD, card)):
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
    """Return the file of a capsule, downloaded from the Hub if necessary.

    Args:
        place: file, folder that it was published in, or `hf://owner/name@revision`, the latest
            without a revision.

    Raises:
        ConfigError: the place is malformed, or the Hub's client is not installed.
        ResourceError: the Hub does not have it.
    """
    if not place.startswith(SCHEME):
        path = to_local_path(place, "capsule")
        return path / FILE if path.is_dir() else path
    owner_and_name, revision = parse_repository(place, "capsule")
    check_client()
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(owner_and_name, FILE, revision=revision))
    except Exception as error:  # Its errors have no common base class.
        raise request_error(place, error) from error


def to_local_path(place: str, key: str) -> Path:
    """Return a place as a path.

    Raises:
        ConfigError: it is a URL.
    """
    if re.match(r"\w+://", place):
        raise ConfigError(f"{key}: {place} is no place we know; give a file or hf://owner/name")
    return Path(place)


def parse_repository(place: str, key: str) -> tuple[str, str | None]:
    """Return `owner/name`, and the revision if given.

    Raises:
        ConfigError: the place is not `hf://owner/name` or `hf://owner/name@revision`.
    """
    match = REPOSITORY.fullmatch(place)
    if match is None:
        raise ConfigError(f"{key}: {place} names no repository; give hf://owner/name")
    return match[1], match[2]


def check_client() -> None:
    """Check that the Hub's client is installed.

    Raises:
        ConfigError: it is not.
    """
    require("hf://", "hub", "huggingface_hub", otherwise="give a file")


def request_error(place: str, error: Exception) -> ResourceError:
    """Return the error to raise for a failed request."""
    return ResourceError(
        f"{place}: {first_line(error)[:200]}; check the name, the network and your login there"
    )
