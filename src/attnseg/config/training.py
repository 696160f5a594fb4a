"""The configuration of a training run: the type, the bounds and the meaning of each field.

Nothing here imports torch, so that a mistyped command is answered at once. The options of a
component (a node with `_target_`) are checked against its class when it is built.

A field without a default gets its value from `configs/`. The default of a field that has one
stands here alone; `--help` and `--cfg` show it nevertheless. A marker says whether a field belongs
to a run's identity and whether a difference in it makes runs incomparable; see `markers.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from attnseg.config.errors import OptionError, parse_options
from attnseg.config.markers import Device, Harmless, NotIdentity, Technical
from attnseg.config.nodes import Component, Folder, Fraction, ImageSize, Node, Seed

INVENTED = "-phantom"  # at the end of the name of a dataset that is generated
MAX_WORKERS = 1024  # more is a slip of the keyboard, and would take the machine down

Precision = Literal[32, "tf32", "bf16-mixed", "16-mixed"]


def _none_if_empty(value: object) -> object:
    return value or None


class Split(Node):
    """Division of the patients into training, validation and test.

    Attributes:
        file: a published division; its content is in the digest of the split.
    """

    file: Annotated[str | None, NotIdentity]
    val: Fraction
    test: Fraction
    folds: Annotated[int, Field(ge=2)] | None
    fold: Annotated[NonNegativeInt, Harmless]
    seed: NonNegativeInt
    duplicates: Literal["refuse", "group", "drop"]
    watch_test: bool

    @model_validator(mode="after")
    def _check_fold(self) -> Self:
        if self.folds is not None and self.fold >= self.folds:
            raise OptionError(
                "fold", f"{self.fold} of {self.folds} folds; use 0 to {self.folds - 1}"
            )
        return self


class Dataset(Component):
    """A dataset: the reader's own options, and those of any dataset.

    The files at `root`, or those of the phantom, are in the digest of the data.

    Attributes:
        exclude: names of cases that are left out.
        phantom: what generates the data where there is no `root`.
        stride: distance between neighbouring slices, in slices.
        batch_size: slices per batch.
        max_epochs: passes over the training slices.
    """

    root: Annotated[Folder | None, Technical]
    exclude: list[str]
    limit_cases: Annotated[int, Field(ge=3)] | None
    split: Split
    phantom: Annotated[Component | None, Technical]
    image_size: ImageSize
    slices: PositiveInt
    stride: PositiveInt
    foreground: Annotated[float, Field(ge=0, le=1)]
    batch_size: PositiveInt
    max_epochs: NonNegativeInt

    @model_validator(mode="after")
    def _check_root_and_slices(self) -> Self:
        if self.root is None and self.phantom is None:
            raise OptionError("root", "not set; give the folder of the download")
        if self.slices % 2 == 0:
            raise OptionError("slices", f"{self.slices} has no middle; use an odd number")
        return self


class Model(Component):
    """A model: its own options, weights to start from, and the budget to be matched.

    Attributes:
        mlp_ratio: hidden width of the MLPs, as a multiple of the tokens' width.
        tokens: reduces the tokens between blocks; the group `tokens` sets it.
    """

    pretrained: Folder | None
    match: Literal["params", "macs"] | None
    mlp_ratio: PositiveFloat | None = None
    tokens: Annotated[Component | None, BeforeValidator(_none_if_empty)] = None

    @property
    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of the class."""
        ratio = {} if self.mlp_ratio is None else {"mlp_ratio": self.mlp_ratio}
        tokens = {} if self.tokens is None else {"tokens": self.tokens.model_dump(by_alias=True)}
        return {**ratio, **tokens, **(self.model_extra or {})}


class Optimizer(Component):
    """An optimizer of PyTorch.

    Attributes:
        lr: the learning rate after the warm-up.
        weight_decay: share of a weight that is taken off it, times the learning rate, per step; not
            of biases, norms, class tokens and positions.
    """

    lr: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)]

    @property
    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of the class."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, **(self.model_extra or {})}


