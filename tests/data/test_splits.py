import io
import json
import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attnseg.cli.hydra_app import compose_raw
from attnseg.commands import train
from attnseg.data import splits, store
from attnseg.data.reader import CaseRef
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.errors import ConfigError, DataError
from attnseg.preparation.datasets import load_dataset, open_reader
from tests.data.test_nnunet import Dataset

PATIENTS = [f"case{n}" for n in range(20)]
SHARES = {"test": 0.2, "val": 0.2}


def assign(roles, groups=None, presence=None, fold=None, count=0, seed=0, validate=True):
    """Roles of cases named a0, a1, b0, ...: the letter is the patient."""
    groups = groups or {case: case[0] for case in roles}
    presence = presence or {case: [True] for case in roles}
    options = {"fold": fold, "count": count, "seed": seed, "validate": validate}
    return splits.assign_roles(groups, roles, presence, val=0.2, test=0.2, **options)


@example(count=4, val=0.375, test=0.375, seed=0)  # both shares rounded up would take all
@given(st.integers(3, 60), st.floats(0.01, 0.4), st.floats(0.01, 0.4), st.integers(0, 99))
def test_every_patient_has_one_role_and_every_role_a_patient(count, val, test, seed):
    patients = [f"p{n}" for n in range(count)]
    roles = splits.draw_roles(patients + patients, {"test": test, "val": val}, seed)
    assert sorted(roles) == sorted(patients)
    assert set(roles.values()) == set(splits.ROLES)
    assert abs(list(roles.values()).count("val") - val * count) <= 1


def test_order_of_the_names_does_not_matter_and_the_seed_does():
    roles = splits.draw_roles(PATIENTS, SHARES, 0)
    assert roles == splits.draw_roles(PATIENTS[::-1], SHARES, 0)
    assert roles != splits.draw_roles(PATIENTS, SHARES, 1)
    assert list(roles.values()).count("test") == 4


@pytest.mark.parametrize("patients", [[], ["a"], ["a", "b"], ["a", "a", "a"]])
def test_too_few_patients(patients):
    with pytest.raises(DataError, match="cannot be split"):
        splits.draw_roles(patients, SHARES, 0)


def test_limit_takes_many_patients_before_many_days():
    refs = [CaseRef(p, f"{p}_day{d}", ()) for p in PATIENTS[:4] for d in range(3)]
    roles = dict.fromkeys([ref.case for ref in refs])
    for count, patients in ((3, 3), (4, 4), (6, 4)):
        kept = splits.limit_cases(refs, roles, count, 0)
        assert len(kept) == count
        assert len({ref.patient for ref in kept}) == patients
        assert kept == [ref for ref in refs if ref in kept]
    assert splits.limit_cases(refs, roles, None, 0) == refs
    assert splits.limit_cases(refs, roles, 99, 0) == refs


def test_limit_leaves_no_role_empty():
    refs = [CaseRef(p, p, ()) for p in PATIENTS]
    roles = {p: "test" if p in ("case3", "case4", "case5") else "train" for p in PATIENTS}
    kept = [roles[ref.case] for ref in splits.limit_cases(refs, roles, 6, 0)]
    assert sorted(kept) == ["test"] * 3 + ["train"] * 3
    assert len(splits.limit_cases(refs, roles, 10, 0)) == 10


def test_what_is_given_is_kept_and_only_the_rest_drawn():
    given = {f"{p}{n}": "test" if p in "xyz" else "train" for p in "abcdefghxyz" for n in range(2)}
    roles = assign(given)
    assert all(roles[case] == "test" for case in given if case[0] in "xyz")
    assert set(roles.values()) == set(splits.ROLES)
    assert sum(role == "val" for role in roles.values()) == 4  # both cases of two of eight
    assert all(roles[f"{p}0"] == roles[f"{p}1"] for p in "abcdefgh")
    assert "val" not in assign(given, validate=False).values()
    full = {**given, "a0": "val", "a1": "val"}
    assert assign(full) == full


def test_cases_of_a_group_go_the_same_way():
    given = {f"{p}0": None for p in "abcdefgh"}
    groups = {case: "a" if case in ("a0", "d0", "g0") else case for case in given}
    for seed in range(10):
        roles = assign(given, groups, seed=seed)
        assert roles["a0"] == roles["d0"] == roles["g0"]


def test_over_all_folds_every_patient_is_tested_once():
    given = {f"{p}{n}": None for p in "abcdefghijk" for n in range(2)}
    tested = []
    for fold in range(5):
        roles = assign(given, fold=fold, count=5)
        assert set(roles.values()) == set(splits.ROLES)
        tested += [case for case, role in roles.items() if role == "test"]
    assert sorted(tested) == sorted(given)


