"""Sparse tensors in run folders: smaller, the same bits after a load, and refused where they do not fit together."""

from __future__ import annotations

import copy
import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_composites import headed

from leanvit import Int8
from leanvit.errors import CheckpointError, LeanvitError
from leanvit.files import file_sha256, read_sealed, seal_of
from leanvit.recipe import compress, load, load_run, save, store
from leanvit.recipe.sparse_codec import METADATA, pack, read_tensors
from leanvit.verbs.weights.reading import read_weights
from zeroing import NAMES, Zeros

WIDE = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3, "num_classes": 7}
ALL = tuple(f"blocks.{i}.{site}.weight" for i in (0, 1) for site in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))


def weights_of(run: Path) -> Path:
    return next(run.glob("weights-*"))


def assert_same_bits(one: Any, other: Any) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert tensor.dtype == theirs[key].dtype and tensor.shape == theirs[key].shape, key
        integers = [t.contiguous().view(-1).view(torch.uint8) for t in (tensor, theirs[key]) if t.ndim]
        assert not integers or torch.equal(*integers), key


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 1.0])
def test_a_file_takes_what_is_kept_and_a_bit_an_element(share: float, tmp_path: Path) -> None:
    dense = timm.create_model("vit_tiny_patch16_224", **WIDE)
    save(compress(dense, []), tmp_path / "dense")
    lean = compress(dense, [Zeros(names=ALL, share=share)])
    save(lean, tmp_path / "lean")
    zeros = sum(int((p == 0).sum()) for name, p in lean.named_parameters() if name in ALL)
    kept = 1 - zeros / sum(p.numel() for p in lean.parameters())
    sizes = [weights_of(tmp_path / name).stat().st_size for name in ("lean", "dense")]
    assert sizes[0] <= (kept + 1 / 32 + 0.02) * sizes[1]
    assert_same_bits(load(tmp_path / "lean"), lean)


