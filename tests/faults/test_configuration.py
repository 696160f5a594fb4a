"""Wrong configurations: refused before any data is read, in one line that names key and way out."""

import pytest

from attnseg import cli
from attnseg.cli.failures import report_error
from attnseg.cli.hydra_app import compose_raw, to_hydra
from attnseg.commands import train
from attnseg.config.components import build_components
from attnseg.errors import ConfigError
from attnseg.preparation.datasets import open_reader
from tests.limits import at_most

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
    (["dataset=synapses"], "dataset: no 'synapses'; did you mean synapse? choose one of"),
    (["dataset.slices=2"], "dataset.slices: 2 has no middle; use an odd number"),
    (["experiment=smoke", "dataset=isic2018", "dataset.slices=3"], "single pictures; use 1"),
    (["dataset.split.folds=5", "dataset.split.fold=5"], "split.fold: 5 of 5 folds; use 0 to 4"),
    (["phantom_size=tiny", "dataset.split.file=synapse"], "did you mean synapse_18_12?"),
    (["dataset.split.duplicates=ignore"], "input should be 'refuse', 'group' or 'drop'"),
    (["experiment=smoke", "augment=transunet", "dataset.image_size=[64,128]"], "need a square"),
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
    (["experiment=smoke", "dataset.batch_size=500"], "use at most 48"),
    (["optimizer.lr=null"], "optimizer.lr: None is not allowed; input should be a valid number"),
    (["optimizer.lr=0"], "optimizer.lr: 0 is not allowed; input should be greater than 0"),
    (["optimizer.lr=1e-400"], "optimizer.lr: 0.0 is not allowed"),
    (["optimizer.weight_decay=nan"], "optimizer.weight_decay: nan is not a finite number"),
    (["seed=4294967296"], "seed: 4294967296 is not allowed"),
    (["seed=-1"], "seed: -1 is not allowed"),
    (["paths.data="], "paths.data: '' is not allowed"),
    (["paths.outputs="], "paths.outputs: '' is not allowed"),
    (["dataset=nnunet", "dataset.root="], "dataset.root: '' is not allowed"),
    (["model.pretrained="], "model.pretrained: '' is not allowed"),
    (["profile=null"], "not a choice; choose one of detailed, isic, "),
    (["logger=null"], "not a choice; choose one of mlflow, none, "),
    (["profile=strict,monai"], "profile: strict, monai; train with one"),
    (["model=setr,cvt"], "Ambiguous value for argument 'model=setr,cvt'"),
    (["model=../setr"], "no 'setr'"),
    (["model="], "model: no ''; choose one of crossvit, cvt, dae_former, "),
    (["=setr"], "Could not override ''"),
    ([""], "not KEY=VALUE"),
    (["-x"], "-x: no such flag"),
    (["--config-dir=/nope"], "'/nope' not found"),
    (["model=transunet", "model.num_heads=7"], "num_heads: no such key; choose one of _target_, d"),
    (["trainer.num_workers=1000000"], "trainer.num_workers: 1000000 is not allowed"),
    (["trainer=fsdp", "trainer.score_every=2"], "trainer.score_every: not with trainer=fsdp; use"),
    (["trainer=fsdp", "trainer.compile=default"], "trainer.compile: not with trainer=fsdp; use"),
    (["trainer=fsdp", "trainer.ema_decay=0.9"], "trainer.ema_decay: not with trainer=fsdp; use"),
    (["trainer.precision=tf32"], "trainer.precision: tf32 needs a GPU; use bf16-mixed or 32"),
    (["trainer=gpu", "trainer.compile=reduce-overhead", "trainer.accumulate=2"],
     "trainer.accumulate: CUDA graphs (trainer.compile=reduce-overhead) overwrite the gradients"),
    (["trainer.compile=blocks", "trainer.gradient_checkpointing=true"],
     "trainer.gradient_checkpointing: blocks that are compiled alone would count"),
    (["trainer.devices=0"], "trainer.devices: 0 is not allowed"),
    (["trainer.devices=auto"], "trainer.devices: 'auto' is not allowed"),
    (["trainer.accelerator=cuda"], "input should be 'cpu' or 'gpu'"),
    (["dataset.batch_size=-1"], "dataset.batch_size: -1 is not allowed"),
    (["dataset.batch_size=1e2"], "dataset.batch_size: 100.0 is not allowed"),
    (["dataset.image_size=0"], "dataset.image_size.0: 0 is not allowed"),
    (["dataset.image_size=[64,64,64]"], "dataset.image_size: (64, 64, 64) is not allowed"),
    (["model=dae_former", "dataset.image_size=100"], "is not divisible by 16; nearest: [96,96]"),
    (["model.depth=0"], "model: depth 0 must be 1 or more"),
    (["model.dim=-8"], "model: dim -8 must be 1 or more"),
    (["model.num_heads=0"], "model: num_heads 0 must be 1 or more"),
    (["model.patch_size=0"], "model: patch_size 0 must be 1 or more"),
    (["model=cvt", "model.decoder_channels=0"], "decoder_channels 0 must be 1 or more"),
    (["model.mlp_ratio=0"], "model.mlp_ratio: 0 is not allowed"),
    (["loss.class_weights=[0,0,0]"], "loss: class_weights (0, 0, 0) must be 0 or more, not all 0"),
    (["loss.class_weights=[-1,1,1]"], "loss: class_weights (-1, 1, 1) must be 0 or more"),
    (["+loss.overlapping=false"], "loss.overlapping: no such option"),
    (["+model.num_classes=9"], "model.num_classes: no such option"),
    (["+model._args_=[1]"], "model._args_: no such option"),
    (["optimizer._target_=torch.load"], "optimizer._target_: 'torch.load' is not allowed"),
    (["dataset.phantom._target_=os.system"], "phantom._target_: 'os.system' is not allowed"),
    (["profile.strict._target_=os.system"], "strict._target_: 'os.system' is not allowed"),
    (["logger.tensorboard._target_=os.system"], "tensorboard._target_: 'os.system' is not allowed"),
    (["scheduler._target_=subprocess.run"], "scheduler._target_: 'subprocess.run' is not allowed"),
    (["model._target_=attnseg.models.setr.torch"], "is not defined there"),
]  # fmt: skip


