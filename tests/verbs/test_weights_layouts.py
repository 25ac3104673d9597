"""Layouts of training loops and code bases: as timm reads them, or as they were saved; and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leanvit import verbs
from leanvit.errors import CheckpointError
from leanvit.recipe import Root, create, load_run
from leanvit.verbs.weights import as_in_file, load_weights, read_weights

NAME = "vit_tiny_patch16_224"
DISTILLED = "deit_tiny_distilled_patch16_224"
TINY: dict[str, Any] = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}


def built(name: str = NAME, seed: int = 1, **more: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, **{**TINY, "num_classes": 10, **more}).eval()
    with torch.no_grad():  # no zeros and ones: a tensor in a wrong place must show
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def state(**more: Any) -> dict[str, Tensor]:
    return dict(built(**more).state_dict())


def other(name: str, **more: Any) -> dict[str, Tensor]:
    return dict(built(name, **more).state_dict())


def under(prefix: str, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in held.items()}


def mae() -> dict[str, Any]:
    more = {"mask_token": torch.zeros(1, 1, 24), "decoder_pos_embed": torch.zeros(1, 5, 16)}
    return {"model": {**state(num_classes=0), **more, "decoder_blocks.0.norm1.weight": torch.ones(16)}}


def dinov2() -> dict[str, Any]:
    """Its registers beside a table of positions with a row for the class token."""
    held = state(num_classes=0)
    held["register_tokens"] = torch.randn(1, 4, 24)
    return {**held, "mask_token": torch.zeros(1, 24)}


def deit3() -> dict[str, Any]:
    held = dict(built("deit3_small_patch16_224").state_dict())
    return {
        "model": {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for key, v in held.items()}
    }


def clip() -> dict[str, Any]:
    """OpenAI's names, beside a tower of text."""
    names = {"patch_embed.proj": "conv1", "norm_pre": "ln_pre", "blocks.": "transformer.resblocks.", "norm1": "ln_1"}
    names |= {"norm2": "ln_2", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "norm.": "ln_post."}
    names |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    held = {}
    for key, value in built("vit_base_patch16_clip_224", num_classes=0).state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        held[f"visual.{key}"] = value
    held["visual.class_embedding"] = held.pop("visual.cls_token").reshape(24)
    held["visual.positional_embedding"] = held.pop("visual.pos_embed")[0]
    return {**held, "visual.proj": torch.randn(24, 7), "transformer.resblocks.0.ln_1.weight": torch.ones(8)}


# name of the model, its arguments beside TINY, what the file holds: timm's own reading says what is right
LIKE_TIMM: dict[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
    "its own": (NAME, {}, state),
    "1000 classes": (NAME, {}, lambda: {"model": state(num_classes=1000)}),
    "a larger image": (NAME, {}, lambda: {"model": state(img_size=32)}),
    "another patch": (NAME, {}, lambda: state(patch_size=4, img_size=8)),
    "grey": (NAME, {"in_chans": 1}, lambda: {"state_dict": state()}),
    "five channels": (NAME, {"in_chans": 5}, state),
    "OpenCLIP's trunk": (
        NAME,
        {},
        lambda: {**under("visual.trunk.", state(num_classes=0)), "logit_scale": torch.ones(1)},
    ),
    "half precision": (NAME, {}, lambda: {key: value.half() for key, value in state(img_size=32).items()}),
    "DINOv2 with registers": (NAME, {"reg_tokens": 4, "no_embed_class": True}, dinov2),
    "DeiT III": ("deit3_small_patch16_224", {}, deit3),
    "BEiT, larger": ("beit_base_patch16_224", {}, lambda: other("beit_base_patch16_224", img_size=32)),
    "EVA-02, larger": ("eva02_tiny_patch14_224", {}, lambda: other("eva02_tiny_patch14_224", img_size=32)),
    "DeiT, distilled": (DISTILLED, {}, lambda: {"model": other(DISTILLED, num_classes=1000)}),
    "OpenAI's CLIP": ("vit_base_patch16_clip_224", {}, clip),
}


