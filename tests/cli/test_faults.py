"""Wrong commands: one line on stderr that names the key and the way out, the right exit code."""

import pytest

from tests.data.uw_tree import Tree

CONFIG_FAULTS = [
    (["model=setrr"], "model: no 'setrr'; did you mean setr?"),
    (["modle=setr"], "modle: no such key; did you mean model?"),
    (["optimizer.lrr=1"], "optimizer.lrr: no such key; did you mean lr?"),
    (["+optimizer.lrr=1"], "optimizer.lrr: no such option; did you mean lr?"),
    (["optimizer.lr=abc"], "optimizer.lr: 'abc' is not allowed"),
    (["optimizer.lr="], "optimizer.lr: '' is not allowed"),
    (["optimizer.lr=-1"], "optimizer.lr: -1 is not allowed; input should be greater than 0"),
    (["optimizer.lr=nan"], "optimizer.lr: nan is not a finite number"),
    (["optimizer.lr=inf"], "optimizer.lr: inf is not a finite number"),
    (["optimizer.betas=[2,3]"], "optimizer: Invalid beta"),
    (["seed=1 seed=2"], "seed=1 seed=2: not KEY=VALUE"),
    (["seed=1.5"], "seed: 1.5 is not allowed"),
    (["seed=true"], "seed: True is not allowed"),
    (["seed"], "seed: not KEY=VALUE"),
    (["~seed"], "seed: missing"),
    (["seed=${nope}"], "seed: Interpolation key 'nope' not found"),
    (["optimizer.lr=[1"], "optimizer.lr=[1: not KEY=VALUE"),
    (["optimizer=null"], "optimizer=null: not a choice; choose one of adamw, sgd"),
    (["+foo=1"], "foo: no such option"),
    (["+dataset.limit=3"], "dataset.limit: no such option; did you mean limit_cases?"),
    (["+trainer.epochs=3"], "trainer.epochs: no such option; did you mean max_epochs?"),
    (["--foo"], "--foo: no such flag"),
    (["dataset=uw_madison"], "dataset.root: not set; give it as dataset.root=VALUE"),
    (["dataset=synapses"], "dataset: no 'synapses'; choose one of"),
    (["dataset.batch_size=0"], "dataset.batch_size: 0 is not allowed"),
    (["dataset.image_size=[100,128]"], "image_size 100x128 is not divisible by 16"),
    (["dataset.split.val=1"], "dataset.split.val: 1 is not allowed; input should be less than 1"),
    (["dataset.limit_cases=2"], "dataset.limit_cases: 2 is not allowed"),
    (["phantom_size=huge"], "no preset 'huge'; choose one of tiny, demo"),
    (["trainer.precision=fp16"], "trainer.precision: 'fp16' is not allowed"),
    (["trainer.precision=16-mixed"], "trainer.precision: 16-mixed needs a GPU"),
    (["trainer.devices=99"], "trainer.devices: 99 devices need trainer=ddp"),
    (["trainer.monitor=test/dice"], "input should be 'val/dice' or 'val/loss'"),
    (["trainer.ema_decay=1"], "trainer.ema_decay: 1 is not allowed"),
    (["scheduler.warmup=1"], "scheduler: warmup 1"),
    (["loss.class_weights=[1,2]"], "loss: class_weights has 2 values"),
    (["loss.dice_weight=x"], "loss.dice_weight: 'x' is not allowed"),
    (["model._target_=os.system"], "model._target_: 'os.system' is not allowed"),
    (["model.size=tinyy"], "model: unknown size 'tinyy'; choose one of tiny, base, large"),
    (["model.head=up"], "model: unknown head 'up'; choose one of naive, pup, mla"),
    (["model.num_heads=7"], "num_heads 7 does not divide the width 768; nearest: 6 or 8"),
    (["attn.sharing=kq"], "attn: unknown sharing 'kq'"),
    (["attn.mixing=sofmax"], "attn: unknown mixing 'sofmax'"),
    (["+attn.mixing_options.pos_dim=9"], "attn: mixing softmax has no option 'pos_dim'"),
    (["experiment=smoke", "dataset.batch_size=500"], "use at most 32"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), CONFIG_FAULTS, ids=[" ".join(a) for a, _ in CONFIG_FAULTS]
)
def test_wrong_configuration(call, arguments, message):
    answer = call(*arguments)
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.out


def test_gpu_where_there_is_none(call, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    answer = call("trainer=gpu")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "no GPU found on this machine; use trainer=cpu" in answer.err
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert "2 asked for, 1 found" in call("trainer=ddp").err


def break_rle(root):
    tree = Tree(root, ("case1_day0", "case2_day0", "case3_day0"))
    tree.rows["case2_day0_slice_0002", "stomach"] = "1 2 3"
    tree.write()


def two_patients(root):
    Tree(root, ("case1_day0", "case1_day1", "case2_day0")).write()


def nothing_to_see(root):
    Tree(root, ("case1_day0", "case2_day0", "case3_day0")).write()


DATA_FAULTS = {
    "root missing": (lambda root: None, "no such folder; set dataset.root"),
    "root a file": (lambda root: root.touch(), "no such folder"),
    "root empty": (lambda root: root.mkdir(), "train.csv: not found"),
    "broken run-length code": (break_rle, "case2_day0_slice_0002, stomach: 3 numbers"),
    "too few patients": (two_patients, "2 patients cannot be split"),
    "no organ at all": (nothing_to_see, "no class at all in the val split"),
}


@pytest.mark.parametrize("dataset", ["phantom", "uw_madison"])
@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_wrong_data(call, tmp_path, dataset, fault):
    prepare, message = DATA_FAULTS[fault]
    prepare(tmp_path / "root")
    answer = call(f"dataset={dataset}", "model.size=tiny", f"dataset.root={tmp_path / 'root'}")
    assert answer.code == 3
    assert message in answer.err
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert not list(tmp_path.glob("outputs/*/*/*"))  # no run folder for a run that never was


def test_an_output_folder_that_cannot_be_made(call, tmp_path):
    (tmp_path / "file").touch()
    answer = call("experiment=smoke", f"paths.outputs={tmp_path}/file/outputs")
    assert answer.code == 5
    assert answer.err.count("\n") == 1


def test_a_bug_of_ours_says_so_and_keeps_the_traceback(call, monkeypatch):
    monkeypatch.setattr("attnseg.engine.train.load", lambda *a: [][0])
    answer = call("experiment=smoke")
    assert answer.code == 1
    assert "IndexError: list index out of range; this is a bug of ours" in answer.err
    trace = answer.err.rsplit(" ", 1)[1].strip()
    with open(trace) as file:
        assert "Traceback" in file.read()


def test_a_loss_that_is_not_finite_stops_the_run(call, tmp_path):
    answer = call(
        "experiment=smoke", "optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip=null"
    )
    assert answer.code == 2
    assert "the loss became nan at step" in answer.err
    assert "case" in answer.err
    assert answer.err.count("\n") == 1
    (record,) = tmp_path.glob("outputs/*/*/*/*/run.json")
    assert '"status": "failed"' in record.read_text()
