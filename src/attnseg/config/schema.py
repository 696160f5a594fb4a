"""The configuration as types: what every key may hold, checked before anything else happens.

Nothing here imports torch, so that a mistyped command is answered at once. The options of a
component (a node with `_target_`) are checked against its constructor when it is built.
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from attnseg.errors import ConfigError

INVENTED = "-phantom"  # ends the name of a dataset that was made up

Fraction = Annotated[float, Field(gt=0, lt=1)]
Folder = Annotated[str, Field(min_length=1)]
Precision = Literal[32, "bf16-mixed", "16-mixed"]
MAX_SEED = 2**32 - 1  # NumPy takes no larger one
MAX_WORKERS = 1024  # more is a slip of the keyboard, and would take the machine down


def _height_and_width(value: object) -> object:
    if isinstance(value, int):
        return (value, value)
    return tuple(value) if isinstance(value, list) else value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _list(value: object) -> object:
    return [value] if isinstance(value, str) else value or []


ImageSize = Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_height_and_width)]


class Node(BaseModel):
    """A part of the configuration with fixed keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Component(BaseModel):
    """A part of the configuration that names a class and holds the options it is built with."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, populate_by_name=True)

    target: str = Field(alias="_target_")

    @property
    def options(self) -> dict[str, Any]:
        """What is passed to the class by name."""
        return dict(self.model_extra or {})


class Split(Node):
    """How patients are divided."""

    file: str | None
    val: Fraction
    test: Fraction
    folds: Annotated[int, Field(ge=2)] | None
    fold: NonNegativeInt
    seed: NonNegativeInt
    duplicates: Literal["refuse", "group", "drop"]
    watch_test: bool


class Dataset(Component):
    """A dataset: the reader's own options, and what holds for any dataset."""

    root: str | None
    exclude: list[str]
    limit_cases: Annotated[int, Field(ge=3)] | None
    split: Split
    phantom: Component | None
    image_size: ImageSize
    slices: PositiveInt
    stride: PositiveInt
    foreground: Annotated[float, Field(ge=0, le=1)]
    batch_size: PositiveInt
    max_epochs: NonNegativeInt


class Model(Component):
    """A model: its own options, weights to start from, and the budget to be matched."""

    pretrained: str | None
    match: Literal["params", "macs"] | None
    mlp_ratio: PositiveFloat

    @property
    def options(self) -> dict[str, Any]:
        """What is passed to the class by name."""
        return {"mlp_ratio": self.mlp_ratio, **(self.model_extra or {})}


class Optimizer(Component):
    """An optimizer of PyTorch."""

    lr: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)]

    @property
    def options(self) -> dict[str, Any]:
        """What is passed to the class by name."""
        return {"lr": self.lr, "weight_decay": self.weight_decay, **(self.model_extra or {})}


class Trainer(Node):
    """How to train, and on what."""

    max_epochs: NonNegativeInt
    accelerator: Literal["cpu", "gpu"]
    devices: PositiveInt
    jobs_per_gpu: PositiveInt
    strategy: Literal["auto", "ddp", "fsdp"]
    precision: Precision | Literal["auto"]
    auto_batch: bool = False  # this and the next two: runs from before they were there have none
    gradient_checkpointing: bool = False
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    accumulate: PositiveInt
    gradient_clip: PositiveFloat | None
    ema_decay: Fraction | None
    monitor: Literal["val/dice", "val/loss"]
    early_stopping: PositiveInt | None
    limit_batches: PositiveInt | None
    score_every: PositiveInt | None
    num_workers: Annotated[int, Field(ge=0, le=MAX_WORKERS)]
    loader_timeout: PositiveFloat | None
    save_minutes: PositiveFloat | None
    deterministic: bool
    open_test: bool
    keep_pictures: bool
    attempts: PositiveInt
    repeat: bool
    auxiliary_weight: Annotated[float, Field(ge=0)]


class Paths(Node):
    """Where things are kept."""

    data: Folder
    outputs: Folder