# One of each kind goes through the whole command: what the parser, a sweep, a flag, a group, a key,
# a type, a build or the data refuses. The others are composed, checked and built in this process.
THROUGH_THE_COMMAND = [
    ["model=setrr"], ["optimizer.lrr=1"], ["seed=1.5"], ["seed=${nope}"], ["--foo"], ["-x"],
    ["--config-dir=/nope"], ["model=setr,cvt"], ["optimizer.betas=[2,3]"],
    ["experiment=smoke", "dataset.batch_size=500"],
    ["experiment=smoke", "dataset=isic2018", "dataset.slices=3"],
    ["phantom_size=tiny", "dataset.split.file=synapse"],
    ["phantom_size=huge"],
    ["experiment=smoke", "augment=transunet", "dataset.image_size=[64,128]"],
    ["dataset.phantom._target_=os.system"],
    ["logger.tensorboard._target_=os.system"],
]  # fmt: skip
WHOLE = [fault for fault in CONFIG_FAULTS if fault[0] in THROUGH_THE_COMMAND]


@pytest.mark.parametrize(("arguments", "message"), WHOLE, ids=[" ".join(a) for a, _ in WHOLE])
def test_wrong_configuration(call, tmp_path, arguments, message):
    with at_most(seconds=10):
        answer = call(*arguments)
    refused(answer, message)
    assert not list(tmp_path.glob("outputs/*/*"))


def test_every_other_wrong_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    others = [fault for fault in CONFIG_FAULTS if fault[0] not in THROUGH_THE_COMMAND]
    assert len(others) + len(THROUGH_THE_COMMAND) == len(CONFIG_FAULTS)
    answers = {}
    for arguments, message in others:
        error = first_fault(arguments)
        capsys.readouterr()
        code = report_error(error) if error is not None else 0
        answers[" ".join(arguments)] = (type(error), code, capsys.readouterr().err, message)
    wrong = {
        key: (kind, code, line, message)
        for key, (kind, code, line, message) in answers.items()
        if not (
            kind is ConfigError
            and code == 2
            and line.startswith("error: ")
            and line.count("\n") == 1
            and message in line
        )
    }
    assert wrong == {}
    assert not list(tmp_path.glob("outputs/*/*"))


