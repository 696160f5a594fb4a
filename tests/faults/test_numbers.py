"""Losses, weights and outputs that are no numbers: said, never kept, never the best."""

import json

import pytest
import torch

from attnseg.files import file_digest, is_whole
from attnseg.training.callbacks.checkpoints import LastCheckpoint
from attnseg.training.module import SegmentationModule
from tests.faults.runs import attempt, run_of


def broken_loss(step: int):
    """Return a fault: a layer whose output becomes infinite at a step."""

    def arrange() -> None:
        original = SegmentationModule.training_step

        def faulty(self, batch, batch_idx):
            if self.global_step == step:
                with torch.no_grad():
                    self.model.encoder[1].mlp.fc1.weight.fill_(torch.inf)
            return original(self, batch, batch_idx)

        SegmentationModule.training_step = faulty

    return arrange


def test_a_loss_that_is_no_number(tmp_path):
    assert attempt(tmp_path, "trainer.max_epochs=2", fault=broken_loss(15)) == 2
    output = (tmp_path / "output").read_text()
    line = output[output.rindex("error: ") :]
    assert line.count("\n") == 1
    assert "training: the loss became nan at step 15 (cases case" in line
    assert "first in encoder.1.mlp.fc1)" in line
    assert "To see that again, from the last checkpoint on: " in output
    run = run_of(tmp_path)
    kept = {path: file_digest(path) for path in run.glob("checkpoints/*.ckpt")}
    assert len(kept) == 2 and all(map(is_whole, kept))
    # Repeated, it goes on from there, and comes to the same step.
    assert attempt(tmp_path, "trainer.max_epochs=2", fault=broken_loss(15)) == 2
    assert (tmp_path / "output").read_text().count("nan at step 15") == 2
    assert kept == {path: file_digest(path) for path in kept}
    facts = json.loads((run / "run.json").read_text())
    assert [one["status"] for one in facts["attempts"]] == ["failed", "failed"]
    assert attempt(tmp_path, "trainer.max_epochs=2") == 0


def broken_step(step: int):
    """Return a fault: the optimizer's step makes a weight infinite; the loss was fine."""

    def arrange() -> None:
        original = LastCheckpoint._save_or_stop

        def faulty(self, trainer, batches):
            if trainer.global_step == step:
                with torch.no_grad():
                    trainer.lightning_module.model.encoder[1].mlp.fc1.weight[0, 0] = torch.inf
            original(self, trainer, batches)

        LastCheckpoint._save_or_stop = faulty
        LastCheckpoint.share = 1e9  # keep one after every step, however slow the disk

    return arrange


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    options = ("trainer.max_epochs=2", "trainer.save_minutes=0.0001")
    assert attempt(tmp_path, *options, fault=broken_step(15)) == 2
    line = "error: training: encoder.1.mlp.fc1.weight is not finite after 15 steps; lower optim"
    assert line in (tmp_path / "output").read_text()
    last = torch.load(run_of(tmp_path) / "checkpoints/last.ckpt", weights_only=True)
    assert last["position"] == (1, 2)
    assert all(bool(t.isfinite().all()) for t in last["state_dict"].values())


def broken_validation(epochs: set[int]):
    """Return a fault: the network's output is no number in the validation of some epochs."""

    def arrange() -> None:
        original = SegmentationModule.validation_step

        def faulty(self, batch, batch_idx):
            if self.current_epoch in epochs and batch_idx == 1:
                self.model.register_forward_hook(lambda *a: a[2] * torch.nan)
                original(self, batch, batch_idx)
                self.model._forward_hooks.clear()
            else:
                original(self, batch, batch_idx)

        SegmentationModule.validation_step = faulty

    return arrange


@pytest.mark.parametrize("monitor", ["val/dice", "val/loss"])
def test_an_output_that_is_no_number_is_never_the_best(tmp_path, monitor):
    options = ("trainer.max_epochs=3", f"trainer.monitor={monitor}", "trainer.early_stopping=3")
    assert attempt(tmp_path, *options, fault=broken_validation({0, 2})) == 0
    run = run_of(tmp_path)
    assert json.loads((run / "run.json").read_text())["best_epoch"] == 2
    warning = "warning: The network's output for case"
    assert (tmp_path / "output").read_text().count(warning) == 2


def test_no_best_at_all(tmp_path):
    options = ("trainer.max_epochs=2", "trainer.early_stopping=1")
    assert attempt(tmp_path, *options, fault=broken_validation({0, 1})) == 2
    message = "error: trainer.monitor: val/dice was not finite after any epoch; lower optimizer.lr"
    assert message in (tmp_path / "output").read_text()