class Study(Node):
    """How the runs of a sweep are compared when all are done; as in `compare.yaml`."""

    baseline: str
    by: Annotated[list[str], Field(min_length=1)] = ["model", "attn"]
    metrics: list[str] = []
    margin: PositiveFloat = 0.01


class Config(Node):
    """The whole configuration of a training run.

    Attributes:
        choices: the name chosen in each group.
    """

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    phantom_size: str
    compare: Study | None
    paths: Paths
    choices: dict[str, str]
    dataset: Dataset
    attn: Component
    model: Model
    loss: Component
    augment: Component
    optimizer: Optimizer
    scheduler: Component
    profile: dict[str, Component]
    logger: dict[str, Component] = {}  # runs from before there were any have none
    trainer: Trainer

    @property
    def dataset_name(self) -> str:
        """The dataset chosen; invented data never goes under the name of the real."""
        name = self.choices["dataset"]
        real = self.dataset.root is not None or f"-{name}".endswith(INVENTED)
        return name if real else f"{name}{INVENTED}"

    def to_yaml(self) -> str:
        """Return the configuration as YAML that Hydra, OmegaConf and PyYAML read alike.

        The names chosen in the groups are left out: they are not keys of the command line.
        """
        plain = self.model_dump(mode="json", by_alias=True, exclude={"choices"})
        return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def revise(self, part: str, **values: object) -> Self:
        """Return the configuration with other values in a part, such as `trainer`."""
        revised = getattr(self, part).model_copy(update=values)
        return self.model_copy(update={part: revised})