class Trainer(Node):
    """Training itself, and the machine that it runs on.

    Attributes:
        max_epochs: with 0 nothing is trained, and the initial weights are tested.
        accelerator: the kind of device.
        devices: number of GPUs or, on the processor, of processes.
        strategy: division of the work among several devices.
        jobs_per_gpu: runs that may share a GPU; others wait for a free one.
        precision: `tf32` trains in 32 bits and rounds the factors of products to TF32; `auto` is
            the fastest of this machine.
        auto_batch: set `dataset.batch_size` to the largest that fits.
        gradient_checkpointing: compute activations again instead of keeping them; the weights
            are the same to the bit.
        compile: mode of torch.compile; `blocks` compiles each kind of block once, and nothing
            else, `reduce-overhead` uses CUDA graphs.
        accumulate: batches per optimizer step.
        gradient_clip: largest norm; `None` for none.
        ema_decay: validate and keep averaged weights; 0.999, for example.
        monitor: decides which epoch is the best; never of the test set.
        early_stopping: epochs without a better monitor before training ends.
        limit_batches: per epoch, to try things out.
        score_every: epochs between scorings of whole validation cases, distances included.
        num_workers: loader processes; `auto` is one per core on a GPU, up to 16 for each, and none
            on a CPU, whose cores train.
        loader_timeout: seconds without a batch before the run fails; `None` to wait for ever.
        save_minutes: minutes between checkpoints within an epoch; `None` for one per epoch.
        deterministic: compute the same to the bit each time; a GPU refuses what it cannot repeat.
        open_test: `False` leaves the test set closed and scores the validation cases only.
        keep_pictures: of the scored cases, for the comparison's page; 15 to 60 KB per case.
        attempts: how often a run may fail before it is not tried again.
        co2_g_per_kwh: CO2 of the electricity here; with it, `run.json` states that of the run.
        repeat: train a finished run again, in a folder of its own.
        resume_changed: resume a run although packages or devices are not those of its first part.
        auxiliary_weight: of a model's auxiliary outputs, as in SETR.
    """

    max_epochs: NonNegativeInt
    accelerator: Annotated[Literal["cpu", "gpu"], Device] = "cpu"
    devices: Annotated[PositiveInt, Device] = 1
    jobs_per_gpu: Annotated[PositiveInt, Technical] = 1
    strategy: Annotated[Literal["auto", "ddp", "fsdp"], Device] = "auto"
    precision: Precision | Literal["auto"] = 32
    auto_batch: Annotated[bool, Technical] = False  # the size it finds is in dataset.batch_size
    gradient_checkpointing: Annotated[bool, Technical] = False
    compile: Literal["default", "blocks", "reduce-overhead", "max-autotune"] | None = None
    accumulate: PositiveInt = 1
    gradient_clip: PositiveFloat | None = 1.0
    ema_decay: Fraction | None = None
    monitor: Literal["val/dice", "val/loss"] = "val/dice"
    early_stopping: PositiveInt | None = None
    limit_batches: PositiveInt | None = None
    score_every: Annotated[PositiveInt | None, Technical] = None
    num_workers: Annotated[
        Annotated[int, Field(ge=0, le=MAX_WORKERS)] | Literal["auto"], Technical
    ] = 0
    loader_timeout: Annotated[PositiveFloat | None, Technical] = 600.0
    save_minutes: Annotated[PositiveFloat | None, Technical] = 1.0
    deterministic: bool = True
    open_test: bool = True
    keep_pictures: Annotated[bool, Technical] = True
    attempts: Annotated[PositiveInt, Technical] = 3
    repeat: Annotated[bool, Technical] = False
    resume_changed: Annotated[bool, Technical] = False
    co2_g_per_kwh: Annotated[PositiveFloat | None, Technical] = None
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.4

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        if self.precision in ("16-mixed", "tf32") and self.accelerator == "cpu":
            raise OptionError("precision", f"{self.precision} needs a GPU; use bf16-mixed or 32")
        if self.auto_batch and self.devices > 1:
            raise OptionError(
                "auto_batch",
                "for one device; find the size with trainer.devices=1 and give it as "
                "dataset.batch_size",
            )
        if self.strategy == "fsdp":
            for key in ("ema_decay", "score_every", "compile"):
                if getattr(self, key) is not None:
                    raise OptionError(
                        key, f"not with trainer=fsdp; use trainer=ddp or trainer.{key}=null"
                    )
        graphs = self.compile == "reduce-overhead" and self.accelerator == "gpu"
        if graphs and self.accumulate > 1:
            raise OptionError(
                "accumulate",
                "CUDA graphs (trainer.compile=reduce-overhead) overwrite the gradients that are "
                "added up; use trainer.compile=default or 1",
            )
        if self.compile == "blocks" and self.gradient_checkpointing:
            raise OptionError(
                "gradient_checkpointing",
                "blocks that are compiled alone would count batch statistics twice; use "
                "trainer.compile=default",
            )
        if self.devices > 1 and self.strategy == "auto":
            raise OptionError("devices", f"{self.devices} devices need trainer=ddp")
        return self

    @property
    def device_type(self) -> Literal["cpu", "cuda"]:
        """The accelerator as PyTorch calls it."""
        return "cuda" if self.accelerator == "gpu" else "cpu"


