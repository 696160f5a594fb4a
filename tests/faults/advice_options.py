"""Trials of what is typed: attentions, models, losses, and the options of every command."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnseg.attention.attention import Attention
from attnseg.attention.focal import FocalModulation
from attnseg.benchmark.machine import choose_device
from attnseg.benchmark.suites import split_suite
from attnseg.cli.hydra_app import check_flags, compose_raw, to_hydra
from attnseg.cli.program import COMMANDS
from attnseg.commands import check_gpu, train
from attnseg.config.aliases import check_aliases
from attnseg.config.budget import build_model
from attnseg.config.build import locate
from attnseg.config.components import attention_component, build_components, model_nodes
from attnseg.config.errors import parse_options
from attnseg.errors import ConfigError
from attnseg.gpu import acceptance
from attnseg.losses.ce import CrossEntropy
from attnseg.losses.focal import Focal
from attnseg.metrics.surface import surface_elements
from attnseg.phantoms.phantom import make_preset
from attnseg.phantoms.synapse import make_synapse
from attnseg.preparation.datasets import open_reader
from attnseg.probes.probe import find_probe
from attnseg.probing.probing import choose_probes
from attnseg.search.options import Choices, Range, Search
from tests.faults.advice import Trial, trials_of
from tests.training.test_attention_kernels import find


def run_training(trial: Trial) -> None:
    """Compose and check a training, and build its parts without memory for weights."""
    words = to_hydra(train.COMMAND, trial.items)
    config = train.COMMAND.parse(compose_raw(train.COMMAND, words))
    with torch.device("meta"):
        build_components(config, open_reader(config))


def parse_command(name: str) -> Callable[[Trial], None]:
    """Return an attempt that composes and checks the options of a command."""

    def attempt(trial: Trial) -> None:
        command = COMMANDS[name]
        command.parse(compose_raw(command, to_hydra(command, trial.items)))

    return attempt


def typed(attempt: Callable[[Trial], None], *rows: str | tuple[str, Any]) -> dict[str, Trial]:
    """Return a trial for each command line, which may come with how its advice is followed."""
    pairs = [(row, {}) if isinstance(row, str) else row for row in rows]
    return {line: Trial(attempt, line, follow=follow) for line, follow in pairs}


def attend(**options: Any) -> None:
    """Build an attention of the width 64, and call it on a grid of 4 x 4."""
    context = options.pop("context", False)
    names = {
        key: options.pop(key) for key in list(options) if key.startswith(("mixing_", "gather_"))
    }
    nested: dict[str, dict[str, Any]] = {}
    for key, value in names.items():
        kind, _, name = key.partition("_options_")
        if name:
            nested.setdefault(f"{kind}_options", {})[name] = value
    made = Attention(64, **({"num_heads": 4} | options | nested))
    tokens = torch.zeros(1, 16, 64)
    if context:
        made(tokens, (4, 4), torch.zeros(1, 16, 64), (2, 8))
    else:
        made(tokens, (4, 4))


def retype_key(trial: Trial, text: str) -> None:
    """Type the key that is meant, or else the first one that is known, by its own name."""
    key, value = trial.items[-1].split("=")
    name = re.search(r"did you mean (\w+)|choose one of (?:_target_, )?(\w+)", text)
    parent = "".join(re.findall(r"^\+?(?:\w+\.)+", key)).lstrip("+")
    value = value if name[1] else "null"
    trial.options = " ".join([*trial.items[:-1], f"{parent}{name[1] or name[2]}={value}"])


def try_all_keys(trial: Trial, text: str) -> None:
    """Type every key that a message lists: none of them may be unknown."""
    names = re.search("choose one of (.*)", text)[1].split(", ")
    for name in names:
        try:
            compose_raw(train.COMMAND, [f"{name}=null"])
        except ConfigError as error:
            assert "no such key" not in str(error), error
    trial.options = "seed=1"


ABOVE = {
    "greater than 0": "{}=0.1",
    "less than 1": "{}=0.5",
    "valid number": "{}=0.1",
    "an odd number": "{}=3",
    "finite number": "{}=0.1",
}
KEYS = {"no such (key|option)": retype_key}


def replaced(values: Mapping[str, str], line: str) -> dict[str, str]:
    key = line.split()[-1].split("=")[0].lstrip("+")
    return {pattern: value.format(key) for pattern, value in values.items()}


def in_training(*rows: str | tuple[str, Any]) -> dict[str, Trial]:
    return typed(run_training, *rows)


ATTENTIONS = (
    trials_of(
        attend,
        "num_heads=7",
        "sharing=kq",
        "mixing=sofmax",
        "gather=poool",
        "mixing=linear mixing_options_feature=x",
        "mixing=neighborhood mixing_options_size=4",
        "mixing=neighborhood mixing_options_dilation=0",
        "mixing=positional_softmax mixing_options_pos_dim=2",
        "mixing=positional_softmax mixing_options_code=grd",
        "mixing=positional_softmax mixing_options_init=units",
        "mixing=window mixing_options_size=0",
        "backend=fused",
        "mixing=linear backend=flash",
    )
    | trials_of(
        attend,
        "mixing=linear mixing_options_featur=relu",
        follow={r"no option 'featur'; it takes (\w+)": "mixing=linear mixing_options_{1}=relu"},
    )
    | trials_of(
        attend,
        "gather=pooled_reduction mixing=random_mixing",
        "mixing=neighborhood gather=pooled_reduction",
        follow={"use (gather)=(none)": "{1}={2}"},
    )
    | trials_of(
        attend,
        "context=true gather=deformable",
        "context=true mixing=window",
        follow={
            "use (gather)=(none)": "context=true {1}={2}",
            "use (softmax) mixing": "context=true mixing={1}",
        },
    )
    | trials_of(
        attend,
        "mixing=differential num_heads=64",
        follow={"another number of heads": "num_heads=4"},
    )
    | trials_of(
        attend,
        "mixing=stripes mixing_options_widths=[0]",
        follow={r"use (\d) or more": "mixing=stripes mixing_options_widths=[{1}]"},
    )
    | trials_of(
        partial(FocalModulation, dim=8, num_heads=1),
        "levels=0",
    )
)


def lose(kind: type, **options: Any) -> None:
    logits = torch.zeros(1, 3, 2, 2)
    kind(False, **options)(logits, logits[:, 0])


def see_surface(axes: int = 3, empty: bool = False, spacing: int = 3) -> None:
    mask = np.full((3,) * axes, not empty)
    surface_elements(mask, mask, (1.0,) * spacing)


def see_model(name: str = "cvt", side: int = 64) -> None:
    model, attn = model_nodes(name, size="tiny")
    with torch.device("meta"):
        build_model(model, attn, 1, 2, (side, side)).eval()(torch.zeros(1, 1, side, side))


def see_unet(image: list[int]) -> None:
    model, attn = model_nodes("unet", size="tiny")
    with torch.device("meta"):
        build_model(model, attn, 1, 2, (64, 64)).eval()(torch.zeros(1, 1, *image))


def choose_sections(name: str) -> None:
    """Choose a section of the proof of a GPU, without running it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acceptance, "run_acceptance", lambda *_: {"sections": []})
        given = {"json_file": None, "page": None, "device": "cpu", "budget": 1.0, "folder": "gpu"}
        check_gpu.run(check_gpu.CheckGPU.model_construct(sections=[name], **given))


