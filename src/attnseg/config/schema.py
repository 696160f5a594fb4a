"""Options of the commands beside training."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from attnseg.config.errors import first_problem as explain
from attnseg.config.errors import nearest, parse_options
from attnseg.config.nodes import AsTuple, Component, Folder, Fraction, ImageSize, Names, Node
from attnseg.config.training import (
    INVENTED,
    Config,
    Dataset,
    Model,
    Optimizer,
    Paths,
    Precision,
    Split,
    Study,
    Trainer,
)
from attnseg.config.training import parse_config as check
from attnseg.errors import ConfigError

__all__ = [
    "INVENTED",
    "Component",
    "Config",
    "Dataset",
    "Model",
    "Optimizer",
    "Paths",
    "Precision",
    "Split",
    "Study",
    "Trainer",
    "check",
    "check_types",
    "explain",
    "nearest",
]  # fmt: skip

check_types = parse_options


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
    runs: Names
    case: str | None
    slice: PositiveInt | None
    point: Annotated[tuple[NonNegativeInt, NonNegativeInt], AsTuple] | None
    layer: Names
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


def check_benchmark(raw: Mapping[str, Any]) -> Benchmark:
    """Turn a plain configuration of a benchmark into a typed one."""
    return check_types(Benchmark, raw)


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
            raise ConfigError(explain(error, kind, node, place)) from error
        if isinstance(part, Range):
            _check_range(place, part)
    rest = {**raw, "space": parts}
    try:
        return Search.model_validate(rest)
    except ValidationError as error:
        raise ConfigError(explain(error, Search, rest, "search")) from error


def _check_range(place: str, part: Range) -> None:
    if not part.low < part.high:
        raise ConfigError(f"{place}: low {part.low} is not below high {part.high}; correct them")
    if part.log and part.low <= 0:
        raise ConfigError(f"{place}: low {part.low} has no logarithm; give a number above 0")
    if part.log and part.step is not None:
        raise ConfigError(f"{place}: log and step exclude each other; leave one out")
    if part.step is not None and part.step <= 0:
        raise ConfigError(f"{place}: step {part.step} leads nowhere; give a number above 0")