def test_with_a_test_set_every_other_patient_validates_once():
    given = {f"{p}0": "test" if p in "xy" else None for p in "abcdefxy"}
    rounds = [assign(given, fold=fold, count=3) for fold in range(3)]
    assert all(roles["x0"] == roles["y0"] == "test" for roles in rounds)
    validated = [case for roles in rounds for case, role in roles.items() if role == "val"]
    assert sorted(validated) == [f"{p}0" for p in "abcdef"]


def test_folds_share_a_rare_class():
    presence = {p: [True, n % 4 == 0] for n, p in enumerate(PATIENTS)}  # 5 of 20 have the second
    for seed in range(5):
        dealt = splits.divide_into_folds(presence, 5, seed)
        assert sorted(name for fold in dealt for name in fold) == sorted(PATIENTS)
        assert [len(fold) for fold in dealt] == [4] * 5
        assert [sum(presence[name][1] for name in fold) for fold in dealt] == [1] * 5


@pytest.mark.parametrize(("count", "message"), [(9, "8 patients for 9 folds"), (2, "3 or more")])
def test_folds_that_cannot_be(count, message):
    with pytest.raises(DataError, match=message):
        assign({f"{p}0": None for p in "abcdefgh"}, fold=0, count=count)


def test_the_file_names_patient_case_role_and_digest_and_is_read_back(phantom, tmp_path):
    reader = UWMadison(phantom)
    cases = store.prepare_cases(reader, reader.cases(), tmp_path / "store")
    drawn = splits.draw_roles([case.patient for case in cases], SHARES, 0)
    text = splits.format_split(cases, {case.case: drawn[case.patient] for case in cases})
    table = pd.read_csv(io.StringIO(text), dtype=str)
    assert list(table.columns) == ["patient", "case", "role", "digest"]
    assert table["case"].tolist() == [case.case for case in cases]
    assert table.groupby("patient")["role"].nunique().max() == 1
    assert table["digest"].str.fullmatch("[0-9a-f]{64}").all()
    (tmp_path / "split.csv").write_text(text)
    again = splits.read_split(tmp_path / "split.csv")
    assert again["role"].to_dict() == {case.case: drawn[case.patient] for case in cases}
    splits.check_digests("split.csv", again, cases)
    again.loc[cases[1].case, "digest"] = "0" * 64
    with pytest.raises(DataError, match=f"{cases[1].case} has changed since"):
        splits.check_digests("split.csv", again, cases)


