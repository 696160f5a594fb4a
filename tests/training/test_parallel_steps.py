"""Training steps of two processes are those of one with both batches, for models and attentions."""

import copy
import multiprocessing
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from attnseg.config.folder import attentions_of
from attnseg.data.labels import Labels
from attnseg.layers.norm import share_batch_norm
from attnseg.losses.ce import CrossEntropy
from attnseg.losses.dice import Dice
from attnseg.losses.dice_ce import DiceCE
from attnseg.losses.focal import Focal
from attnseg.losses.tversky import Tversky
from attnseg.training.module import SegmentationModule
from attnseg.training.recompute import recompute_blocks
from attnseg.training.sharding import list_called_blocks, shard_model
from tests.contracts.groups import names
from tests.contracts.pairs import attending_models, cover, product
from tests.contracts.test_models import SIZE, make

CLASSES, BATCH, STEPS = 3, 4, 2
KINDS = ("ddp", "fsdp")
LABELS = Labels(("a", "b"), overlapping=False)


class Step(nn.Module):
    """What DDP wraps."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return self.module.training_step(batch, 0)


def build(model, attn, loss):
    torch.manual_seed(0)
    network = make(model, attn).train()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout) or type(layer).__name__ == "DropPath":
            layer.p = 0.0  # each process draws for itself
    make_smooth(network)
    components = SimpleNamespace(
        model=network, loss=loss, optimizer=None, schedule=None, transforms=[]
    )
    return SegmentationModule(components, LABELS, ["case"], ["case"], 0.4, 0)


def make_smooth(network):
    """Replace what is switched by rounding errors: a value near 0, two pixels that are alike."""
    for layer in list(network.modules()):
        for name, child in layer.named_children():
            if isinstance(child, nn.ReLU | nn.LeakyReLU):
                setattr(layer, name, nn.Softplus())
            elif isinstance(child, nn.MaxPool2d):
                setattr(layer, name, nn.AvgPool2d(child.kernel_size, child.stride))


def train(module, step, batch):
    """Train a few steps, clipped, and return all weights and statistics."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(STEPS):
        step(batch).backward()
        module.on_before_optimizer_step(optimizer)
        module.configure_gradient_clipping(optimizer, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    state = module.model.state_dict()
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in state.items()
    }


def draw_batch():
    draw = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(BATCH, 1, *SIZE, generator=draw),
        "mask": torch.randint(CLASSES, (BATCH, *SIZE), generator=draw).to(torch.uint8),
        "case": torch.zeros(BATCH, dtype=torch.long),
    }


def differences(cases, recompute):
    """Return the cases whose two processes end elsewhere than one, or fail, and how.

    Only rank 0 trains alone for comparison, so only it returns differences.
    """
    alone = SimpleNamespace(world_size=1, global_rank=0, global_step=0)
    trainer = SimpleNamespace(world_size=2, global_rank=torch.distributed.get_rank(), global_step=0)
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for model, attn, loss in cases:
        module = build(model, attn, loss)
        copies = {kind: copy.deepcopy(module) for kind in KINDS}
        batch = draw_batch()
        own = {name: value[trainer.global_rank :: 2] for name, value in batch.items()}
        wanted = {}
        if trainer.global_rank == 0:
            module.trainer = alone
            wanted = train(module, Step(module), batch)
        for kind, together in copies.items():
            together.trainer = trainer
            case = kind, model, attn, type(loss).__name__
            try:
                ours = train(together, divide(together, kind, mesh, recompute), own)
            except Exception as error:
                found[case] = f"{type(error).__name__}: {error}"
                continue
            if trainer.global_rank == 0:
                assert ours.keys() == wanted.keys()
                worst = max(((ours[n] - w).abs().max().item(), n) for n, w in wanted.items())
                if worst[0] > 1e-5:
                    found[case] = worst
    return found


def divide(module, kind, mesh, recompute):
    """Share a module between the processes by DDP or FSDP; return its training step."""
    blocks = list_called_blocks(module.model, (1, *SIZE)) if kind == "fsdp" else []
    share_batch_norm(module.model)
    if recompute:
        recompute_blocks(module.model)
    step = Step(module)
    if kind == "fsdp":
        shard_model(module.model, blocks, mesh)
        return step
    return DistributedDataParallel(step, gradient_as_bucket_view=True, static_graph=True)


def run_rank(rank, file, cases, recompute, connection):
    store = torch.distributed.FileStore(file, 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = differences(cases, recompute)
    if rank == 0:
        connection.send(found)
    torch.distributed.barrier()


def in_two_processes(file, cases, recompute=False, timeout=1800):
    """Return the differences; the processes find each other through a new file."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    children = [
        context.Process(target=run_rank, args=(rank, str(file), cases, recompute, theirs))
        for rank in range(2)
    ]
    for child in children:
        child.start()
    try:
        assert ours.poll(timeout), "two processes hang"
        return ours.recv()
    finally:
        for child in children:
            child.join(10)
            child.kill()


def unattending_models():
    return [
        (name, attentions_of(name)[0]) for name in names("model") if name not in attending_models()
    ]


@pytest.mark.full
def test_every_model_and_every_attention(tmp_path):
    pairs = [*cover(), *unattending_models()]
    assert in_two_processes(tmp_path / "store", [(*pair, DiceCE(False)) for pair in pairs]) == {}


@pytest.mark.slow
def test_every_attention_in_every_model(tmp_path):
    pairs = [pair for pair in product() if pair not in cover()]
    assert in_two_processes(tmp_path / "store", [(*pair, DiceCE(False)) for pair in pairs]) == {}


@pytest.mark.full
def test_every_loss_and_gradient_checkpointing(tmp_path):
    """A Dice over the batch is a function of sums, and so are means; Tversky's is not."""
    weights = [0.5, 1.0, 2.0]
    losses = [
        DiceCE(False, class_weights=weights),
        CrossEntropy(False, weights),
        Dice(False, batch=False),
        Focal(False),
        Tversky(False),
    ]
    assert [loss.adds_sums for loss in losses] == [True, True, True, True, False]
    cases = [("cvt", "qkv", loss) for loss in losses]
    assert in_two_processes(tmp_path / "store", cases, recompute=True) == {}


def test_blocks_that_are_not_called_are_not_sharded_on_their_own():
    model = make("cvt", "qkv")
    blocks = list_called_blocks(model, (1, *SIZE))
    assert not any(".unify." in name for name in blocks)
    assert {"encoder.stages.0", "encoder.stages.2.blocks.1"} <= set(blocks)
    for index, name in enumerate(blocks):  # inner blocks come before the outer ones
        assert not any(later.startswith(f"{name}.") for later in blocks[index:])