class Paths(Node):
    """Folders: prepared cases and phantoms, and everything that commands write."""

    data: Folder
    outputs: Folder


class Study(Node):
    """The comparison of a sweep's runs when all are done; as in `compare.yaml`.

    Attributes:
        baseline: the variant that the others are compared with.
        by: options whose values distinguish the variants; `conversion` tells converted networks
            from those that were trained from scratch.
        metrics: those that are compared; by default the first of the runs' profile.
        margin: the largest difference that does not matter, in the metric's unit, or one for each
            metric; declared before the runs.
    """

    baseline: str
    by: list[str] = Field(["model", "attn"], min_length=1)
    metrics: list[str] = Field(default_factory=list)
    margin: PositiveFloat | dict[str, PositiveFloat] | None = None  # one, or one for each metric


class Conversion(Node):
    """The conversion of a trained network, whose weights and answers the new network starts from.

    Attributes:
        parent: run folder of the trained network; its weights are in the run's identity.
        surgery: what becomes of projections that the new attention shares: `solve` keeps scores and
            values as well as it can, `average` takes the mean, the others take that of one role.
        task: weight of the loss of `loss` in training.
        logits: weight of the divergence from the parent's probabilities.
        features: weight of the relative squared distance from the parent's attention outputs.
        temperature: by which logits are divided before they are compared.
    """

    parent: Annotated[Folder, Harmless]
    surgery: Literal["solve", "average", "query", "key", "value"] = "solve"
    task: Annotated[float, Field(ge=0)] = 1.0
    logits: Annotated[float, Field(ge=0)] = 1.0
    features: Annotated[float, Field(ge=0)] = 1.0
    temperature: PositiveFloat = 2.0

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not self.task + self.logits + self.features:
            raise OptionError("task", "0 like the other weights; give one above 0")
        return self


class Config(Node):
    """The whole configuration of a training run.

    Attributes:
        conversion: of a trained network to the attention of this run; `attnseg convert` sets it.
        seed: of initialisation, order and augmentation; the split has its own.
        phantom_size: preset of the data that is generated where none is given.
        choices: the name chosen in each group.
        attn: `None` for a model without attention.
    """

    seed: Annotated[Seed, Harmless]
    phantom_size: Annotated[str, Technical]  # the phantom's files are in the digest of the data
    compare: Annotated[Study | None, Technical]
    paths: Annotated[Paths, Technical]
    choices: Annotated[dict[str, str], NotIdentity]  # names for the other keys
    dataset: Dataset
    attn: Annotated[Component | None, BeforeValidator(_none_if_empty)] = None
    model: Model
    loss: Component
    augment: Component
    optimizer: Optimizer
    scheduler: Component
    profile: dict[str, Component]
    logger: Annotated[dict[str, Component], Technical] = Field(default_factory=dict)
    trainer: Trainer
    conversion: Conversion | None = None

    @model_validator(mode="after")
    def _check_conversion(self) -> Self:
        if self.conversion is not None:
            if self.trainer.compile is not None:
                raise OptionError(
                    "trainer.compile",
                    "a conversion compares attention outputs within the network, which compilation "
                    "hides; use trainer.compile=null",
                )
            if self.trainer.strategy == "fsdp":
                raise OptionError(
                    "trainer.strategy", "fsdp would divide the parent, too; use trainer=ddp"
                )
        return self

    @model_validator(mode="after")
    def _check_profile(self) -> Self:
        if len(self.profile) != 1:
            raise OptionError(
                "profile",
                f"{', '.join(self.profile)}; train with one and compare with attnseg evaluate",
            )
        return self

    @property
    def dataset_name(self) -> str:
        """The name of the chosen dataset; generated data never goes under the name of real data."""
        name = self.choices["dataset"]
        real = self.dataset.root is not None or f"-{name}".endswith(INVENTED)
        return name if real else f"{name}{INVENTED}"

    def to_yaml(self) -> str:
        """Return the configuration as YAML that Hydra, OmegaConf and PyYAML read alike.

        The names chosen in the groups are left out: they are not keys of the command line.
        """
        plain = self.model_dump(mode="json", by_alias=True, exclude={"choices"})
        return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True))

    def revise(self, part: str, **values: object) -> Self:
        """Return the configuration with other values in a part, such as `trainer`."""
        return self.model_copy(update={part: getattr(self, part).model_copy(update=values)})


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes text that looks like a number: for OmegaConf `1e5` is one, for PyYAML it is not."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return a scalar, in quotes where it needs them."""
        try:
            float(text)
        except ValueError:
            return self.represent_str(text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'")


_Dumper.add_representer(str, _Dumper.represent_text)


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Turn the plain configuration of a training run into a typed one."""
    return parse_options(Config, raw)
