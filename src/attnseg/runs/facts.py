"""The facts of a run, typed as `run.json` holds them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import TypedDict  # pydantic refuses that of Python 3.11


class GitState(TypedDict):
    """The commit of the code, and whether the working tree differed from it."""

    commit: str
    modified: bool


class Machine(TypedDict, total=False):
    """What a run was trained on."""

    python: str
    system: str
    threads: int
    device: str


class Attempt(TypedDict, total=False):
    """One start of a run; `cut off` until its process has noted how it ended."""

    started: str
    status: str
    reason: str


class OpenedTestSet(TypedDict):
    """Digest of the test cases, and how often they had been opened when the run ended."""

    digest: str
    openings: int


class RunFacts(BaseModel):
    """Everything in `run.json`; a run adds facts as it learns them.

    A fact that a run has not noted, since it is unfinished or older than the fact, has its default
    here. Facts that this version does not know are kept.

    Attributes:
        id: ten hexadecimal digits of configuration, data and split.
        status: `running`, `done`, `stopped` or `failed`.
        reason: why it stopped or failed.
        started: time of the first attempt, ISO 8601 in UTC.
        attempts: every start, the last one at the end.
        command: of the last attempt.
        choices: the name chosen in each configuration group, such as `model` and `attn`.
        seed: of the training.
        git: state of the code; `None` outside a clone.
        versions: of the packages, by name.
        machine: that the last attempt ran on.
        seconds: spent in `fit`, `evaluate` and in `total`, over all attempts.
        profile: the metric profile, with its name and digest.
        data: what the training data decided about the network's input, as prediction needs it.
        data_digest: SHA-256 of all cases.
        split_digest: SHA-256 of `split.csv`.
        parameters: numbers of weights: `total` and the model's parts.
        macs: multiply-accumulates for one slice.
        watermark: a mark that must stand beside every number, if any.
        best_epoch: counted from 1.
        checkpoints: SHA-256 by file name.
        test_set: set once the run has been scored.
        peak_memory_bytes: of training and scoring.
    """

    model_config = ConfigDict(extra="allow")

    id: str = ""
    status: str
    reason: str | None = None
    started: str | None = None
    attempts: list[Attempt] = []
    command: list[str] | None = None
    choices: dict[str, str] = {}
    seed: int = 0
    git: GitState | None = None
    versions: dict[str, str] = {}
    machine: Machine = {}
    seconds: dict[str, float] = {}
    profile: dict[str, Any] = {}
    data: dict[str, Any] | None = None
    data_digest: str = ""
    split_digest: str = ""
    parameters: dict[str, Any] = {}
    macs: int = 0
    watermark: str | None = None
    best_epoch: int | None = None
    checkpoints: dict[str, str] = {}
    test_set: OpenedTestSet = {"digest": "", "openings": 0}
    peak_memory_bytes: int | None = None

    @classmethod
    def from_json(cls, text: str) -> "RunFacts":
        """Return the facts in the text of a `run.json`.

        Raises:
            ValueError: a fact is missing or of the wrong type; the message is one line.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error

    def to_json(self) -> str:
        """Return the facts noted so far as the text of `run.json`."""
        return self.model_dump_json(indent=1, exclude_unset=True) + "\n"