def first_fault(arguments):
    """The error of a command line, as far as the command gets before it reads data."""
    try:
        words = to_hydra(train.COMMAND, arguments)
        config = train.COMMAND.parse(compose_raw(train.COMMAND, words))
        build_components(config, open_reader(config))
    except Exception as error:
        return error
    return None


def refused(answer, message, code=2):
    assert answer.code == code, answer.err
    assert message in answer.err
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.out


def test_gpu_where_there_is_none(call, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    refused(call("trainer=gpu"), "no GPU found on this machine; use trainer=cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    refused(call("trainer=ddp"), "2 asked for, 1 found")


def test_more_memory_than_there_is(call, monkeypatch):
    def allocate(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")

    monkeypatch.setattr("attnseg.config.components.build_model", allocate)
    refused(call("experiment=smoke"), "lower dataset.batch_size or dataset.image_size", code=5)


def test_a_group_of_another_command(call):
    answer = call("model=cvt", command=cli.evaluate)
    refused(answer, "model: no such key; choose one of")


HEAD = b"# @package _global_\n"
YAML_FAULTS = {
    "tab": (HEAD + b"trainer:\n\tmax_epochs: 1\n", "mine.yaml, line 3: found character '\\t'"),
    "duplicate key": (HEAD + b"seed: 1\nseed: 2\n", "mine.yaml, line 3: found duplicate key seed"),
    "duplicate key within": (
        HEAD + b"trainer:\n  attempts: 1\n  attempts: 2\n", "line 4: found duplicate key attempts",
    ),
    "Latin-1": (HEAD + b"seed: 1  # \xfcber\n", "a file that is not UTF-8"),
    "UTF-16": ("seed: 1\n".encode("utf-16") + b"\x00\xd8", "configuration: "),
    "NUL": (HEAD + b"seed: 1\x00\n", "configuration: unacceptable character #x0000"),
    "bracket not closed": (HEAD + b"seed: [1\n", "mine.yaml, line 3: expected"),
    "list": (HEAD + b"- a\n- b\n", "In 'experiment/mine'"),
    "text": (HEAD + b"just text\n", "just text: no such option"),
    "within itself": (HEAD + b"a: &a [*a]\n", "nested too deeply, or within itself"),
    "nested": (HEAD + b"seed: " + b"[" * 2000 + b"]" * 2000, "nested too deeply"),
    "refers to itself": (HEAD + b"seed: ${seed}\n", "seed: Recursive interpolation"),
    "no such variable": (HEAD + b"seed: ${oc.env:NOPE}\n", "Environment variable 'NOPE' not found"),
    "key no text": (HEAD + b"1: 2\n", "keys should be strings"),
    "unknown key": (HEAD + b"sead: 1\n", "sead: no such option; did you mean seed?"),
    "number as text": (HEAD + b"optimizer: {lr: '1e-3'}\n", "optimizer.lr: '1e-3' is not allowed"),
    "unknown default": (HEAD + b"defaults: [nope]\n", "experiment: no 'nope'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", YAML_FAULTS)
def test_a_configuration_file_that_cannot_be_read(call, tmp_path, fault):
    content, message = YAML_FAULTS[fault]
    (tmp_path / "more/experiment").mkdir(parents=True)
    (tmp_path / "more/experiment/mine.yaml").write_bytes(content)
    refused(call("--config-dir=more", "experiment=mine", "phantom_size=tiny"), message)


def test_of_a_key_given_twice_the_last_counts(call):
    """As for any command, so that scripts can append."""
    answer = call("seed=1", "seed=2", "--cfg", "job")
    assert answer.code == 0
    assert "\nseed: 2\n" in answer.out
