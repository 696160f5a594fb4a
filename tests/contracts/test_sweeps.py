"""Every study composes, names its number of runs, and has a twin on a phantom."""

import re

import pytest

from attnseg.cli.sweeps import jobs_of
from attnseg.config import composition
from attnseg.config.folder import list_attentions
from attnseg.config.training import parse_config
from tests.contracts.groups import FOLDER, compose, names

SWEEPS = names("sweep")
TWIN = "_phantom"


def jobs(sweep: str) -> list[list[str]]:
    return jobs_of(composition.compose("train", [f"sweep={sweep}"]))


def test_enough_sweeps_were_found():
    assert {"kv_paper", "attention_grid", "transunet_synapse"} <= set(SWEEPS)
    assert {"unet_baselines", "null_controls", "taxonomy"} <= set(SWEEPS)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_job_is_sound_and_the_header_counts_them(sweep):
    found = jobs(sweep)
    header = (FOLDER / f"sweep/{sweep}.yaml").read_text()
    assert f"python train.py sweep={sweep}" in header
    assert re.search(r"Runs: (\d+)", header)[1] == str(len(found))
    assert len({tuple(job) for job in found}) == len(found)
    first, last = found[0], found[-1]
    for job in (first, last, found[len(found) // 2]):
        parse_config(compose(f"sweep={sweep}", *job))


@pytest.mark.parametrize("sweep", [name for name in SWEEPS if not name.endswith(TWIN)])
def test_every_study_has_a_small_twin_and_says_what_it_costs(sweep):
    assert sweep + TWIN in SWEEPS
    header = (FOLDER / f"sweep/{sweep}.yaml").read_text()
    assert re.search(r"about \d+ hours", header)
    assert "Held against" in header
    assert len(jobs(sweep + TWIN)) <= 20
    twin = compose(f"sweep={sweep}{TWIN}")
    assert twin["dataset"]["root"] is None
    assert twin["dataset"]["_target_"] == compose(f"sweep={sweep}")["dataset"]["_target_"]


def test_the_studies_of_attentions_include_the_null_control():
    for sweep in ("kv_paper", "attention_grid", "situs", "null_controls", "taxonomy"):
        for name in (sweep, sweep + TWIN):
            assert any("attn=identity" in job for job in jobs(name)), name


def test_the_taxonomy_has_every_attention_and_the_baselines_every_model():
    tried = {value for job in jobs("taxonomy") for value in job if value.startswith("attn=")}
    assert tried == {f"attn={name}" for name in list_attentions()}
    tried = {value for job in jobs("unet_baselines") for value in job if value.startswith("model=")}
    assert tried == {f"model={name}" for name in names("model")}


def test_the_command_line_narrows_an_axis():
    config = composition.compose("train", ["sweep=kv_paper", "seed=1", "attn=kv"])
    assert len(jobs_of(config)) == 15
