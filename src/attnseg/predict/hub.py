"""Capsules where others find them: a folder, or the Hugging Face Hub, which is asked only here."""

import logging
import re
from pathlib import Path

from attnseg.errors import ConfigError, ResourceError, first_line, require
from attnseg.files import replacing
from attnseg.predict.capsule import Capsule

log = logging.getLogger("attnseg.predict")

FILE, CARD = "capsule.zip", "README.md"
SCHEME = "hf://"
REPOSITORY = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
HEADER = """---
library_name: attnseg
pipeline_tag: image-segmentation
tags: [attnseg, medical]
---

"""


def publish(capsule: str, to: str) -> None:
    """Check a capsule, and put it and its model card into a folder or on the Hub.

    Args:
        capsule: file.
        to: folder, which is made, or `hf://owner/name`, which is made private if it is new.

    Raises:
        CheckpointError: not a capsule.
        ConfigError: no such place can be, or the client is not installed.
        ResourceError: the Hub does not take it.
    """
    checked = Capsule(Path(capsule))
    for name in checked.names:
        checked.read(name)
    card = (HEADER + checked.text("MODEL_CARD.md")).encode()
    if not to.startswith(SCHEME):
        folder = local(to, "to")
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in ((FILE, Path(capsule).read_bytes()), (CARD, card)):
            with replacing(folder / name) as file:
                file.write(data)
        log.info("Published: %s, sealed with %s", folder / FILE, checked.digest)
        return
    owner_and_name, revision = repository(to, "to")
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
    except Exception as error:  # its own errors and its client's have no common root
        raise unanswered(to, error) from error
    log.info("Published: %s, sealed with %s", to, checked.digest)


def fetch(place: str) -> Path:
    """Return the file of a capsule, from the Hub if that is where it is.

    Args:
        place: file, folder that it was published in, or `hf://owner/name@revision`, the latest
            without a revision.

    Raises:
        ConfigError: no such place can be, or the client is not installed.
        ResourceError: the Hub does not have it.
    """
    if not place.startswith(SCHEME):
        path = local(place, "capsule")
        return path / FILE if path.is_dir() else path
    owner_and_name, revision = repository(place, "capsule")
    check_client()
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(owner_and_name, FILE, revision=revision))
    except Exception as error:  # as above
        raise unanswered(place, error) from error


def local(place: str, key: str) -> Path:
    """Return a path, which a URL is not."""
    if re.match(r"\w+://", place):
        raise ConfigError(f"{key}: {place} is no place we know; give a file or hf://owner/name")
    return Path(place)


def repository(place: str, key: str) -> tuple[str, str | None]:
    """Return owner and name, and the revision."""
    match = REPOSITORY.fullmatch(place)
    if match is None:
        raise ConfigError(f"{key}: {place} names no repository; give hf://owner/name")
    return match[1], match[2]


def check_client() -> None:
    """Refuse to go on without the Hub's client."""
    require("hf://", "hub", "huggingface_hub", otherwise="give a file")


def unanswered(place: str, error: Exception) -> ResourceError:
    """Return what a failed request means to the person at the terminal."""
    return ResourceError(
        f"{place}: {first_line(error)[:200]}; check the name, the network and your login there"
    )