@pytest.mark.parametrize("case", LIKE_TIMM)
def test_what_timm_reads_is_read_as_timm_reads_it(case: str, tmp_path: Path) -> None:
    name, more, held = LIKE_TIMM[case]
    path, arguments = tmp_path / "file.pth", {**TINY, **more, "num_classes": 2}
    torch.save(held(), path)
    model = create(Root(name, arguments))
    load_weights(model, path, name=name, adapt=True)
    head = {key: value for key, value in model.state_dict().items() if key.startswith("head")}
    timms = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **arguments).eval()
    timms.load_state_dict(head, strict=False)  # the fresh classifier
    images = torch.randn(2, arguments.get("in_chans", 3), 16, 16)
    assert torch.equal(model.eval()(images), timms(images))
    assert all(torch.equal(value, timms.state_dict()[key]) for key, value in model.state_dict().items())


OWN = state()
OTHER = state(seed=2)
# what a file holds -> what is said of it
LOOPS: dict[str, tuple[Callable[[], Any], str]] = {
    "Lightning": (
        lambda: {"state_dict": under("model.", OWN), "epoch": 3, "hyper_parameters": {"lr": 1e-3}},
        "32 tensors of its entry 'state_dict' under the prefix 'model.'",
    ),
    "Lightning, compiled, parallel": (
        lambda: {"state_dict": under("net._orig_mod.module.", OWN)},
        "32 tensors of its entry 'state_dict' under the prefix 'net._orig_mod.module.'",
    ),
    "with a loss of weights": (
        lambda: {"state_dict": {**under("model.", OWN), "criterion.weight": torch.ones(10)}},
        "32 tensors of its entry 'state_dict' under the prefix 'model.'; state_dict.criterion is left",
    ),
    "a tutorial": (lambda: {"model_state_dict": OWN, "epoch": 5}, "32 tensors of its entry 'model_state_dict'"),
    "DINO": (
        lambda: {
            "student": under("module.backbone.", OTHER),
            "teacher": {**under("backbone.", OWN), "head.mlp.0.weight": torch.ones(3, 24)},
        },
        "32 tensors of its entry 'teacher' under the prefix 'backbone.'; student, teacher.head is left",
    ),
    "DINOv2 in training": (
        lambda: {"model": {**under("student.backbone.", OTHER), **under("teacher.backbone.", OWN)}},
        "32 tensors of its entry 'model' under the prefix 'teacher.backbone.'; model.student is left",
    ),
    "MoCo": (
        lambda: {"state_dict": {**under("module.momentum_encoder.", OTHER), **under("module.base_encoder.", OWN)}},
        "32 tensors of its entry 'state_dict' under the prefix 'module.base_encoder.'; "
        "state_dict.module.momentum_encoder is left",
    ),
    "an average": (
        lambda: {"state_dict": OTHER, "state_dict_ema": OWN},
        "32 tensors of its entry 'state_dict_ema'; state_dict is left",
    ),
    "an average, nested": (
        lambda: {"checkpoint": {"model": OTHER, "ema": {"module": OWN}}},
        "32 tensors of its entry 'checkpoint.ema.module'; checkpoint.model is left",
    ),
    "an average of ema_pytorch": (
        lambda: {"ema": {**under("online_model.", OTHER), **under("ema_model.", OWN), "step": torch.tensor(3)}},
        "32 tensors of its entry 'ema' under the prefix 'ema_model.'; ema.online_model, ema.step is left",
    ),
    "SWA": (lambda: {**under("module.", OWN), "n_averaged": torch.tensor(3)}, "32 tensors; n_averaged is left"),
    "SWA, bare": (lambda: {**OWN, "n_averaged": torch.tensor(3)}, "33 tensors; n_averaged left out"),
    "a smaller model beside it": (
        lambda: {"model": OWN, "model_ema": state(depth=1)},
        "32 tensors of its entry 'model'; model_ema is left",
    ),
    "an encoder of something": (
        lambda: {"image_encoder": OWN, "text_encoder": {"embed.weight": torch.ones(7, 3)}},
        "32 tensors of its entry 'image_encoder'; text_encoder is left",
    ),
    "profiled": (
        lambda: {"model": {**OWN, "total_ops": torch.zeros(1)}},
        "33 tensors of its entry 'model'; total_ops left out",
    ),
}