FAULTS = {
    "patient in two roles": ("a,a0,train,\na,a1,test,", "patient a in test and train"),
    "unknown role": ("a,a0,training,", "role 'training'; use train, val, test"),
    "case twice": ("a,a0,train,\na,a0,train,", "a0 appears twice"),
    "ragged": ("a,a0,train,,x,y", "line 2 has 6 cells"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_split_file_that_cannot_be_used(tmp_path, fault):
    rows, message = FAULTS[fault]
    path = tmp_path / "split.csv"
    path.write_text(f"patient,case,role,digest\n{rows}\n")
    with pytest.raises(DataError, match=re.escape(message)):
        splits.read_split(path)


def test_columns_and_ids_of_a_split_file(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("patient;case;role;digest\n")
    with pytest.raises(DataError, match="expected patient,case,role,digest"):
        splits.read_split(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a split file"):
        splits.read_split(path)
    path.write_text("patient,case,role,digest\n007,007,train,\nNA,1e5,test,\n")
    assert splits.read_split(path).index.tolist() == ["007", "1e5"]
    assert splits.read_split(path)["patient"].tolist() == ["007", "NA"]


@pytest.mark.parametrize(
    "end",
    [
        "\r\n",
        "\n\n\n",
        "\r\n\r\n",
        "\n,,,\n,,,\n",
        "\n\n",
        "",
        "\r\n,,,\r\n\r\n",
        "\n  \n",
        "\n , ,,\n",
    ],
)
def test_blank_last_lines_of_a_split_file_are_skipped(tmp_path, end):
    path = tmp_path / "split.csv"
    line = "\r\n" if "\r" in end else "\n"
    rows = ("patient,case,role,digest", "a,a0,train,", "", "b,b0,val,")
    path.write_bytes(("\ufeff" + line.join(rows) + end).encode())
    assert splits.read_split(path)["role"].to_dict() == {"a0": "train", "b0": "val"}


FOLDS = [
    {"train": ["b", "数 据", "a.1"], "val": ["c"]},
    {"train": ["c", "b"], "val": ["a.1", "007"]},
]


def write_folds(folder, folds):
    path = folder / "splits_final.json"
    path.write_text(folds if isinstance(folds, str) else json.dumps(folds), "utf-8")
    return path


def test_a_fold_of_nnunet(tmp_path):
    path = write_folds(tmp_path, FOLDS)
    roles = [splits.read_split(path, fold)["role"].to_dict() for fold in (0, 1)]
    assert roles == [
        {"b": "train", "数 据": "train", "a.1": "train", "c": "val"},
        {"c": "train", "b": "train", "a.1": "val", "007": "val"},
    ]
    assert splits.is_of_nnunet(path)
    assert not splits.is_of_nnunet("split.csv")
    assert not splits.is_of_nnunet(None)


FOLD_FAULTS = {
    "no JSON": ("{", "not a readable JSON file"),
    "nested": ("[" * 100_000, "not a readable JSON file"),
    "an object": ({"train": ["a"], "val": ["b"]}, "not written"),
    "empty": ([], "not written"),
    "no validation": ([{"train": ["a"]}], "not written"),
    "none to train": ([{"train": [], "val": ["a"]}], "not written"),
    "numbers": ([{"train": [1], "val": [2]}], "not written"),
    "names alone": ([{"train": "a", "val": "b"}], "not written"),
    "another fold of another kind": ([*FOLDS, None], "not written"),
    "a case in both": ([{"train": ["a", "b"], "val": ["b"]}], "b appears twice"),
    "a case twice": ([{"train": ["a", "a"], "val": ["b"]}], "a appears twice"),
}


@pytest.mark.parametrize("fault", FOLD_FAULTS)
def test_folds_of_nnunet_that_cannot_be_used(tmp_path, fault):
    folds, message = FOLD_FAULTS[fault]
    path = write_folds(tmp_path, folds)
    with pytest.raises(DataError, match=message) as error:
        splits.read_split(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_fold_that_nnunet_does_not_have(tmp_path):
    with pytest.raises(ConfigError, match=r"2, but splits_final\.json has 2 folds; use 0 to 1"):
        splits.read_split(write_folds(tmp_path, FOLDS), 2)


def small_dataset(root, cases, test_cases=()):
    """Six volumes that the guard against equal pictures tells apart."""
    data = Dataset(root, labels={"background": 0, "a": 1}, numTraining=len(cases))
    for number, name in enumerate((*cases, *test_cases)):
        rng = np.random.default_rng(number)
        labels = np.zeros((2, 40, 48), np.uint8)
        labels[:, 5 + number : 20 + number, 8:30] = 1
        scan = (rng.normal(0, 30, labels.shape) + 200 * labels).astype(np.int16)
        data.case(name, (scan,), labels, "Ts" if name in test_cases else "Tr")
    data.reader()
    return root


@pytest.mark.parametrize("test_cases", [(), ("t.1", "t.2")])
def test_the_folds_of_nnunet_are_obeyed(tmp_path, caplog, test_cases):
    root = small_dataset(tmp_path / "d", ("a.1", "b", "c", "007", "left"), test_cases)
    path = write_folds(tmp_path, FOLDS)
    raw = compose_raw(train.COMMAND, [
        "dataset=nnunet", f"dataset.root='{root}'", f"paths.data='{tmp_path}/data'",
        f"paths.outputs='{tmp_path}/out'", f"dataset.split.file='{path}'", "dataset.split.fold=1",
    ])  # fmt: skip
    config = train.COMMAND.parse(raw)
    caplog.set_level(logging.INFO, "attnseg")
    data = load_dataset(config, open_reader(config))
    names = [[case.case for case in cases] for cases in (data.train, data.val)]
    assert names == [["b", "c"], ["007", "a.1"]]
    assert len(data.test) == len(test_cases)
    assert ("No test cases" in caplog.text) == (not test_cases)
    assert "1 cases are not in splits_final.json and left out: left" in caplog.text
    (tmp_path / "split.csv").write_text(data.split)  # as a run keeps it
    again = splits.read_split(tmp_path / "split.csv")["role"].to_dict()
    assert again == splits.read_split(path, 1)["role"].to_dict() | dict.fromkeys(test_cases, "test")


def test_published_splits_are_found_by_name():
    assert "synapse_18_12" in splits.list_published_splits()
    path = splits.find_split_file("synapse_18_12")
    assert isinstance(path, Path)
    assert splits.read_split(path)["role"].value_counts().to_dict() == {"train": 18, "test": 12}
    assert splits.find_split_file("nope") is None
