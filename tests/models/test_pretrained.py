"""Published files of every format, written here in those formats, find their place."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import attnseg
from attnseg.errors import CheckpointError
from attnseg.models.pretrained import from_flax, load_file_into, load_tensors


class Bomb:
    def __reduce__(self):
        return (print, ("a payload ran",))


def flax_vit(dim=192, heads=3, depth=4, patch=8, grid=5, seed=0):
    """A Flax ViT file for SETR's tiny size: kernels are in, out; attention has an axis of heads."""
    rng = np.random.default_rng(seed)

    def array(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    d = dim // heads
    file = {
        "cls": array(1, 1, dim),
        "embedding/kernel": array(patch, patch, 3, dim),
        "embedding/bias": array(dim),
        "Transformer/posembed_input/pos_embedding": array(1, 1 + grid * grid, dim),
        "Transformer/encoder_norm/scale": array(dim),
        "Transformer/encoder_norm/bias": array(dim),
        "head/kernel": array(dim, 1000),
        "head/bias": array(1000),
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        for role in ("query", "key", "value"):
            file[f"{block}/MultiHeadDotProductAttention_1/{role}/kernel"] = array(dim, heads, d)
            file[f"{block}/MultiHeadDotProductAttention_1/{role}/bias"] = array(heads, d)
        file[f"{block}/MultiHeadDotProductAttention_1/out/kernel"] = array(heads, d, dim)
        file[f"{block}/MultiHeadDotProductAttention_1/out/bias"] = array(dim)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            file[f"{block}/{norm}/scale"], file[f"{block}/{norm}/bias"] = array(dim), array(dim)
        for j, (a, b) in enumerate(((dim, 4 * dim), (4 * dim, dim))):
            file[f"{block}/MlpBlock_3/Dense_{j}/kernel"] = array(a, b)
            file[f"{block}/MlpBlock_3/Dense_{j}/bias"] = array(b)
    return file


def setr(attn="qkv", size=(40, 40), **options):
    return attnseg.create_model("setr", attn, 3, 2, size, size="tiny", auxiliary=False, **options)


def test_flax_vit_into_setr(tmp_path):
    file = flax_vit()
    np.savez(tmp_path / "vit.npz", **file)
    model = setr()
    report = load_file_into(model, tmp_path / "vit.npz")
    assert report.resized == {}
    assert all(name.startswith("head.") for name in report.fresh)
    assert set(report.dropped) == {
        "transformer.encoder.encoder_norm.weight", "transformer.encoder.encoder_norm.bias",
        "head/kernel", "head/bias",
    }  # fmt: skip
    # A query of the loaded block, computed from the file as Flax lays it out.
    x = np.random.default_rng(1).standard_normal(192).astype(np.float32)
    attention = "Transformer/encoderblock_2/MultiHeadDotProductAttention_1"
    wanted = np.einsum("c,chd->hd", x, file[f"{attention}/query/kernel"])
    wanted += file[f"{attention}/query/bias"]
    ours = model.encoder[2].attn.project["q"].linear(torch.from_numpy(x))
    assert np.allclose(ours.detach(), wanted.ravel(), atol=1e-4)
    mixed = np.einsum("hd,hdc->c", x.reshape(3, 64), file[f"{attention}/out/kernel"])
    ours = model.encoder[2].attn.out(torch.from_numpy(x)) - model.encoder[2].attn.out.bias
    assert np.allclose(ours.detach(), mixed, atol=1e-4)
    patch = np.random.default_rng(2).standard_normal((8, 8, 3)).astype(np.float32)
    wanted = np.einsum("hwi,hwio->o", patch, file["embedding/kernel"]) + file["embedding/bias"]
    ours = model.embed.proj(torch.from_numpy(patch.transpose(2, 0, 1))[None])
    assert np.allclose(ours.detach().ravel(), wanted, atol=1e-4)


def test_positions_are_interpolated_and_grey_images_are_as_good_as_three_equal_channels(tmp_path):
    np.savez(tmp_path / "vit.npz", **flax_vit())
    model = attnseg.create_model("setr", "qkv", 1, 2, (48, 64), size="tiny", auxiliary=False)
    report = load_file_into(model, tmp_path / "vit.npz")
    assert set(report.resized) == {"embed.pos_embed", "embed.proj.weight"}
    assert "resized embed.pos_embed: (1, 26, 192) to (1, 49, 192)" in str(report)
    colour = setr()
    load_file_into(colour, tmp_path / "vit.npz")
    grey = torch.randn(1, 1, 40, 40)
    assert torch.allclose(
        model.embed.proj(grey), colour.embed.proj(grey.repeat(1, 3, 1, 1)), atol=1e-4
    )


def test_the_class_token_of_a_file_is_left_out_where_the_model_has_none(tmp_path):
    file = flax_vit()
    np.savez(tmp_path / "vit.npz", **file)
    model = setr(head="mla")
    report = load_file_into(model, tmp_path / "vit.npz")
    wanted = file["Transformer/posembed_input/pos_embedding"][:, 1:]
    assert np.array_equal(model.embed.pos_embed.detach(), wanted)
    assert "transformer.cls_token" in report.dropped


@pytest.mark.parametrize(
    ("attn", "kept"), [("kv", {"qk": "key", "v": "value"}), ("kv_pos", {"qk": "key", "v": "value"})]
)
def test_what_still_applies_is_loaded_into_another_attention(tmp_path, attn, kept):
    file = flax_vit()
    np.savez(tmp_path / "vit.npz", **file)
    model = setr(attn)
    report = load_file_into(model, tmp_path / "vit.npz")
    for ours, theirs in kept.items():
        kernel = file[f"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/{theirs}/kernel"]
        weight = model.encoder[0].attn.project[ours].linear.weight.detach().numpy()
        assert np.array_equal(weight, kernel.reshape(192, 192).T)
    assert sum("attn.query" in name for name in report.dropped) == 8
    fresh = [name for name in report.fresh if "encoder" in name]
    assert fresh == ([f"encoder.{i}.attn.mix.weight" for i in range(4)] if attn == "kv_pos" else [])


def test_two_factors_begin_as_the_published_matrix():
    file = {name: torch.from_numpy(value) for name, value in flax_vit().items()}
    whole, factored = setr(), setr("qvv3")
    load_tensors(whole, from_flax(file))
    load_tensors(factored, from_flax(file))
    for ours, theirs in zip(factored.encoder, whole.encoder, strict=True):
        queries, published = ours.attn.project["q"].linear, theirs.attn.project["q"].linear
        assert torch.equal(queries.first.weight, torch.eye(192))
        assert torch.equal(queries.second.weight, published.weight)
        assert torch.equal(queries.second.bias, published.bias)
    # Weights of the same network are loaded as they are.
    factored.encoder[0].attn.project["q"].linear.first.weight.data.mul_(2)
    again = setr("qvv3")
    assert load_tensors(again, factored.state_dict()).fresh == []
    torch.testing.assert_close(again.state_dict(), factored.state_dict(), rtol=0, atol=0)


def test_flax_hybrid_into_transunet(tmp_path):
    """Every array of an R50+ViT file has a place; written from our model, it comes back."""
    source = attnseg.create_model(
        "transunet", in_channels=3, num_classes=2, size="tiny", image_size=(32, 32)
    )
    state, file = source.state_dict(), {}
    for i in (1, 2, 3):
        unit = f"resnet.stages.{i - 1}.0"
        for j in (1, 2, 3):
            kernel = state[f"{unit}.conv{j}.weight"].permute(2, 3, 1, 0)
            file[f"block{i}/unit1/conv{j}/kernel"] = kernel
            file[f"block{i}/unit1/gn{j}/scale"] = state[f"{unit}.gn{j}.weight"][None, None, None]
            file[f"block{i}/unit1/gn{j}/bias"] = state[f"{unit}.gn{j}.bias"][None, None, None]
        file[f"block{i}/unit1/conv_proj/kernel"] = state[f"{unit}.shortcut.0.weight"].permute(
            2, 3, 1, 0
        )
        file[f"block{i}/unit1/gn_proj/scale"] = state[f"{unit}.shortcut.1.weight"]
        file[f"block{i}/unit1/gn_proj/bias"] = state[f"{unit}.shortcut.1.bias"]
    file["conv_root/kernel"] = state["resnet.root.0.weight"].permute(2, 3, 1, 0)
    file["gn_root/scale"] = state["resnet.root.1.weight"][None, None, None]
    file["gn_root/bias"] = state["resnet.root.1.bias"][None, None, None]
    file["embedding/kernel"] = state["embed.proj.weight"].permute(2, 3, 1, 0)
    np.savez(tmp_path / "r50.npz", **{name: value.numpy() for name, value in file.items()})
    torch.manual_seed(7)
    target = attnseg.create_model(
        "transunet", in_channels=3, num_classes=2, size="tiny", image_size=(32, 32)
    )
    report = load_file_into(target, tmp_path / "r50.npz")
    assert len(report.loaded) == len(file)
    assert report.dropped == {}
    for name in report.loaded:
        assert torch.equal(target.state_dict()[name], state[name]), name


def published_names(model):
    """A tensor of the right shape for every published name of a model."""
    from tests.golden.recipe import Golden

    files = {"setr": "setr_pup_small", "cvt": "cvt13", "dae_former": "daeformer"}
    return crossvit_ti() if model == "crossvit" else Golden(files.get(model, model)).weights


def crossvit_ti():
    """The published CrossViT-Ti: widths 96 and 192, one and four blocks between exchanges."""
    dims, depths, grids, patches = (96, 192), (1, 4), (20, 14), (12, 16)
    layers, file = {}, {}
    for b, other in ((0, 1), (1, 0)):
        d, o = dims[b], dims[other]
        file[f"pos_embed.{b}"] = torch.zeros(1, 1 + grids[b] ** 2, d)
        file[f"cls_token.{b}"] = torch.zeros(1, 1, d)
        layers[f"patch_embed.{b}.proj"] = (d, 3, patches[b], patches[b])
        layers |= {f"norm.{b}": (d,), f"head.{b}": (1000, d)}
        for n in range(3):
            layers |= {f"blocks.{n}.projs.{b}.0": (d,), f"blocks.{n}.projs.{b}.2": (o, d)}
            layers[f"blocks.{n}.revert_projs.{b}.0"] = (o,)
            layers[f"blocks.{n}.revert_projs.{b}.2"] = (d, o)
            layers[f"blocks.{n}.fusion.{b}.norm1"] = (o,)
            for part in ("wq", "wk", "wv", "proj"):
                layers[f"blocks.{n}.fusion.{b}.attn.{part}"] = (o, o)
            for i in range(depths[b]):
                block = f"blocks.{n}.blocks.{b}.{i}"
                layers |= {f"{block}.norm1": (d,), f"{block}.norm2": (d,)}
                layers |= {f"{block}.attn.qkv": (3 * d, d), f"{block}.attn.proj": (d, d)}
                layers |= {f"{block}.mlp.fc1": (4 * d, d), f"{block}.mlp.fc2": (d, 4 * d)}
    for name, shape in layers.items():
        file |= {f"{name}.weight": torch.zeros(shape), f"{name}.bias": torch.zeros(shape[0])}
    assert sum(value.numel() for value in file.values()) == 7_014_800
    return file


OPTIONS = {
    "setr": {"size": "tiny", "dim": 96, "num_heads": 4, "patch_size": 16, "head_channels": 256,
             "image_size": (64, 64), "num_classes": 9},
    "cvt": {"num_classes": 9},
    "dae_former": {"num_classes": 9},
    "missformer": {"num_classes": 9, "image_size": (224, 224)},
    "crossvit": {"size": "crossvit-ti", "num_classes": 9, "image_size": (240, 240)},
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors", "lightning.ckpt"])
@pytest.mark.parametrize("name", OPTIONS)
def test_state_dicts_of_the_original_codes(tmp_path, name, suffix):
    weights = published_names(name)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(weights, path)
    elif suffix == "lightning.ckpt":
        prefixed = {f"module._orig_mod.{key}": value for key, value in weights.items()}
        torch.save({"state_dict": prefixed, "epoch": 3}, path)
    else:
        torch.save(weights, path)
    model = attnseg.create_model(name, in_channels=3, **OPTIONS[name])
    report = load_file_into(model, path)
    fresh = {key.split(".")[0] for key in report.fresh}
    decoders = {"setr": "auxiliary_heads", "cvt": "decoder", "crossvit": "decoder"}
    assert fresh == ({decoders[name]} if name in decoders else set())
    assert "no counterpart in this model" not in report.dropped.values()


def test_a_classifier_of_other_classes_stays_fresh():
    weights = published_names("setr")
    model = attnseg.create_model("setr", in_channels=3, **{**OPTIONS["setr"], "num_classes": 4})
    report = load_tensors(model, weights)
    assert {"head.classify.weight", "head.classify.bias"} <= set(report.fresh)
    assert "shape (9, 256, 1, 1) instead of (4, 256, 1, 1)" in str(report)


TINY = {"size": "tiny", "in_channels": 1, "num_classes": 3, "image_size": (64, 64)}


def tiny(name="setr", attn=None, seed=0, **options):
    torch.manual_seed(seed)
    return attnseg.create_model(name, attn, **{**TINY, **options})


def save_run(folder, model, **more):
    """Write a model as a run does: in a run folder, as a checkpoint, and as its export."""
    own = {f"model.{name}": value for name, value in model.state_dict().items()}
    path = folder / "checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": own, "callbacks": {}, "loops": {}, "epoch": 1, **more}, path)
    (folder / "export").mkdir()
    save_file(dict(model.state_dict()), folder / "export/weights.safetensors")
    return folder


@pytest.mark.parametrize("part", ["", "checkpoints/best.ckpt", "export/weights.safetensors"])
@pytest.mark.parametrize(
    "name", ["setr", "cvt", "dae_former", "transunet", "missformer", "crossvit"]
)
def test_an_own_run_is_loaded_whole(tmp_path, name, part):
    source = tiny(name)
    run = save_run(tmp_path / "outputs [1]", source)
    model = tiny(name, seed=1)
    report = load_file_into(model, run / part)
    assert (report.fresh, report.dropped, report.resized) == ([], {}, {})
    assert str(report) == f"loaded {len(report.loaded)} tensors"
    for key, value in source.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(model.state_dict()[key], value), key


def test_an_own_run_of_another_attention(tmp_path):
    """Each role takes the weights that served it; those of no role are named."""
    plain, shared = tiny(attn="qkv"), tiny(attn="kv", seed=1)
    save_run(tmp_path / "qkv", plain)
    save_run(tmp_path / "kv", shared)
    kv, qkv = tiny(attn="kv", seed=2), tiny(attn="qkv", seed=2)
    report = load_file_into(kv, tmp_path / "qkv")
    assert report.fresh == []
    assert {name.split(".project.")[1][0] for name in report.dropped} == {"q"}
    assert len(report.dropped) == 8  # weight and bias of four blocks
    block, source = kv.encoder[1].attn.project, plain.encoder[1].attn.project
    assert torch.equal(block["qk"].linear.weight, source["k"].linear.weight)
    assert torch.equal(block["v"].linear.weight, source["v"].linear.weight)
    report = load_file_into(qkv, tmp_path / "kv")
    assert (report.fresh, report.dropped) == ([], {})
    block, source = qkv.encoder[1].attn.project, shared.encoder[1].attn.project
    for role, theirs in {"q": "qk", "k": "qk", "v": "v"}.items():
        assert torch.equal(block[role].linear.weight, source[theirs].linear.weight)


def test_an_own_run_of_other_classes_channels_and_size(tmp_path):
    source = tiny()
    run = save_run(tmp_path / "run", source)
    model = tiny(num_classes=5, in_channels=3, image_size=(96, 64), seed=1)
    report = load_file_into(model, run)
    assert all("classify" in name for name in report.fresh)
    assert len(report.fresh) == len(report.dropped) >= 2
    assert set(report.resized) == {"embed.pos_embed", "embed.proj.weight"}
    gray = torch.randn(1, 1, 64, 64)
    assert torch.allclose(
        model.embed.proj(gray.repeat(1, 3, 1, 1)), source.embed.proj(gray), atol=1e-4
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: tiny("cvt"), "are those of SETR|no tensor of SETR"),
        (lambda: tiny("dae_former"), "are those of SETR|no tensor of SETR"),
        (lambda: tiny("transunet"), "are those of SETR|no tensor of SETR|does not fit"),
        (lambda: tiny(dim=96, num_heads=4), "does not fit .*; give weights of this model and size"),
        (lambda: tiny(image_size=(64, 96)), "embed.pos_embed .*; give weights of this model"),
    ],
)
def test_an_own_run_of_another_model_is_refused_and_changes_nothing(tmp_path, source, message):
    run = save_run(tmp_path / "run", source())
    model = tiny(seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as error:
        load_file_into(model, run)
    assert str(error.value).startswith(f"{run}: ")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_folder_without_weights_and_checkpoints_of_other_programs(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"a folder without checkpoints/best\.ckpt; give a"):
        load_file_into(tiny(), tmp_path / "empty")
    other = {"net.weight": torch.zeros(2)}
    torch.save({"state_dict": other, "callbacks": {}, "loops": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="a checkpoint of a training run, not published"):
        load_file_into(tiny(), tmp_path / "other.ckpt")
    run = save_run(tmp_path / "bomb", tiny(), bomb=Bomb())
    with pytest.raises(CheckpointError, match="could run code"):
        load_file_into(tiny(), run)


def text(content):
    return lambda path: path.write_text(content)


BAD = {
    "missing.pth": (lambda path: None, "no such file"),
    "empty.pth": (lambda path: path.touch(), "broken"),
    "empty.npz": (lambda path: path.touch(), "broken"),
    "empty.safetensors": (lambda path: path.touch(), "broken"),
    "text.safetensors": (text("x" * 100), "broken"),
    "page.pth": (text("<!DOCTYPE html><p>Quota exceeded"), "a web page"),
    "pointer.npz": (text("version https://git-lfs.github.com/spec/v1\noid sha256:1"), "a pointer"),
    "bomb.pth": (lambda path: torch.save({"a": Bomb()}, path), "could run code"),
    "bomb.pkl": (lambda path: path.write_bytes(pickle.dumps({"a": Bomb()})), "could run code"),
    "bomb.npz": (lambda path: np.savez(path, a=np.array([Bomb()], object)), "broken"),
    "list.pth": (lambda path: torch.save([torch.zeros(1)], path), "not a state dict"),
    "other.pth": (lambda path: torch.save({"fc.weight": torch.zeros(1)}, path), "no tensor of"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_and_run_nothing(tmp_path, name, capfd):
    write, message = BAD[name]
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=message) as error:
        load_file_into(setr(), tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert "a payload ran" not in capfd.readouterr().out


def test_truncated_and_wrong_ones(tmp_path):
    torch.save(published_names("setr"), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="broken"):
        load_file_into(setr(), tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_file_into(setr(), tmp_path / "whole.pth")  # of another width
    with pytest.raises(CheckpointError, match="not a local file"):
        load_file_into(setr(), "https://example.org/weights.pth")
    with pytest.raises(ValueError, match="not finite"):
        load_tensors(setr(), {"backbone.cls_token": torch.full((1, 1, 192), float("nan"))})


def test_environment_cannot_switch_safe_loading_off(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"a": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(CheckpointError):
        load_file_into(setr(), tmp_path / "bomb.pth")
    assert "a payload ran" not in capfd.readouterr().out


def test_published_weights_on_the_command_line(call, tmp_path):
    np.savez(tmp_path / "vit.npz", **flax_vit())
    options = ("experiment=smoke", "trainer.max_epochs=0", f"model.pretrained={tmp_path}/vit.npz")
    answer = call(*options)
    assert answer.code == 0, answer.err
    assert "loaded 68 tensors" in answer.out
    assert "resized embed.pos_embed" in answer.out
    assert "left fresh" in answer.out
    (tmp_path / "vit.npz").write_bytes(b"")
    answer = call(*options)
    assert (answer.code, answer.err.count("\n")) == (4, 1)