@pytest.mark.parametrize("case", LOOPS)
def test_the_model_is_found_in_what_loops_save(case: str, tmp_path: Path) -> None:
    held, words = LOOPS[case]
    torch.save(held(), tmp_path / "file.pth")
    model, said = create(Root(NAME, {**TINY, "num_classes": 10})), []
    load_weights(model, tmp_path / "file.pth", name=NAME, log=said.append)
    assert all(torch.equal(value, OWN[key]) for key, value in model.state_dict().items())
    assert said == [f"file.pth: {words}"]


WORDS = (
    "model",
    "module",
    "state_dict",
    "net",
    "_orig_mod",
    "backbone",
    "a_name_of_mine",
    "0",
    "ema",
    "head",
    "blocks",
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(WORDS), max_size=4), st.lists(st.sampled_from(WORDS), max_size=4), st.booleans())
def test_any_nesting_and_any_prefix(entries: list[str], prefixes: list[str], counter: bool) -> None:
    import tempfile

    held: Any = under("".join(f"{word}." for word in prefixes), OWN)
    if counter:
        held["n_averaged"] = torch.tensor(3)
    for word in entries:
        held = {word: held, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(held, Path(folder, "file.pth"))
        model = TARGET
        load_weights(model, Path(folder, "file.pth"), name=NAME)
    assert all(torch.equal(value, OWN[key]) for key, value in model.state_dict().items())
    model.load_state_dict(OTHER)


TARGET = built(seed=2)


def flax(held: Mapping[str, Tensor], depth: int = 2, heads: int = 3) -> dict[str, np.ndarray]:
    """The arrays of AugReg for weights in timm's names."""
    find = {key: value.numpy() for key, value in held.items()}
    found = {
        "embedding/kernel": find["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": find["patch_embed.proj.bias"],
        "cls": find["cls_token"],
        "Transformer/posembed_input/pos_embedding": find["pos_embed"],
        "Transformer/encoder_norm/scale": find["norm.weight"],
        "Transformer/encoder_norm/bias": find["norm.bias"],
    }
    if "head.weight" in find:
        found |= {"head/kernel": find["head.weight"].T, "head/bias": find["head.bias"]}
    for i in range(depth):
        name, block = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        for norm, number in (("norm1", 0), ("norm2", 2)):
            found[f"{name}LayerNorm_{number}/scale"] = find[f"{block}{norm}.weight"]
            found[f"{name}LayerNorm_{number}/bias"] = find[f"{block}{norm}.bias"]
        attention = f"{name}MultiHeadDotProductAttention_1/"
        parts = np.split(find[f"{block}attn.qkv.weight"], 3), np.split(find[f"{block}attn.qkv.bias"], 3)
        for part, weight, bias in zip(("query", "key", "value"), *parts, strict=True):
            found[f"{attention}{part}/kernel"] = weight.T.reshape(24, heads, -1)
            found[f"{attention}{part}/bias"] = bias.reshape(heads, -1)
        found[f"{attention}out/kernel"] = find[f"{block}attn.proj.weight"].T.reshape(heads, -1, 24)
        found[f"{attention}out/bias"] = find[f"{block}attn.proj.bias"]
        for j in range(2):
            found[f"{name}MlpBlock_3/Dense_{j}/kernel"] = find[f"{block}mlp.fc{j + 1}.weight"].T
            found[f"{name}MlpBlock_3/Dense_{j}/bias"] = find[f"{block}mlp.fc{j + 1}.bias"]
    return found


def test_arrays_of_augreg(tmp_path: Path) -> None:
    np.savez(tmp_path / "augreg.npz", **flax(OWN))
    model, said = create(Root(NAME, {**TINY, "num_classes": 10})), []
    load_weights(model, tmp_path / "augreg.npz", name=NAME, log=said.append)
    assert all(torch.equal(value, OWN[key]) for key, value in model.state_dict().items())
    assert said == ["augreg.npz: 40 arrays; the layout of Flax (AugReg)"]


@pytest.mark.parametrize("more", [{"img_size": 32}, {"num_classes": 21}, {"num_classes": 0}])
def test_arrays_of_augreg_are_adapted_as_timm_does(more: dict[str, Any], tmp_path: Path) -> None:
    path, arguments = tmp_path / "augreg.npz", {**TINY, "num_classes": 10}
    np.savez(path, **flax(state(**more)))
    with pytest.raises(CheckpointError, match=r"does not fit: .*\nThe file looks like: depth 2, width 24, patch 8"):
        load_weights(create(Root(NAME, arguments)), path, name=NAME)
    model, said = create(Root(NAME, arguments)), []
    load_weights(model, path, name=NAME, adapt=True, log=said.append)
    overlay = {"file": str(path), "custom_load": True}
    timms = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    for key, value in timms.state_dict().items():
        assert key.startswith("head.") or torch.equal(model.state_dict()[key], value), key
    assert "image adapted, 32 to 16" in said[0] if "img_size" in more else "classifier head" in said[0]


def test_a_deeper_file_of_augreg_is_refused(tmp_path: Path) -> None:
    """timm takes the first blocks of it without a word."""
    np.savez(tmp_path / "augreg.npz", **flax(state(depth=3), depth=3))
    with pytest.raises(CheckpointError, match="depth is 3 in the file, 2 in the model"):
        load_weights(built(), tmp_path / "augreg.npz", name=NAME, adapt=True)


def test_a_pre_trained_encoder_is_taken_without_what_it_was_pre_trained_with(tmp_path: Path) -> None:
    torch.save(mae(), tmp_path / "mae.pth")
    model, said = create(Root(NAME, {**TINY, "num_classes": 2})), []
    with pytest.raises(CheckpointError, match="classifier head has no classes in the file, 2 in the model"):
        load_weights(model, tmp_path / "mae.pth", name=NAME)
    load_weights(model, tmp_path / "mae.pth", name=NAME, adapt=True, log=said.append)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, mae()["model"]["blocks.1.mlp.fc1.weight"])
    assert said == [
        "mae.pth: 33 tensors of its entry 'model'; mask_token, decoder_pos_embed, decoder_blocks.0.norm1.weight left "
        "out; the file has no classifier head: the model's is fresh, 2 classes"
    ]


def test_official_swin_with_its_tables_and_buffers(tmp_path: Path) -> None:
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2), "num_classes": 3}
    name = "swin_tiny_patch4_window7_224"
    theirs = timm.create_model(name, **small, window_size=4)
    held = {key.replace("head.fc.", "head."): value for key, value in theirs.state_dict().items()}
    held = {key.replace("layers.1.downsample", "layers.0.downsample"): value for key, value in held.items()}
    held["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    held["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    torch.save({"model": held}, tmp_path / "swin.pth")
    model = timm.create_model(name, **small, window_size=4)
    load_weights(model, tmp_path / "swin.pth", name=name)
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in model.state_dict().items())
    other, said = timm.create_model(name, **{**small, "img_size": 16}, window_size=2), []
    with pytest.raises(CheckpointError, match=r"relative_position_bias_table is \(49, 2\), not \(9, 2\)"):
        load_weights(other, tmp_path / "swin.pth", name=name)
    load_weights(other, tmp_path / "swin.pth", name=name, adapt=True, log=said.append)
    assert "layers.0.blocks.0.attn.relative_position_bias_table resized, (49, 2) to (9, 2)" in said[0]