class _Dumper(yaml.SafeDumper):
    """Quotes text that looks like a number: for OmegaConf `1e5` is one, for PyYAML it is not."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return a scalar, in quotes where it needs them."""
        try:
            float(text)
        except ValueError:
            return self.represent_str(text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'")


_Dumper.add_representer(str, _Dumper.represent_text)


class Published(Node):
    """What a workload's published code took; see `configs/workload/dae_former.yaml`.

    Attributes:
        step: GEMM-equivalent GFLOP per image of a float32 training step.
        step_bf16: the same under bf16 autocast.
        work: GFLOP per image that it computes, 6 x counted MACs.
        memory: peak of the float32 step, GiB.
        latency: of one image, ms.
    """

    step: float
    step_bf16: float | None
    work: float
    memory: float
    latency: float


class Benchmark(Config):
    """What is measured, on what, and how often.

    Attributes:
        against: another attention, measured in alternation.
        threads: of PyTorch; `None` is its own choice.
    """

    suite: str
    against: str | None
    image_size: ImageSize
    in_channels: PositiveInt
    num_classes: Annotated[int, Field(ge=2)]
    batch_size: PositiveInt
    repeats: PositiveInt
    precisions: Annotated[list[Literal["float32", "bf16"]], Field(min_length=1)]
    threads: PositiveInt | None
    device: Literal["cpu", "cuda"]
    published: Published | None
    outputs: Folder


class Reopen(Node):
    """How a finished run is opened again.

    Attributes:
        split: whose cases are asked for.
        root: of the dataset, if it has moved.
        data: `paths.data`, if it has moved.
    """

    split: Literal["val", "test"]
    root: str | None
    data: str | None
    device: Literal["cpu", "cuda"]


class Evaluate(Reopen):
    """What is scored, and under which profiles."""

    choices: dict[str, str]
    profile: dict[str, Component]
    run: str | None
    pipeline: Literal["native", "zoom", "network_size"]
    pred: str | None
    truth: str | None
    classes: list[str] | None
    patient: str | None
    worst: NonNegativeInt
    outputs: str | None


class Explain(Reopen):
    """Whose attention is drawn, and where.

    Attributes:
        slice: its number, from 1.
        point: row and column of a pixel of the slice, from 0.
        layer: names or patterns of layers; none for all.
    """

    choices: dict[str, str]
    run: str | None
    runs: Annotated[list[str], BeforeValidator(_list)]
    case: str | None
    slice: PositiveInt | None
    point: Annotated[tuple[NonNegativeInt, NonNegativeInt], BeforeValidator(_tuple)] | None
    layer: Annotated[list[str], BeforeValidator(_list)]
    heads: bool
    scores: bool
    outputs: str | None


Sizes = Annotated[float, Field(ge=0)] | dict[str, Annotated[float, Field(ge=0)]] | None
Counts = NonNegativeInt | dict[str, NonNegativeInt] | None


class Postprocess(Node):
    """What is done to masks: of all classes, or of those that are named."""

    largest_component: bool | list[str] = False
    min_ml: Sizes = None
    min_pixels: Counts = None


class Predict(Node):
    """What is segmented by what, and how."""

    choices: dict[str, str]
    run: str | Annotated[list[str], Field(min_length=1)] | None
    study: str | None
    capsule: str | None
    input: Folder
    output: Folder
    backend: Literal["torch", "onnx"]
    device: Literal["cpu", "cuda"]
    threads: PositiveInt | None
    batch_size: PositiveInt
    flips: list[Literal["h", "v"]]
    tiles: Annotated[float, Field(ge=0, lt=1)] | None
    probabilities: bool
    uncertainty: bool
    overlays: bool
    postprocess: Postprocess


class Export(Reopen):
    """What a finished run is exported as."""

    choices: dict[str, str]
    profile: dict[str, Component]
    run: str
    formats: Annotated[list[Literal["onnx", "torch", "safetensors"]], Field(min_length=1)]
    int8: bool
    split: Literal["val"] = "val"  # the test set stays sealed
    device: Literal["cpu"] = "cpu"


class Capsule(Node):
    """What goes into a capsule."""

    choices: dict[str, str]
    run: str
    output: Folder
    license: str | None
    use: str | None
    postprocess: Postprocess


class Verify(Node):
    """Which capsule is verified."""

    choices: dict[str, str]
    capsule: Folder
    threads: NonNegativeInt


class Publish(Node):
    """Which capsule is published, and where."""

    choices: dict[str, str]
    capsule: Folder
    to: Folder


class Compare(Node):
    """Which runs are compared, and how."""

    choices: dict[str, str]
    runs: list[str]
    baseline: str
    by: Annotated[list[str], Field(min_length=1)]
    split: Literal["val", "test"]
    metric: str | None
    margin: PositiveFloat
    level: Fraction
    cases: PositiveInt
    outputs: str
    seed: NonNegativeInt


class Range(Node):
    """What an option of a search is drawn from: numbers; whole ones if both ends are."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None


class Choices(Node):
    """What an option of a search is drawn from: a list."""

    choices: Annotated[list[bool | int | float | str | None], Field(min_length=1)]


class Search(Node):
    """What is searched, and how."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None
    space: dict[str, Range | Choices]
    trials: PositiveInt
    sampler: Literal["tpe", "random"]
    seed: NonNegativeInt
    pruner: Literal["median", "halving", "none"]
    startup: NonNegativeInt
    warmup: NonNegativeInt
    report: bool


Schema = TypeVar("Schema", bound=Node)


def check_types(schema: type[Schema], raw: Mapping[str, Any]) -> Schema:
    """Turn a plain configuration into a typed one.

    Raises:
        ConfigError: names the first key that is wrong, what is wrong and what it may be.
    """
    for key, value in _leaves(raw):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}: {value} is not a finite number; give one")
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error, raw)) from error


def check(raw: Mapping[str, Any]) -> Config:
    """Turn a plain configuration of a training run into a typed one.

    Raises:
        ConfigError: as `check_types`, or keys do not fit each other.
    """
    config = check_types(Config, raw)
    check_fit(config)
    return config


def check_benchmark(raw: Mapping[str, Any]) -> Benchmark:
    """Turn a plain configuration of a benchmark into a typed one; raises as `check`."""
    config = check_types(Benchmark, raw)
    check_fit(config)
    return config


