"""A run's identity: the options that differ from their defaults, and what a difference means."""

import inspect
import json
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import Field

from attnseg.config.build import locate
from attnseg.config.identity import VERSION, affects_comparison, class_defaults, identity_of, run_id
from attnseg.config.training import Config, Trainer, parse_config
from tests.contracts.groups import FOLDER, compose

SNAPSHOT = Path(__file__).with_name("defaults.json")
# Files that choose other values than their class has: the attentions are one class, optimizers are
# PyTorch's, and a phantom's size is a key of its own.
ON_PURPOSE = {
    "attn/*.yaml": {"sharing", "mixing", "mixing_options", "gather", "gather_options"},
    "optimizer/*.yaml": {"lr", "weight_decay", "momentum"},
    "dataset/*.yaml": {"preset"},
    "scheduler/cosine.yaml": {"warmup", "final"},
    "profile/strict.yaml": {"nsd_tolerances_mm"},  # made anew for each object
    "profile/detailed.yaml": {"nsd_tolerances_mm"},
}


class NewTrainer(Trainer):
    """As after an upgrade that brought options."""

    new: bool = False
    newer: Annotated[int, Field(ge=0)] = 3


class NewConfig(Config):
    trainer: NewTrainer


def ids(schema, *overrides, **trainer):
    raw = compose("dataset=phantom", *overrides)
    raw["trainer"] |= trainer
    return run_id(schema.model_validate(raw), "data", "split")


def test_an_option_added_at_its_default_changes_no_id():
    before = ids(Config)
    assert ids(NewConfig) == ids(NewConfig, new=False, newer=3) == before
    assert len({before, ids(NewConfig, new=True), ids(NewConfig, newer=4)}) == 3


def test_an_option_added_to_a_file_at_the_default_of_its_class_changes_no_id():
    assert ids(Config, "optimizer=adamw", "+optimizer.eps=1e-8") == ids(Config, "optimizer=adamw")
    assert ids(Config, "optimizer=adamw", "+optimizer.eps=1e-7") != ids(Config, "optimizer=adamw")


@pytest.mark.parametrize(
    "override",
    [
        "trainer.num_workers=2", "trainer.save_minutes=5", "trainer.loader_timeout=9",
        "trainer.attempts=9", "trainer.repeat=true", "trainer.score_every=2", "logger=mlflow",
        "trainer.keep_pictures=false", "trainer.jobs_per_gpu=2", "trainer.auto_batch=true",
        "trainer.gradient_checkpointing=true", "phantom_size=tiny", "paths.outputs=elsewhere",
        "trainer.accelerator=gpu", "compare={baseline:qkv}", "dataset.root=elsewhere",
        "dataset.phantom=null", "dataset.split.file=synapse_18_12",
    ],
)  # fmt: skip
def test_places_and_conveniences_change_no_id(override):
    extra = ["dataset.root=here"] if "phantom=null" in override else []
    assert ids(Config, override, *extra) == ids(Config)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "trainer.precision=bf16-mixed", "trainer.ema_decay=0.9", "dataset.split.fold=0",
        "model=cvt", "attn=kv", "loss=dice", "optimizer.lr=0.5", "scheduler=poly", "augment=none",
        "dataset.image_size=96", "dataset.split.seed=5", "trainer.open_test=false",
        "trainer.deterministic=false", "trainer.max_epochs=7", "profile=monai",
        "dataset.batch_size=3", "model.depth=2", "attn.mixing=efficient",
    ],
)  # fmt: skip
def test_whatever_changes_results_changes_the_id(override):
    extra = ["dataset.split.folds=5"] if "fold" in override else []
    other = "dataset.split.fold=1" if "fold" in override else "seed=0"
    assert ids(Config, override, *extra) != ids(Config, other, *extra)


def test_two_devices_with_half_the_batch_are_one_run():
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32")
    assert ids(Config, *two, "dataset.batch_size=2") == ids(Config, "dataset.batch_size=4")


@pytest.mark.parametrize(
    ("key", "matters"),
    [
        ("seed", False), ("trainer.save_minutes", False), ("trainer.score_every", False),
        ("logger.mlflow.uri", False), ("compare.margin", False), ("phantom_size", False),
        ("paths.data", False), ("dataset.root", False), ("dataset.phantom.preset", False),
        ("dataset.split.fold", False), ("dataset.split.file", True), ("dataset.split.seed", True),
        ("trainer.precision", True), ("optimizer.lr", True), ("optimizer.betas", True),
        ("model.size", True), ("loss._target_", True), ("unheard.of", True),
    ],
)  # fmt: skip
def test_which_differences_make_runs_incomparable(key, matters):
    assert affects_comparison(key) is matters


def test_what_is_no_identity_needs_no_warning_but_a_split_file():
    """Nothing is left out of the id and warned of, as nine options once were."""
    silent = [key for key in leaves(Config) if not affects_comparison(key)]
    described = flat(identity_of(parse_config(compose("dataset=phantom"))))
    assert {key for key in silent if key in described} == {"seed", "dataset.split.fold"}
    assert len(silent) > 15


def leaves(schema, key=""):
    for name, field in schema.model_fields.items():
        inner = field.annotation
        if inspect.isclass(inner) and hasattr(inner, "model_fields"):
            yield from leaves(inner, f"{key}{name}.")
        yield f"{key}{name}"


def flat(node, key=""):
    if not isinstance(node, dict):
        return {key[:-1]}
    return set().union(*(flat(value, f"{key}{name}.") for name, value in node.items()))


def components(node, group):
    """Every node with a class in a file of a group."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield group, node
        for value in node.values():
            yield from components(value, group)


def test_defaults_in_files_and_in_classes_agree():
    compared, differing = 0, []
    for path in sorted(FOLDER.glob("*/*.yaml")):
        for group, node in components(yaml.safe_load(path.read_text()), path.parent.name):
            defaults = class_defaults(locate(group, node["_target_"]))
            for name in node.keys() & defaults.keys():
                compared += 1
                same = plain(node[name]) == plain(defaults[name])
                chosen = (names for g, names in ON_PURPOSE.items() if path.match(g))
                if not same and name not in set().union(*chosen):
                    differing.append((path.name, name, node[name], defaults[name]))
    print(f"{compared} defaults stand in a file and in a class")
    assert differing == []
    assert compared >= 100


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def test_no_default_changes_without_the_version():
    """A changed default would let a new run pass for an old one that was trained differently."""
    targets = {
        node["_target_"]
        for path in FOLDER.glob("*/*.yaml")
        for _, node in components(yaml.safe_load(path.read_text()), "")
    }
    now = {t: {k: plain(v) for k, v in class_defaults(locate("", t)).items()} for t in targets}
    fields = Trainer.model_fields.items()
    now["Trainer"] = {name: f.default for name, f in fields if not f.is_required()}
    then = json.loads(SNAPSHOT.read_text())
    assert then["version"] == VERSION, "write the defaults of this version; see below"
    for target, defaults in then["defaults"].items():
        for name, value in defaults.items():
            assert json.loads(json.dumps(now[target][name], default=str)) == value, (
                f"{target}.{name}: raise VERSION in identity.py, and write defaults.json anew"
            )
