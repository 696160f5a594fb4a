import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnseg.data import splits, store
from attnseg.data.reader import CaseRef
from attnseg.data.uw_madison import UWMadison
from attnseg.errors import DataError

PATIENTS = [f"case{n}" for n in range(20)]


@given(st.integers(3, 60), st.floats(0.01, 0.4), st.floats(0.01, 0.4), st.integers(0, 99))
def test_every_patient_has_one_role_and_every_role_a_patient(count, val, test, seed):
    patients = [f"p{n}" for n in range(count)]
    roles = splits.draw(patients + patients, val, test, seed)
    assert sorted(roles) == sorted(patients)
    assert set(roles.values()) == set(splits.ROLES)
    assert abs(list(roles.values()).count("val") - val * count) <= 1


def test_order_of_the_names_does_not_matter_and_the_seed_does():
    roles = splits.draw(PATIENTS, 0.2, 0.2, 0)
    assert roles == splits.draw(PATIENTS[::-1], 0.2, 0.2, 0)
    assert roles != splits.draw(PATIENTS, 0.2, 0.2, 1)
    assert list(roles.values()).count("test") == 4


@pytest.mark.parametrize("patients", [[], ["a"], ["a", "b"], ["a", "a", "a"]])
def test_too_few_patients(patients):
    with pytest.raises(DataError, match="cannot be split"):
        splits.draw(patients, 0.2, 0.2, 0)


def test_limit_takes_many_patients_before_many_days():
    refs = [CaseRef(p, f"{p}_day{d}", ()) for p in PATIENTS[:4] for d in range(3)]
    for count, patients in ((3, 3), (4, 4), (6, 4)):
        kept = splits.limit(refs, count, 0)
        assert len(kept) == count
        assert len({ref.patient for ref in kept}) == patients
        assert kept == [ref for ref in refs if ref in kept]
    assert splits.limit(refs, None, 0) == refs
    assert splits.limit(refs, 99, 0) == refs


def test_the_file_names_patient_case_role_and_digest(phantom, tmp_path):
    reader = UWMadison(phantom)
    cases = store.prepare(reader, reader.cases(), tmp_path)
    roles = splits.draw([case.patient for case in cases], 0.2, 0.2, 0)
    table = pd.read_csv(io.StringIO(splits.table(cases, roles)), dtype=str)
    assert list(table.columns) == ["patient", "case", "role", "digest"]
    assert table["case"].tolist() == [case.case for case in cases]
    assert table.groupby("patient")["role"].nunique().max() == 1
    assert table["digest"].str.fullmatch("[0-9a-f]{64}").all()