MISFITS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {  # the file, the model, what is said
    "depth": ({"depth": 3}, {}, ("depth 3, width 24", "depth 2, width 24", "--model-arg depth=3")),
    "width": ({"embed_dim": 48}, {}, ("--model-arg embed_dim=48 (and num_heads as it was trained with",)),
    "classes": (
        {"num_classes": 7},
        {},
        ("has 7 classes in the file, 10 in the model", "--model-arg num_classes=7", "--adapt"),
    ),
    "image": (
        {"img_size": 32},
        {},
        ("pos_embed is (1, 17, 24), not (1, 5, 24)", "image 32", "--model-arg img_size=32"),
    ),
    "channels": ({"in_chans": 1}, {}, ("takes 1 channels in the file, 3 in the model", "--model-arg in_chans=1")),
    "norm": ({}, {"global_pool": "avg"}, ("fc_norm.weight is missing", "--model-arg fc_norm=false")),
    "tiny": ({"embed_dim": 192, "depth": 12}, {}, ("names of timm of this size: vit_tiny_patch",)),
    "layer scale": ({"init_values": 0.1}, {}, ("blocks.0.ls1.gamma is not part of the model",)),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_misfit_says_what_the_file_looks_like_and_what_would_help(case: str, tmp_path: Path) -> None:
    file, more, words = MISFITS[case]
    patch = {"patch_size": 16, "img_size": 32} if case == "tiny" else {}
    torch.save({"model": state(**{**file, **patch})}, tmp_path / "file.pth")
    model = built(**more)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as refused:
        load_weights(model, tmp_path / "file.pth", name=NAME)
    text = str(refused.value)
    assert [word for word in words if word not in text] == [], text
    assert "The file looks like: " in text and "The model is: " in text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_training_starts_from_a_file_and_the_run_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "in1k.pth"
    held = state(num_classes=1000)
    torch.save({"model": held}, path)
    said: list[str] = []
    arguments = {key: TINY[key] for key in ("depth", "embed_dim", "num_heads")}
    settings_ = {"epochs": 1, "batch_size": 8, "lr": 1e-9, "min_lr": 0.0}
    verbs.train(
        NAME,
        "digits",
        weights=path,
        adapt=True,
        model_args=arguments,
        limit=16,
        settings=settings_,
        out=tmp_path / "run",
        log=said.append,
    )
    path.unlink()
    model = load_run(tmp_path / "run").model
    torch.testing.assert_close(model.blocks[0].attn.qkv.weight, held["blocks.0.attn.qkv.weight"])  # hardly trained
    fitted = {"img_size": 16, "patch_size": 8, "in_chans": 1, "num_classes": 10}
    assert fitted.items() <= model.history.root.kwargs.items()
    assert [line for line in said if line.startswith("in1k.pth: ")] == [
        "in1k.pth: 32 tensors of its entry 'model'; classifier head (1000 classes) left out: the model has 10, its own "
        "is fresh; patch_embed.proj.weight adapted, 3 to 1 channels"
    ]


def test_names_of_another_model_are_shown(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(3, 2)).state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"The file's names: 0.weight, 0.bias"):
        load_weights(built(), tmp_path / "file.pth", name=NAME)


def test_a_model_takes_image_and_patch_of_the_file_where_the_user_gives_none(tmp_path: Path) -> None:
    torch.save({"model": state(img_size=32)}, tmp_path / "file.pth")
    held = read_weights(tmp_path / "file.pth")
    assert as_in_file(held, built(img_size=16, patch_size=4), NAME, {}) == {"patch_size": 8, "img_size": 32}
    assert as_in_file(held, built(), NAME, {"img_size": 16}) == {}