def check_fit(config: Config) -> None:
    """Refuse keys that do not fit each other.

    Raises:
        ConfigError: names the key.
    """
    trainer = config.trainer
    if trainer.precision == "16-mixed" and trainer.accelerator == "cpu":
        raise ConfigError("trainer.precision: 16-mixed needs a GPU; use bf16-mixed or 32")
    if trainer.auto_batch and trainer.devices > 1:
        raise ConfigError(
            "trainer.auto_batch: for one device; find the size with trainer.devices=1 and give it "
            "as dataset.batch_size"
        )
    if trainer.strategy == "fsdp" and trainer.ema_decay is not None:
        raise ConfigError("trainer.ema_decay: not with trainer=fsdp; use trainer=ddp or null")
    if trainer.devices > 1 and trainer.strategy == "auto":
        raise ConfigError(f"trainer.devices: {trainer.devices} devices need trainer=ddp")
    if config.dataset.root is None and config.dataset.phantom is None:
        raise ConfigError("dataset.root: not set; give the folder of the download")
    if len(config.profile) != 1:
        raise ConfigError(
            f"profile: {', '.join(config.profile)}; train with one and compare with `attnseg "
            "evaluate`"
        )
    if config.dataset.slices % 2 == 0:
        raise ConfigError(
            f"dataset.slices: {config.dataset.slices} has no middle; use an odd number"
        )
    split = config.dataset.split
    if split.folds is not None and split.fold >= split.folds:
        raise ConfigError(
            f"dataset.split.fold: {split.fold} of {split.folds} folds; use 0 to {split.folds - 1}"
        )


def check_evaluate(raw: Mapping[str, Any]) -> Evaluate:
    """Turn a plain configuration of an evaluation into a typed one.

    Raises:
        ConfigError: as `check_types`, or it is not clear what to score.
    """
    config = check_types(Evaluate, raw)
    folders = config.pred is not None and config.truth is not None
    if (config.run is not None) == folders or (config.pred is None) != (config.truth is None):
        raise ConfigError("run: give a run folder as run=DIR, or masks as pred=DIR truth=DIR")
    return config


def check_explain(raw: Mapping[str, Any]) -> Explain:
    """Turn a plain configuration of attention maps into a typed one.

    Raises:
        ConfigError: as `check_types`, or it is not clear whose attention to draw.
    """
    config = check_types(Explain, raw)
    if (config.run is None) == (not config.runs):
        raise ConfigError("run: give a run folder as run=DIR, or several as runs=[DIR,DIR]")
    return config


def check_predict(raw: Mapping[str, Any]) -> Predict:
    """Turn a plain configuration of a prediction into a typed one.

    Raises:
        ConfigError: as `check_types`, or it is not clear what to predict with.
    """
    config = check_types(Predict, raw)
    if sum(source is not None for source in (config.run, config.study, config.capsule)) != 1:
        raise ConfigError("run: give one of run=DIR, run=[DIR,DIR], study=DIR and capsule=FILE")
    if config.backend == "onnx" and config.device == "cuda":
        raise ConfigError("device: backend=onnx runs on the CPU; use device=cpu or backend=torch")
    return config


def check_export(raw: Mapping[str, Any]) -> Export:
    """Turn a plain configuration of an export into a typed one.

    Raises:
        ConfigError: as `check_types`, or keys do not fit each other.
    """
    config = check_types(Export, raw)
    if config.int8 and "onnx" not in config.formats:
        raise ConfigError("int8: made of the ONNX file; add onnx to formats")
    if len(config.profile) != 1:
        raise ConfigError(f"profile: {', '.join(config.profile)}; give one, what int8 costs in it")
    return config