def accept(device: str) -> None:
    """Prove a machine without GPU by no section at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        acceptance.run_acceptance(device, "gpu", 1.0, ())


LIBRARY = (
    trials_of(partial(lose, Focal), "gamma=-1")
    | trials_of(
        partial(lose, CrossEntropy),
        "class_weights=[1,2]",
        follow={r"one for each of the (\d)": "class_weights=[1,1,1]"},
    )
    | trials_of(
        see_surface,
        "axes=1 spacing=1",
        "empty=true",
        "spacing=2",
        follow={
            "need (two) or three axes": "axes=2 spacing=2",
            "not empty": "empty=false",
            "spacing for each axis": "spacing=3",
        },
    )
    | trials_of(
        see_model,
        "name=cvt side=9",
        follow={r"nearest: \[(\d+),": "name=cvt side={1}"},
    )
    | trials_of(
        see_unet,
        "image=[4,4]",
        follow={r"nearest: \[(\d+),(\d+)\]": "image=[{1},{2}]"},
    )
    | trials_of(
        lambda backend: find("setr", "qkv", backend) and None,
        "backend=cudnn",
        follow={r"use one of (\w+)": "backend={1}"},
    )
    | trials_of(choose_sections, "name=machin")
    | {"proof of a GPU": trials_of(accept, "device=cuda")["device=cuda"]}
    | trials_of(
        lambda **o: find_probe(**o) and None,
        "name=reech",
    )
    | trials_of(
        lambda **o: find_probe("reach").pictures(1, **(PICTURES | o)),
        "split=tets",
        "level=99",
    )
    | {
        f"phantom {line}": trial
        for line, trial in {
            **trials_of(
                lambda **o: make_preset(
                    Path("p"), {"tiny": SizeOfNothing()}, o["preset"], 0, lambda *_: None
                ),
                "preset=huge",
            ),
            **trials_of(
                lambda **o: make_synapse(Path("s"), "huge", 0, **o), "layout=x", further="no preset"
            ),
        }.items()
    }
    | trials_of(
        lambda **o: attention_component(**o), "name=none", follow={"choose another": "name=kv"}
    )
    | trials_of(
        lambda **o: model_nodes(**o),
        "name=setrr",
    )
    | trials_of(
        lambda text: check_aliases("&a [*a]" if isinstance(text, dict) else "a"),
        r"text=a:\ &a\ [STARa]",
        follow={"write them out": "text=a"},
    )
    | {
        "aliases": Trial(
            lambda trial: check_aliases(trial.root.joinpath("a.yaml").read_text()),
            make=lambda root: (root / "a.yaml").write_text("a: 1\n"),
            damage=lambda root: (root / "a.yaml").write_text(BOMB),
            follow={
                "write them out": lambda trial, text: trial.root.joinpath("a.yaml").write_text(
                    "a: [1]"
                )
            },
        ),
        **trials_of(
            lambda **o: locate("model", **o),
            "target=os.system",
            "target=attnseg.models.setr.torch",
            "target=attnseg.models.setr.Setr",
            follow={
                r"name a class of attnseg\.": "target=attnseg.models.setr.SETR",
                r"'attnseg\.models\.setr\.(torch)'": "target=attnseg.models.setr.SETR",
                "module '(attnseg.models.setr)' has no attribute": "target={1}.SETR",
            },
        ),
        **trials_of(lambda **o: choose_device(threads=None, **o), "device=cuda"),
        **trials_of(lambda **o: split_suite(overrides=[], **o), "name=atention"),
        "probes": Trial(
            lambda trial: choose_probes([trial.keywords["name"]]) and None, "name=reech"
        ),
        **trials_of(lambda **o: check_flags([o["flag"]]), "flag=--hlep"),
    }
)
BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '1'] * 10)}]\n" for n in range(8))


@dataclass(frozen=True)
class SizeOfNothing:
    seed: int = 0


PICTURES = {"seed": 0, "split": "test", "level": 7}


def space(trial: Trial) -> None:
    parse_options(Range if "choices" not in trial.keywords else Choices, trial.keywords, "space")


def search_space(trial: Trial) -> None:
    command = COMMANDS["search"]
    raw = compose_raw(command, trial.items)
    command.parse(raw) if command.run_invocation is None else parse_options(
        Search, raw["search"], "search"
    )


SPACES = typed(
    space,
    ("low=2 high=1", {"not below": "low=1 high=2"}),
    ("low=0 high=1 log=true", {"number above (0)": "low=0.1 high=1 log=true"}),
    ("low=1 high=2 log=true step=1", {"leave one out": "low=1 high=2 log=true"}),
    ("low=1 high=2 step=0", {"number above (0)": "low=1 high=2 step=0.1"}),
) | typed(
    search_space,
    ("seed=0", {r"search=NAME": "search=optimizer"}),
    ("+search.space.seed=3", {r"give low and high": "+search.space.seed={{low:0,high:3}}"}),
)

CONFIGURED = in_training(
    ("modle=setr", KEYS),
    ("optimizer.lrr=1", KEYS),
    ("+optimizer.lrr=1", KEYS),
    ("xyz=1", {"no such": try_all_keys}),
    ("optimizer.lr=-1", replaced(ABOVE, "optimizer.lr=")),
    ("optimizer.lr=nan", replaced(ABOVE, "optimizer.lr=")),
    ("dataset.split.val=1", replaced(ABOVE, "dataset.split.val=")),
    ("dataset.slices=2", replaced(ABOVE, "dataset.slices=")),
    "optimizer=null",
    "dataset=uw_madison",
    "model=setrr",
    ("trainer.precision=fp16", {"should be (32)": "trainer.precision={1}"}),
    (
        "trainer.precision=16-mixed",
        {"use (bf16-mixed) or": "trainer.precision={1}", "or (32)": "trainer.precision={1}"},
    ),
    ("~seed", {"missing": "seed=1"}),
    ("seed=${nope}", {"correct the value": "seed=1"}),
    ("seed=1\\ seed=2", {"quote values": "seed=1"}),
    ("dataset.image_size=[100,128]", {r"nearest: (\S+)": "dataset.image_size={1}"}),
    ("profile=strict,monai", {"train with one": "profile=strict"}),
    (
        "trainer.ema_decay=0.9 trainer=fsdp",
        {
            "use (trainer)=(ddp)": "trainer.ema_decay=0.9 {1}={2}",
            "or (trainer.ema_decay)=(null)": "trainer=fsdp {1}={2}",
        },
    ),
    (
        "trainer=ddp trainer.devices=2 trainer.auto_batch=true",
        {"for one device": "trainer=ddp trainer.auto_batch=true trainer.devices=1"},
    ),
    (
        "dataset=isic2018 dataset.root=null dataset.phantom=null",
        {"folder of the download": "dataset=isic2018 dataset.root=x"},
    ),
    (
        "trainer.accelerator=gpu trainer.compile=reduce-overhead trainer.accumulate=2",
        {
            "use (trainer.compile)=(default)": (
                "trainer.accelerator=gpu {1}={2} trainer.accumulate=2"
            ),
            "or (1)$": (
                "trainer.accelerator=gpu trainer.compile=reduce-overhead trainer.accumulate={1}"
            ),
        },
    ),
    "trainer.gradient_checkpointing=true trainer.compile=blocks",
    "+conversion.parent=run trainer.compile=default",
    (
        "+conversion.parent=run trainer=fsdp",
        {"use trainer=ddp": "+conversion.parent=run trainer=ddp trainer.devices=2"},
    ),
    (
        "model=unet model.features=[4]",
        {"use (2) or more": "model=unet model.features=[4,8]"},
    ),
    (
        f"model=unet model.features={[4] * 12}".replace(" [", "[").replace(", ", ","),
        {r"allow (\d+)": "model=unet model.features=[4,4,4]"},
    ),
    (
        "model=crossvit attn@model.cross_attn=window",
        {"such as (qkv)": "model=crossvit attn@model.cross_attn={1}"},
    ),
    ("model=cvt tokens=merge", {"use (tokens)=(none)": "model=cvt {1}={2}"}),
    ("attn=none model=setr", {"such as (attn)=(qkv)": "{1}={2}"}),
    (
        "model=setr attn=neighborhood tokens=merge",
        {
            "use (tokens)=(none)": "attn=neighborhood {1}={2}",
            "such as (attn)=(qkv)": "tokens=merge {1}={2}",
        },
    ),
    (
        "attn=by_layer attn.layers=[1,99]",
        {r"give numbers of (\d+) to (\d+)": "attn=by_layer attn.layers=[{1},{2}]"},
    ),
    (
        "model=dae_former model.match=macs model.mlp_ratio=null",
        {"use (model.match)=(null)": "model=dae_former {1}={2}"},
    ),
    (
        "model.patch_size=6 dataset.image_size=[96,96]",
        {"use head=(naive)": "model.head={1} model.patch_size=6 dataset.image_size=[96,96]"},
    ),
    "model.size=tinyy",
    "model.head=up",
    "model=cvt model.decoder=x",
    "model=dae_former model.fusion=x",
)
TRIALS = ATTENTIONS | LIBRARY | SPACES | CONFIGURED
