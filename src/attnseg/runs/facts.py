"""The facts of a run, typed as `run.json` holds them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import TypedDict  # pydantic refuses that of Python 3.11

from attnseg.errors import DataError


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


class Energy(TypedDict, total=False):
    """Energy by the counters of the hardware; `None` where it is not known."""

    source: str | None  # the counters
    reason: str | None  # why the energy is not known
    fit_joules: float | None
    evaluate_joules: float | None
    wh: float | None  # of both
    joules_per_step: float | None  # of the optimizer, validation included
    joules_per_image: float | None  # of each slice in each epoch, validation included
    co2_g: float  # by `g_per_kwh`, if that is stated
    g_per_kwh: float


class Attempt(TypedDict, total=False):
    """One start of a run; `cut off` until its process has noted how it ended."""

    started: str
    status: str
    reason: str


class OpenedTestSet(TypedDict):
    """Digest of the test cases, and how often they had been opened when the run ended."""

    digest: str
    openings: int
    ledger: NotRequired[str]  # file beside the prepared data that records every opening


class RunFacts(BaseModel):
    """Everything in `run.json`; a run adds facts as it learns them.

    A fact that a run has not noted, since it is unfinished or older than the fact, has its default
    here. Facts that this version does not know are kept.
    """

    model_config = ConfigDict(extra="allow")

    id: str = ""  # ten hexadecimal digits of configuration, data and split
    status: str  # `running`, `done`, `stopped` or `failed`
    reason: str | None = None  # why it stopped or failed
    started: str | None = None  # time of the first attempt, ISO 8601 in UTC
    attempts: list[Attempt] = []  # every start, the last one at the end
    command: list[str] | None = None  # of the last attempt
    choices: dict[str, str] = {}  # the name chosen in each configuration group
    plugins: dict[str, dict[str, str]] = {}  # whose code was used: version or file, and digest
    seed: int = 0  # of the training
    git: GitState | None = None  # state of the code; `None` outside a clone
    versions: dict[str, str] = {}  # of the packages, by name
    machine: Machine = {}  # of the last attempt
    seconds: dict[str, float] = {}  # in `fit`, in `evaluate` and in `total`, over all attempts
    energy: Energy = {}  # of the device, over all attempts
    profile: dict[str, Any] = {}  # the metric profile, with its name and digest
    data: dict[str, Any] | None = None  # from `describe_input`, for prediction
    data_digest: str = ""  # SHA-256 of all cases
    split_digest: str = ""  # SHA-256 of `split.csv`
    parameters: dict[str, Any] = {}  # numbers of weights: `total` and the model's parts
    macs: int = 0  # multiply-accumulates for one slice
    attention: dict[str, int] = {}  # `parameters` and `macs` of the attentions
    attention_kernels: dict[str, int] = {}  # calls of each in a forward pass, see `attn.backend`
    pretrained: list[str] | None = None  # which of the weights in `model.pretrained` were taken
    parent: dict[str, str] = {}  # of a conversion: run folder, id, attention, digest of the weights
    declared: dict[str, Any] = {}  # the study's comparison, with its digest, before training
    watermark: str | None = None  # a mark that must stand beside every number, if any
    best_epoch: int | None = None  # counted from 1
    checkpoints: dict[str, str] = {}  # SHA-256 by file name
    test_set: OpenedTestSet = {"digest": "", "openings": 0}  # set once the run has been scored
    results: dict[str, str] = {}  # SHA-256 of the files with scores and what decided them
    peak_memory_bytes: int | None = None  # of training and scoring
    seal: str | None = None  # SHA-256 of all other facts, noted with them

    def check_classes(
        self, place: object, classes: Sequence[str], values: Sequence[int] | None = None
    ) -> None:
        """Refuse a dataset with other classes than when the run at `place` was trained.

        Raises:
            DataError: names the classes of both, or their values in the label files.
        """
        noted = self.data or {}
        now: list[object] = list(classes)
        before = noted.get("classes", now)
        if before == now and "values" in noted:
            before, now = noted["values"], list(values or range(1, len(classes) + 1))
        if before != now:
            raise DataError(
                f"{place}: trained for the classes {', '.join(map(str, before))}, but the dataset "
                f"has {', '.join(map(str, now))} now; restore their names or set paths.outputs"
            )

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
        """Return the facts noted so far, and their seal, as the text of `run.json`."""
        facts = json.loads(self.model_dump_json(exclude_unset=True, exclude={"seal"}))
        facts["seal"] = _seal_facts(facts)
        return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


def keeps_seal(text: str) -> bool:
    """Return whether the facts of a `run.json` are those that its run noted.

    Facts without a seal, as of version 0.1.0, count as such. The seal shows changes by hand; it
    does not stop a person who computes it anew.
    """
    facts = json.loads(text)
    return facts.pop("seal", None) in (None, _seal_facts(facts))


def _seal_facts(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