def test_every_bit_comes_back(tiny, images, tmp_path: Path) -> None:
    lean = compress(tiny(), [Zeros(share=0.75)])
    with torch.no_grad():  # a negative zero is a zero, subnormal numbers are none
        odd = lean.get_parameter(NAMES[0]).view(-1)
        odd[odd == 0][:1] = 0.0
        odd[:4] = torch.tensor([-0.0, 1e-45, -1e-45, 3.0])
    save(lean, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert_same_bits(run.model, lean)
    assert torch.equal(run.model(images), lean(images)) and run.model.sparse == lean.sparse
    save(run.model, tmp_path / "again")
    assert weights_of(tmp_path / "again").read_bytes() == weights_of(tmp_path / "run").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_any_type_and_any_shape(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = [(), (1,), (7,), (3, 5), (2, 3, 4, 5), (0,), (64, 9)]
    tensors = {str(i): (torch.randn(shape) * 50).to(dtype) for i, shape in enumerate(shapes)}
    tensors |= {f"{name} zero": torch.zeros_like(t) for name, t in tensors.items()}
    tensors["half"] = tensors["6"].clone()
    tensors["half"][::2] = 0
    if dtype.is_floating_point:
        tensors["half"][1, :3] = torch.tensor([float("nan"), float("inf"), -0.0]).to(dtype)
    packed, metadata = pack(tensors, [*tensors, "absent"])
    assert "half" not in packed and json.loads(metadata[METADATA])["half"] == [64, 9]
    save_file(packed, tmp_path / "file.safetensors", metadata=metadata)
    found = read_tensors(tmp_path / "file.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape and found[name].dtype == dtype, name
        assert found[name].contiguous().numpy().tobytes() == tensor.numpy().tobytes() if dtype != torch.bfloat16 else (
            torch.equal(found[name].view(-1).view(torch.int16), tensor.view(-1).view(torch.int16))
        ), name  # fmt: skip


def test_what_would_not_become_smaller_is_stored_as_it_is(tiny, tmp_path: Path) -> None:
    save(compress(tiny(), []), tmp_path / "dense")
    save(compress(tiny(), [Zeros(share=0.0)]), tmp_path / "none")
    content = json.loads((tmp_path / "none" / "leanvit.json").read_text())
    assert content["format"] == 1 and "features" not in content
    with safe_open(weights_of(tmp_path / "none"), framework="pt") as file:
        assert not file.metadata()
    assert load_file(weights_of(tmp_path / "none")).keys() == load_file(weights_of(tmp_path / "dense")).keys()


def test_an_older_leanvit_refuses_the_run_by_name(tiny, tmp_path: Path) -> None:
    save(compress(tiny(), [Zeros()]), tmp_path)
    content = json.loads((tmp_path / "leanvit.json").read_text())
    assert (content["format"], content["features"]) == (3, ["sparse"])

    def read(**known: Any) -> None:
        read_sealed(tmp_path / "leanvit.json", store.RunFile, kind=store.KIND, changed="", **known)

    with pytest.raises(CheckpointError, match=r"uses the feature 'sparse'; this leanvit .* knows parts: update"):
        read(newest=3, features=("parts",))
    with pytest.raises(CheckpointError, match="has format 3"):
        read(newest=2)
    read(newest=3, features=store.FEATURES)


def test_parts_half_precision_int8_and_a_weights_file(tiny, noise, tmp_path: Path) -> None:
    lean = compress(compress(headed(), [Zeros(names=NAMES[:1])]), [Zeros(names=("fc1.weight",))], part="head")
    save(lean, tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "leanvit.json").read_text())["features"] == ["parts", "sparse"]
    assert_same_bits(load(tmp_path / "parts"), lean)
    model = compress(tiny(), [Zeros(share=0.8)])
    for name, one in {
        "bf16": copy.deepcopy(model).bfloat16(),
        "int8": compress(model, [Int8(images=8)], noise),
    }.items():
        save(one, tmp_path / name)
        assert_same_bits(load(tmp_path / name), one)
        assert METADATA in safe_open(weights_of(tmp_path / name), framework="pt").metadata()
    save(model, tmp_path / "rounded", stored_as="float16")
    again = load(tmp_path / "rounded")
    assert_same_bits(again, copy.deepcopy(model).half().float())
    save(model, tmp_path / "run")
    held = read_weights(weights_of(tmp_path / "run"))
    assert all(torch.equal(held.tensors[key], t) for key, t in model.state_dict().items())


def test_a_disk_that_is_full_while_packing_leaves_the_old_run(tiny, images, tmp_path: Path, monkeypatch) -> None:
    first, second = compress(tiny(), [Zeros()]), compress(tiny(), [Zeros(share=0.9)])
    save(first, tmp_path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leanvit.files.os.fsync", full)
    with pytest.raises(LeanvitError, match="No space left"):
        save(second, tmp_path, overwrite=True)
    assert torch.equal(load(tmp_path)(images), first(images))
    assert not list(tmp_path.glob(".*"))


# --- damaged files ----------------------------------------------------------------------------------------------------


def resealed(run: Path, tensors: dict[str, torch.Tensor], shapes: Any) -> None:
    """Another weights file in a run, with its hash set right."""
    text = shapes if isinstance(shapes, str) else json.dumps(shapes)
    weights = weights_of(run)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, weights, metadata={METADATA: text})
    tree = json.loads((run / "leanvit.json").read_text())
    tree["weights"]["sha256"] = file_sha256(weights)
    (run / "leanvit.json").write_text(json.dumps({**tree, "seal": seal_of(tree)}))


def opened(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(weights_of(run), framework="pt") as file:
        return load_file(weights_of(run)), json.loads(file.metadata()[METADATA])


BITMAP, KEPT = f"{NAMES[0]}:bitmap", f"{NAMES[0]}:kept"


def _changed(tensors: dict, key: str, change: Any) -> dict:
    found = tensors[key].clone()
    change(found)
    return tensors | {key: found}


TAMPERED = {
    "bitmap-truncated": (lambda t, s: (t | {BITMAP: t[BITMAP][:-1]}, s), r"whose bitmap has 864 bytes; .*\(863,\)"),
    "bitmap-longer": (lambda t, s: (t | {BITMAP: torch.cat([t[BITMAP], t[BITMAP][:1]])}, s), r"\(865,\)"),
    "bitmap-other-type": (lambda t, s: (t | {BITMAP: t[BITMAP].float()}, s), r"torch\.float32 tensor of shape"),
    "bitmap-square": (lambda t, s: (t | {BITMAP: t[BITMAP].view(2, -1)}, s), r"\(2, 432\)"),
    "bitmap-missing": (lambda t, s: ({k: v for k, v in t.items() if k != BITMAP}, s), "without its bitmap"),
    "bitmap-a-bit-more": (lambda t, s: (_changed(t, BITMAP, lambda b: b.fill_(255)), s), r"keeps 6912 .* \(3456,\)"),
    "bitmap-a-bit-less": (lambda t, s: (_changed(t, BITMAP, lambda b: b[:9].zero_()), s), r"that keeps 34\d\d elem"),
    "kept-truncated": (lambda t, s: (t | {KEPT: t[KEPT][:-1]}, s), r"keeps 3456 elements; there are \(3455,\)"),
    "kept-missing": (lambda t, s: ({k: v for k, v in t.items() if k != KEPT}, s), "without its values"),
    "kept-zero": (lambda t, s: (_changed(t, KEPT, lambda v: v[:1].zero_()), s), "a zero among the elements"),
    "kept-other-type": (lambda t, s: (t | {KEPT: t[KEPT].view(torch.int32)}, s), r"is torch\.int32, not"),
    "twice": (lambda t, s: (t | {NAMES[0]: torch.zeros(144, 48)}, s), "there twice"),
    "shape-other": (lambda t, s: (t, s | {NAMES[0]: [144, 47]}), "whose bitmap has 846 bytes"),
    "shape-turned": (lambda t, s: (t, s | {NAMES[0]: [48, 144]}), r"is \(48, 144\), not \(144, 48\)"),
    "shape-huge": (lambda t, s: (t, s | {NAMES[0]: [10**9, 10**9]}), "whose bitmap has 125000000000000000 bytes"),
    "shape-negative": (lambda t, s: (t, s | {NAMES[0]: [-144, -48]}), "shapes of sparse tensors"),
    "shape-text": (lambda t, s: (t, s | {NAMES[0]: "144"}), "shapes of sparse tensors"),
    "shape-less-than-a-byte": (lambda t, s: (t, s | {NAMES[0]: [6911]}), "goes on behind its last element"),
    "shape-missing": (lambda t, s: (t, {k: v for k, v in s.items() if k != NAMES[0]}), "do not fit the plans"),
    "unknown-name": (lambda t, s: (t, s | {"other": [1]}), "other is a sparse tensor without its bitmap"),
    "not-json": (lambda t, s: (t, "{"), "shapes of sparse tensors"),
    "a-list": (lambda t, s: (t, []), "shapes of sparse tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_tensor_is_named(name: str, tiny, tmp_path: Path) -> None:
    save(compress(tiny(), [Zeros()]), tmp_path)
    tamper, message = TAMPERED[name]
    tensors, shapes = opened(tmp_path)
    last = tensors[BITMAP].clone()
    if name == "shape-less-than-a-byte":  # the spare bit has to be a kept one
        last[-1] |= 128
        tensors[BITMAP] = last
    resealed(tmp_path, *tamper(tensors, shapes))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_without_a_new_hash_any_change_is_met(tiny, tmp_path: Path) -> None:
    save(compress(tiny(), [Zeros()]), tmp_path)
    weights = weights_of(tmp_path)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="was truncated or changed"):
        load(tmp_path)


def test_sixty_damaged_tensors_fail_clearly_or_are_sound(tiny, tmp_path: Path, monkeypatch) -> None:
    """Whatever stands in a weights file whose hash is right: an error of ours, or a model of the right shapes."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    good = compress(tiny(depth=2), [Zeros()])
    shapes_of_good = {name: p.shape for name, p in good.named_parameters()}
    save(good, tmp_path / "good")
    failed = 0
    for seed in range(60):
        run, rng = tmp_path / "bad", random.Random(seed)
        shutil.copytree(tmp_path / "good", run)
        tensors, shapes = opened(run)
        resealed(run, *_damaged(tensors, shapes, rng))
        try:
            model = load(run)
            assert {name: p.shape for name, p in model.named_parameters()} == shapes_of_good
        except LeanvitError as error:
            assert 20 < len(str(error)) < 2000
            failed += 1
        shutil.rmtree(run)
    assert failed >= 45


def _damaged(tensors: dict, shapes: dict, rng: random.Random) -> tuple[dict, Any]:
    name = rng.choice(sorted(shapes))
    key = rng.choice([f"{name}:bitmap", f"{name}:kept"])
    kind = rng.choice(["flip", "cut", "grow", "type", "drop", "swap", "shape", "rename", "text"])
    found = tensors[key]
    if kind == "flip":
        flat = found.clone().view(-1).view(torch.uint8)
        for _ in range(rng.choice([1, 2, 9])):
            flat[rng.randrange(len(flat))] ^= 1 << rng.randrange(8)
        return tensors | {key: flat.view(found.dtype)}, shapes
    if kind == "cut":
        return tensors | {key: found[: rng.randrange(len(found))]}, shapes
    if kind == "grow":
        return tensors | {key: found.repeat(rng.choice([2, 3]))}, shapes
    if kind == "type":
        return tensors | {key: found.to(rng.choice([torch.int64, torch.float16, torch.bool]))}, shapes
    if kind == "drop":
        return {k: v for k, v in tensors.items() if k != key}, shapes
    if kind == "swap":
        other = rng.choice(sorted(tensors))
        return tensors | {key: tensors[other], other: found}, shapes
    if kind == "rename":
        return {("x" + k if k == key else k): v for k, v in tensors.items()}, shapes
    odd: list[Any] = [[], [0], [2**62, 4], [-1], "x", None, {}, [1.5], [True], shapes[name][::-1], [10**30]]
    if kind == "shape":
        return tensors, shapes | {name: rng.choice(odd)}
    return tensors, rng.choice(["", "null", "[" * 5000, "{}", json.dumps(shapes)[:-1], '{"a": [1e400]}'])
