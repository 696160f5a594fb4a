"""Scoring, previews, kept pictures and the worst cases share one prediction of each slice."""

import hashlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from attnseg import cli
from attnseg.data import store
from attnseg.data.labels import Labels
from attnseg.data.readers.uw_madison import UWMadison
from attnseg.drawing import cases as drawing
from attnseg.evaluation.kept_slices import KeptSlices
from attnseg.prediction.overlay import slices_to_show
from attnseg.runs.reopen import TorchNetwork


def run_command(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["attnseg", *words])
        cli.main()
    assert not ended.value.code


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """Return a function that counts the images networks were called with since it was last called.

    Calls are noted in a file, because training may run in a process of its own.
    """
    calls, original = tmp_path / "calls", TorchNetwork.__call__

    def note(self, images):
        with calls.open("a") as file:
            for image in images:
                file.write(hashlib.sha256(image.tobytes()).hexdigest() + "\n")
        return original(self, images)

    def count() -> Counter[str]:
        counted = Counter(calls.read_text().split())
        calls.unlink()
        return counted

    monkeypatch.setattr(TorchNetwork, "__call__", note)
    monkeypatch.chdir(tmp_path)
    return count


@pytest.mark.system
def test_each_slice_is_predicted_once(seen):
    run_command(
        "train", "experiment=smoke", "trainer.max_epochs=0", "trainer.keep_pictures=true",
        "dataset.image_size=[32,32]",
    )  # fmt: skip
    (run,) = Path().glob("outputs/*/*/*/*/run.json")
    trained = seen()
    assert len(trained) > 10
    assert set(trained.values()) == {1}
    assert len(list(run.parent.glob("previews/*.png"))) == 3
    assert (run.parent / "pictures" / "index.json").exists()
    run_command("evaluate", f"run={run.parent}", "split=val", "worst=2")
    evaluated = seen()
    assert set(evaluated.values()) == {1}
    assert evaluated.keys() < trained.keys()
    assert len(list(run.parent.glob("evaluation/val/worst-*.png"))) == 2


def test_kept_slices_are_those_predicted(phantom, tmp_path, monkeypatch):
    reader = UWMadison(phantom)
    (case,) = store.prepare_cases(reader, reader.cases()[:1], tmp_path)
    drawn = {}

    def keep(path, title, case, slices, truth, prediction, classes):
        drawn[title] = (slices, truth, prediction)

    monkeypatch.setattr("attnseg.evaluation.kept_slices.draw_comparison", keep)
    assert drawing.draw_comparison is not keep
    exclusive = Labels(("a", "b"))
    label_map = np.random.default_rng(0).integers(0, 3, case.shape).astype(np.uint8)
    truth = reader.labels.split(case.mask)
    for labels, prediction in (
        (reader.labels, np.roll(truth, 3, -1)),
        (exclusive, exclusive.split(label_map)),
    ):
        kept = KeptSlices(labels)
        kept.add(case, truth, prediction)
        kept.draw(tmp_path, str(labels), case.case)
        slices, _, found = drawn[str(labels)]
        assert slices == slices_to_show(truth)
        assert np.array_equal(found, prediction[:, slices])
    assert np.array_equal(drawn[str(reader.labels)][1], truth[:, slices_to_show(truth)])
