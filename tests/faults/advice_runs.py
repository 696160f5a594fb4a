"""Trials of runs and their comparison, of evaluated masks, and of what is made of runs."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from attnseg.config.prediction import Postprocess, Predict
from attnseg.runs import active_run
from attnseg.runs.active_run import ActiveRun
from attnseg.runs.checkpoints import load_weights
from attnseg.runs.facts import RunFacts
from attnseg.runs.predictors import build_rules, list_voting_runs
from attnseg.runs.run_folder import RunFolder
from attnseg.runs.status import print_status
from attnseg.runs.variants import find_runs, group_by_variant, match_baselines, open_finished_runs
from attnseg.study.checks import check_comparable
from attnseg.study.metric import choose_metric
from attnseg.study.plan import plan_comparison
from tests.faults.advice import Trial, restore
from tests.faults.advice_data import change
from tests.faults.advice_splits import configure
from tests.study.test_manipulations import make_sealed_run

RUNS = "outputs/organs/setr"


def sealed(root: Path) -> None:
    """Two variants with two seeds each."""
    (root / "images").mkdir()
    for attn in ("qkv", "kv"):
        for seed in (0, 1):
            make_sealed_run(root, attn, seed)


def judge(trial: Trial) -> None:
    """Open, group and compare runs as a comparison does, without those that are left out."""
    given = {"runs": [f"{RUNS}/*/*"], "by": ["attn"], "split": "test", "baseline": "qkv"}
    options = given | trial.keywords
    runs = find_runs([str(trial.root / pattern) for pattern in options["runs"]])
    kept = [run for run in runs if str(run.path) not in trial.exclude]
    variants = group_by_variant(open_finished_runs([run.path for run in kept]), options["by"])
    check_comparable(variants, options["split"])
    match_baselines(variants, options["baseline"])
    choose_metric(kept[0], options["split"], options.get("metric"))


def leave_out(trial: Trial, text: str) -> None:
    """Leave out the run that the message names, the second of two."""
    paths = re.findall(rf"{re.escape(str(trial.root))}/{RUNS}/\w+/\w+", text)
    trial.exclude = (*trial.exclude, paths[-1])


def train_again(trial: Trial, text: str) -> None:
    """Train again with the option that is named: the new run has a folder of its own."""
    assert "trainer.repeat=true" in text
    (path,) = set(re.findall(rf"{re.escape(str(trial.root))}/{RUNS}/\w+/\w+", text)[-1:])
    new = Path(f"{path}-2")
    if not new.exists():  # once for all that is wrong with a run
        shutil.copytree(trial.pristine / Path(path).relative_to(trial.root), new)
    trial.exclude = (*trial.exclude, path)


def edit_facts(run: str, **changes: Any) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / RUNS / run / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def edit_table(run: str, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """Return what changes cases.csv of a run of a version that did not seal its results."""

    def damage(root: Path) -> None:
        folder = RunFolder(root / RUNS / run)
        table = edit(pd.read_csv(folder.cases_file, dtype=str, keep_default_na=False))
        table.to_csv(folder.cases_file, index=False)
        unseal(folder.path)

    return damage


def unseal(path: Path, **changes: Any) -> None:
    facts = json.loads((path / "run.json").read_text())
    kept = {key: value for key, value in facts.items() if key not in ("results", "seal")} | changes
    (path / "run.json").write_text(json.dumps(kept))


def unsealed(run: str, name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / RUNS / run / name
        path.write_text(path.read_text().replace(old, new))
        unseal(path.parent)

    return damage


def all_facts(**changes: Any) -> Callable[[Path], None]:
    return lambda root: (
        [unseal(root / RUNS / run, **changes) for run in ("qkv/qkv0id", "qkv/qkv1id")] and None
    )


def of_the_same_seed(root: Path) -> None:
    shutil.copytree(root / RUNS / "kv/kv0id", root / RUNS / "kv/copy")


def copied(root: Path) -> None:
    of_the_same_seed(root)
    path = root / RUNS / "kv/copy"
    unseal(path, seed=7, id="another")
    (path / "config.yaml").write_text(
        (path / "config.yaml").read_text().replace("\nseed: 0", "\nseed: 7")
    )


RUN = "kv/kv0id"
MENDED = {
    "trainer.repeat=true": train_again,
    r"restore it|damaged|missing": restore,
    "leave (it|one) out": leave_out,
    "do not compare|compare runs of one|score them under": leave_out,
    "use one split|on the same splits": leave_out,
}
JUDGED = {
    f"runs, {name}": Trial(
        judge, "baseline=kv", make=sealed, damage=damage, follow=MENDED, further="no variant is kv"
    )
    for name, damage in {
        "changed": change(f"{RUNS}/{RUN}/cases.csv", "split,patient,case,class,metric,value\n"),
        "missing": change(f"{RUNS}/{RUN}/split.csv", None),
        "no cases": change(f"{RUNS}/{RUN}/cases.csv", None),
        "facts": edit_facts(RUN, macs=9),
        "no column": unsealed(RUN, "cases.csv", "metric,value", "metric,score"),
        "not finished": edit_facts(RUN, status="failed"),
        "data": all_facts(data_digest="x" * 64),
        "watermark": all_facts(watermark="WATCHED"),
        "twice": of_the_same_seed,
        "copied": copied,
        "profile": unsealed(RUN, "metrics.json", "94e58393", "00000000"),
        "rows profile": unsealed(RUN, "cases.csv", ",strict", ",monai"),
        "seed": unsealed(RUN, "config.yaml", "seed: 0", "seed: 9"),
        "two rows": edit_table(RUN, lambda t: pd.concat([t, t.iloc[:4]])),
        "two patients": edit_table(
            RUN, lambda t: t.assign(patient=[p if n else "p9" for n, p in enumerate(t["patient"])])
        ),
        "impossible": edit_table(
            RUN,
            lambda t: t.assign(
                value=[
                    "7" if m == "dice" else v for m, v in zip(t["metric"], t["value"], strict=True)
                ]
            ),
        ),
        "case lacking": edit_table(RUN, lambda t: t[t["case"] != "p0_d0"]),
        "row lacking": edit_table(RUN, lambda t: t.drop(index=t[t["metric"] == "dice"].index[3])),
        "no test": edit_table(RUN, lambda t: t[t["split"] == "val"]),
        "split": unsealed(RUN, "split.csv", "p0_d0", "p0_d9"),
        "another split": all_facts(split_digest="x" * 64, test_set={"digest": "y", "openings": 1}),
    }.items()
}
ASKED = {
    line: Trial(judge, line, make=sealed, follow=follow)
    for line, follow in (
        ("runs=[]", {r"runs=\[(outputs)/\S+\]": f"runs=[{RUNS}/*/*]"}),
        ("runs=[none]", {"folders that hold run.json": f"runs=[{RUNS}/*/*]"}),
        (
            "by=[size]",
            {r"choose among (\w+)": "by=[attn]", "a key of its config.yaml": "by=[attn.name]"},
        ),
        ("baseline=pool", {r"choose one of (\w+)": "baseline={1}"}),
        ("metric=iou", {r"choose one of (\w+)": "metric={1}"}),
    )
}


def active(trial: Trial) -> None:
    """Train, in a folder whose run is done; a run that is done must have its weights."""
    config = configure(trial).revise("paths", outputs=str(trial.root / "outputs"))
    run = ActiveRun(config, "id")
    if run.finished:
        load_weights(torch.nn.Linear(1, 1), run.folder.best_checkpoint)
    else:
        run.end("stopped")


def done(root: Path) -> None:
    folder = root / "outputs/phantom/setr/qkv/id"
    (folder / "checkpoints").mkdir(parents=True)
    facts = RunFacts(status="done", id="id")
    (folder / "run.json").write_text(facts.to_json())


def failed(root: Path) -> None:
    done(root)
    path = root / "outputs/phantom/setr/qkv/id/run.json"
    attempts = [{"started": "2026", "status": "failed", "reason": "x"}] * 3
    path.write_text(RunFacts(status="failed", id="id", attempts=attempts).to_json())


def stopped(root: Path) -> None:
    done(root)
    folder = root / "outputs/phantom/setr/qkv/id"
    (folder / "checkpoints/last.ckpt").touch()
    facts = RunFacts(status="stopped", id="id", versions={"torch": "1"})
    (folder / "run.json").write_text(facts.to_json())


def resume(trial: Trial) -> None:
    """Go on with a run whose first part was trained with another PyTorch, or restore that."""
    options = trial.options
    with pytest.MonkeyPatch.context() as patch:
        if "torch=1" in trial.items:
            patch.setattr(active_run, "version", lambda name: "1")
            trial.options = "seed=0"
        active(trial)
    trial.options = options


def delete_run(trial: Trial, text: str) -> None:
    shutil.rmtree(text.split(": ")[0])


def predict_options(trial: Trial) -> Predict:
    base = {name: field.default for name, field in Predict.model_fields.items()}
    return Predict.model_construct(
        **(
            base
            | {"run": None, "study": None}
            | {
                key: [str(trial.root / each) for each in value]
                if isinstance(value, list)
                else str(trial.root / value)
                for key, value in trial.keywords.items()
            }
        )
    )


def vote(trial: Trial) -> None:
    for run in list_voting_runs(predict_options(trial)):
        run.require_done()


OPENED = {
    "train again": Trial(active, "seed=0", make=done),
    "failed": Trial(
        active,
        "seed=0",
        make=failed,
        follow={"raise (trainer.attempts)": "{1}=4", "or delete the folder": delete_run},
    ),
    "resumed": Trial(
        resume,
        "seed=0",
        make=stopped,
        follow={
            "restore that": "seed=0 torch=1",
            "train anew with (trainer.repeat)=(true)": "{1}={2}",
            "go on with (trainer.resume_changed)=(true)": "{1}={2}",
        },
    ),
    "no outputs": Trial(
        lambda trial: print_status(trial.root / trial.keywords["paths.outputs"]) and None,
        "paths.outputs=none",
        make=sealed,
        follow={"give that of the runs": "paths.outputs=outputs"},
    ),
    "twice": Trial(
        vote,
        f"run=[{RUNS}/{RUN},{RUNS}/{RUN}]",
        make=sealed,
        follow={"name each once": f"run=[{RUNS}/{RUN}]"},
        further="in it; restore",
    ),
    "no run": Trial(
        vote,
        "run=[images]",
        make=sealed,
        follow={"give one that holds": f"run=[{RUNS}/{RUN}]"},
        further="in it; restore",
    ),
    "none finished": Trial(
        vote,
        "study=images",
        make=sealed,
        follow={"train some first": f"study={RUNS}/kv"},
        further="in it",
    ),
    "two variants": Trial(
        vote,
        f"study={RUNS}",
        make=sealed,
        follow={"folder of one variant": f"study={RUNS}/kv"},
        further="in it",
    ),
    "study, damaged": Trial(
        vote,
        f"study={RUNS}/kv",
        make=sealed,
        damage=change(f"{RUNS}/{RUN}/run.json", "{"),
        follow={
            "restore it": restore,
            "remove its folder": lambda trial, text: shutil.rmtree(
                Path(text.split(": ")[0]).parent
            ),
        },
        further="in it",
    ),
    "not done": Trial(
        vote,
        f"run=[{RUNS}/{RUN}]",
        make=sealed,
        damage=edit_facts(RUN, status="failed"),
        follow={"train it first": lambda trial, text: edit_facts(RUN, status="done")(trial.root)},
        further="in it",
    ),
    "no class": Trial(
        lambda trial: (
            build_rules(
                Postprocess.model_construct(
                    largest_component=trial.keywords["classes"], min_ml=None, min_pixels=None
                ),
                ["liver"],
            )
            and None
        ),
        "classes=[livr]",
        follow={"did you mean (\\w+)": "classes=[{1}]"},
    ),
    "plan": Trial(
        lambda trial: (
            plan_comparison(
                **(
                    {
                        "runs": [],
                        "baseline": "qkv",
                        "by": ["attn"],
                        "split": "test",
                        "metric": None,
                        "margin": 0.01,
                        "patient_sd": None,
                        "seed_sd": None,
                        "difference": None,
                        "rest_sd": 0,
                        "loss": 0,
                        "seeds": [3],
                        "comparisons": 1,
                        "power": 0.8,
                        "level": 0.95,
                        "outputs": trial.folder,
                    }
                    | trial.keywords
                )
            )
            and None
        ),
        "runs=[]",
        follow={"or patient_sd and seed_sd": "patient_sd=0.1 seed_sd=0.01"},
    ),
}

TRIALS = JUDGED | ASKED | OPENED
