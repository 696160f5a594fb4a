"""Holds the choices of a command line to their promises and prints a table."""

from collections.abc import Callable, Mapping

import torch
from rich.console import Console
from rich.table import Table

from attnseg.config.budget import build_model
from attnseg.config.build import build
from attnseg.config.nodes import Component
from attnseg.config.training import Config, Model
from attnseg.contracts import losses, networks, profiles
from attnseg.contracts.networks import IMAGE, Outcome
from attnseg.errors import first_line
from attnseg.models.model import SegmentationModel
from attnseg.progress import track


def hold_network(model: Model, attn: Component | None) -> dict[str, Outcome]:
    """Hold a model with its attention to all contracts, by name."""

    def make(channels: int = IMAGE[0], classes: int = networks.CLASSES) -> SegmentationModel:
        torch.manual_seed(0)
        return build_model(model, attn, channels, classes, IMAGE[1:])

    return {name: _hold(contract, make) for name, contract in networks.CONTRACTS.items()}


def check_networks(configs: Mapping[str, Config]) -> list[str]:
    """Check configurations by a label of each, print a table, and return the problems."""
    findings = {}
    for config in configs.values():  # Mistyped options end here, before any promise is checked.
        build_model(config.model, config.attn, IMAGE[0], networks.CLASSES, IMAGE[1:])
    for pair in track(list(configs), "checking", "models"):
        findings[pair] = hold_network(configs[pair].model, configs[pair].attn)
    table = Table(caption=f"images of {IMAGE[1]}x{IMAGE[2]} pixels, {networks.CLASSES} classes")
    table.add_column("promise")
    for pair in findings:
        table.add_column(pair, justify="right")
    for name in networks.CONTRACTS:
        table.add_row(name, *(_show(found[name]) for found in findings.values()))
    Console().print(table)
    return [
        f"{pair}: {name}: {finding.problem}"
        for pair, found in findings.items()
        for name, finding in found.items()
        if finding.problem
    ]


def check_loss(config: Config) -> list[str]:
    """Check the loss of a configuration, print a table, and return the problems."""
    findings = {}
    for overlapping, kind in ((False, "exclusive"), (True, "overlapping")):
        loss = build("loss", config.loss, overlapping=overlapping)
        for name, contract in losses.CONTRACTS.items():
            findings[f"{name}, {kind} classes"] = _hold(contract, loss, overlapping)
    return _report(config.choices["loss"], findings)


def check_profile(config: Config) -> list[str]:
    """Check the metric profile of a configuration, print a table, and return the problems."""
    ((name, node),) = config.profile.items()
    profile = build(f"profile.{name}", node)
    findings = {key: _hold(check, profile) for key, check in profiles.CONTRACTS.items()}
    return _report(name, findings)


def _report(subject: str, findings: Mapping[str, Outcome]) -> list[str]:
    table = Table("promise", subject)
    for name, finding in findings.items():
        table.add_row(name, _show(finding))
    Console().print(table)
    return [
        f"{subject}: {n}: {finding.problem}" for n, finding in findings.items() if finding.problem
    ]


def _hold(contract: Callable[..., Outcome], *subject: object) -> Outcome:
    """Return the finding of a contract; an exception is a broken promise, not the end of all."""
    try:
        return contract(*subject)
    except Exception as error:  # What is checked may be anybody's first attempt.
        return Outcome("", f"{type(error).__name__}: {first_line(error)}")


def _show(finding: Outcome) -> str:
    return "[red]broken[/red]" if finding.problem else finding.measured
