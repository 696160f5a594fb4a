"""Changes since a run stopped, and those by which the results of the resumed run could differ."""

import logging
from collections.abc import Iterator, Mapping

from attnseg.config.identity import affects_rounding
from attnseg.config.nodes import flatten_options
from attnseg.config.training import Config
from attnseg.errors import ConfigError, DataError
from attnseg.runs.facts import GitState, RunFacts
from attnseg.runs.run_folder import RunFolder

log = logging.getLogger(__name__)


def check_resumption(
    folder: RunFolder,
    before: RunFacts,
    config: Config,
    versions: Mapping[str, str],
    git: GitState | None,
) -> None:
    """Warn of everything that has changed since a run stopped, before it is resumed.

    Args:
        folder: of the run.
        before: its facts so far.
        config: with which it is resumed. What belongs to its identity is as before.
        versions: of the packages now.
        git: state of the code now.

    Raises:
        ConfigError: results could differ from those of a run without interruption, and
            `trainer.resume_changed` is not set.
    """
    options = list(_list_changed_options(folder, config))
    decisive = [text for key, text in options if affects_rounding(key)]
    decisive += [
        f"{name} {before.versions[name]}, now {here}"
        for name, here in versions.items()
        if before.versions.get(name, here) != here
    ]
    harmless = [text for key, text in options if not affects_rounding(key)]
    if before.git and git and before.git["commit"] != git["commit"]:
        harmless.append(f"commit {before.git['commit'][:10]}, now {git['commit'][:10]}")
    if harmless:
        log.warning("%s: goes on, changed since it stopped: %s", folder, "; ".join(harmless))
    if not decisive:
        return
    changes = ", ".join(decisive)
    if not config.trainer.resume_changed:
        raise ConfigError(
            f"{folder}: the first part was trained with {changes}, by which results could differ; "
            "restore that, train anew with trainer.repeat=true, or go on with "
            "trainer.resume_changed=true"
        )
    log.warning("%s: goes on, and results could differ: %s", folder, changes)


def _list_changed_options(folder: RunFolder, config: Config) -> Iterator[tuple[str, str]]:
    """Yield key and text of each option, places aside, that is not as before."""
    try:
        before = dict(flatten_options(folder.raw_config))
    except DataError:  # It is written anew.
        return
    now = dict(flatten_options(config.model_dump(mode="json", by_alias=True, exclude={"choices"})))
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key] and not key.startswith("paths."):
            yield key, f"{key}={before[key]}, now {now[key]}"