def check_search(raw: Mapping[str, Any]) -> Search:
    """Turn the plain options of a search into typed ones.

    Raises:
        ConfigError: as `check_types`, or nothing can be drawn from a part of the space.
    """
    space = raw.get("space")
    if not isinstance(space, Mapping) or not space:
        raise ConfigError(
            "search.space: not set; choose one as search=NAME or give "
            "search.space={KEY:{low:1e-4,high:1e-2,log:true}}"
        )
    parts: dict[str, Range | Choices] = {}
    for key, node in space.items():
        place = f"search.space.{key}"
        if not isinstance(node, Mapping):
            raise ConfigError(f"{place}: {node!r} is no range; give low and high, or choices")
        kind: type[Range | Choices] = Choices if "choices" in node else Range
        try:
            parts[key] = part = kind.model_validate(node)
        except ValidationError as error:
            raise ConfigError(explain(error, node, place)) from error
        if isinstance(part, Range):
            _check_range(place, part)
    rest = {**raw, "space": parts}
    try:
        return Search.model_validate(rest)
    except ValidationError as error:
        raise ConfigError(explain(error, rest, "search")) from error


def _check_range(place: str, part: Range) -> None:
    if not part.low < part.high:
        raise ConfigError(f"{place}: low {part.low} is not below high {part.high}; correct them")
    if part.log and part.low <= 0:
        raise ConfigError(f"{place}: low {part.low} has no logarithm; give a number above 0")
    if part.log and part.step is not None:
        raise ConfigError(f"{place}: log and step exclude each other; leave one out")
    if part.step is not None and part.step <= 0:
        raise ConfigError(f"{place}: step {part.step} leads nowhere; give a number above 0")


def explain(
    error: ValidationError, raw: Mapping[str, Any], prefix: str = "", also: Iterable[str] = ()
) -> str:
    """Return one line for the first problem pydantic found.

    Args:
        error: what pydantic raised.
        raw: the mapping that was checked.
        prefix: key that `raw` itself has in the whole configuration.
        also: names that are allowed beside those of the schema.
    """
    # An unknown key explains a missing one better than the other way round.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"] if not _is_branch(part, first["loc"], raw)]
    key = ".".join([*([prefix] if prefix else []), *place])
    if first["type"] == "extra_forbidden":
        siblings = {*_siblings(error, first["loc"]), *also}
        return f"{key}: no such option; {nearest(place[-1], siblings)}"
    if first["type"] == "missing":
        return f"{key}: missing; choose or set it"
    message = first["msg"]
    got = first["input"]
    return f"{key}: {got!r} is not allowed; {message[0].lower()}{message[1:]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return advice for a name that is not among `known`."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    advice = f"did you mean {close[0]}? " if close else ""
    return f"{advice}choose one of {', '.join(known)}" if known else "remove it"


def _leaves(node: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{key}[{i}]")
    else:
        yield key, node


def _is_branch(part: object, loc: tuple[Any, ...], raw: Mapping[str, Any]) -> bool:
    """Whether a part of pydantic's location names a branch of a union, not a key."""
    node: Any = raw
    for name in loc:
        if isinstance(node, Mapping) and name in node:
            node = node[name]
        elif name is part:
            return not isinstance(node, Mapping) and not isinstance(part, int)
    return False


def _siblings(error: ValidationError, loc: tuple[Any, ...]) -> list[str]:
    """Return the names that are allowed where an unknown one was found."""
    node: Any = SCHEMAS.get(error.title)
    for part in loc[:-1]:
        field = node.model_fields.get(part) if node else None
        node = getattr(field, "annotation", None)
        if not (isinstance(node, type) and issubclass(node, BaseModel)):
            return []
    return [field.alias or name for name, field in node.model_fields.items()] if node else []


SEARCH = (Search, Range, Choices)
SCHEMAS: dict[str, type[BaseModel]] = {
    schema.__name__: schema
    for schema in (
        Config,
        Benchmark,
        Evaluate,
        Explain,
        Predict,
        Export,
        Capsule,
        Verify,
        Publish,
        Compare,
        *SEARCH,
    )
}
