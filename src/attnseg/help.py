"""What `--help` prints. Hydra's own is slow: it composes anew for every group that it lists."""

from collections.abc import Sequence

import hydra
from omegaconf import OmegaConf, open_dict

from attnseg.config.folder import configs_folder


def help_text(config_name: str, overrides: Sequence[str]) -> str:
    """Return a command's choices and values, as they are with some overrides.

    Args:
        config_name: of the command, `train` say.
        overrides: `KEY=VALUE` each.
    """
    with hydra.initialize_config_dir(str(configs_folder()), version_base="1.3"):
        composed = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    about = composed.hydra.help
    known = {*composed.hydra.runtime.choices, *composed} - {"hydra"}
    choices = [f"{group}: {', '.join(names(group))}" for group in sorted(known) if names(group)]
    with open_dict(composed):
        del composed["hydra"]
    parts = [
        about.header.rstrip(),
        *(["== Choices: GROUP=NAME ==", "\n".join(choices)] if choices else []),
        "== Values: KEY=VALUE ==",
        OmegaConf.to_yaml(composed).rstrip(),
        about.footer.rstrip(),
    ]
    return "\n\n".join(parts)


def names(group: str) -> list[str]:
    """Return the choices of a group; a file that begins with `_` is a shared part of others."""
    return (
        []
        if "/" in group
        else sorted(path.stem for path in (configs_folder() / group).glob("[!_]*.yaml"))
    )
