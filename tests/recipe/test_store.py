from __future__ import annotations

import io
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leanvit.anatomy import open_model
from leanvit.errors import BadInput, CheckpointError, LeanvitError, Refused
from leanvit.files import file_sha256, seal_of
from leanvit.recipe import compress, load, load_run, save
from leanvit.tokens.evit import EViT


def test_a_saved_run_gives_the_same_bits(lean: nn.Module, images: Tensor, tmp_path: Path) -> None:
    save(lean, tmp_path / "run", classes=list("abcdefg"), info={"data": "noise"})
    run = load_run(tmp_path / "run")
    assert torch.equal(run.model(images), lean(images))
    assert run.classes == tuple("abcdefg") and run.info["data"] == "noise"
    assert [p.slug for p in run.model.history.plans] == ["evit", "int8"]
    save(run.model, tmp_path / "again")
    assert torch.equal(load(tmp_path / "again")(images), lean(images))


@pytest.mark.parametrize("methods", [[], [EViT(keep_rate=0.7)]], ids=["dense", "evit"])
def test_weights_of_the_models_own_shape_load_with_plain_timm(tiny, images: Tensor, tmp_path: Path, methods) -> None:
    dense, lean = tiny().eval(), compress(tiny(), methods)
    (weights,) = save(lean, tmp_path / "run").glob("*.safetensors")
    root = lean.history.root
    plain = timm.create_model(root.name, checkpoint_path=str(weights), **root.kwargs).eval()
    assert torch.equal(plain(images), dense(images))


def test_half_precision_stays_half(tiny, images: Tensor, tmp_path: Path) -> None:
    model = compress(tiny(), []).to(torch.bfloat16)
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert next(again.parameters()).dtype == torch.bfloat16
    assert torch.equal(again(images.bfloat16()), model(images.bfloat16()))


@pytest.mark.parametrize(("stored_as", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_rounded_parameters_are_float32_again(
    lean: nn.Module, images: Tensor, tmp_path: Path, stored_as: str, digits: int
) -> None:
    before = {key: t.clone() for key, t in lean.state_dict().items()}
    save(lean, tmp_path / "exact")
    save(lean, tmp_path / "half", stored_as=stored_as)
    assert all(torch.equal(t, before[key]) for key, t in lean.state_dict().items()), "the model in memory stays"
    run = load_run(tmp_path / "half")
    assert (run.stored_as, load_run(tmp_path / "exact").stored_as) == (stored_as, "")
    parameters = dict(run.model.named_parameters())
    for key, tensor in run.model.state_dict().items():
        assert tensor.dtype == before[key].dtype, key
        if key not in parameters:
            assert torch.equal(tensor, before[key]), f"{key} is a buffer: the scales of quantizers are exact"
    some = [key for key in parameters if key in before and before[key].is_floating_point()]
    relative = max(((parameters[k] - before[k]).abs() / before[k].abs().clamp(min=1e-3)).max() for k in some)
    assert 0 < relative <= 2**-digits
    assert run.model(images).isfinite().all()
    save(run.model, tmp_path / "again", stored_as=stored_as)
    assert torch.equal(load(tmp_path / "again")(images), run.model(images)), "rounding twice rounds once"


def _size(run: Path) -> int:
    return next(run.glob("weights-*")).stat().st_size


def test_only_rounded_runs_have_the_newer_format(tiny, tmp_path: Path) -> None:
    for folder, kwargs in (("exact", {}), ("half", {"stored_as": "float16"})):
        save(compress(tiny(), []), tmp_path / folder, **kwargs)
    formats = {f: json.loads((tmp_path / f / "leanvit.json").read_text())["format"] for f in ("exact", "half")}
    assert formats == {"exact": 1, "half": 2}
    assert _size(tmp_path / "half") < 0.6 * _size(tmp_path / "exact")


def test_what_half_precision_cannot_hold_is_refused(tiny, tmp_path: Path) -> None:
    model = compress(tiny(), [])
    with pytest.raises(BadInput, match="unknown stored_as 'float61': did you mean 'float16'"):
        save(model, tmp_path / "run", stored_as="float61")
    with torch.no_grad():
        model.head.bias[2] = 1e6
    with pytest.raises(Refused, match=r"head\.bias holds 1e\+06: float16 ends at 65504"):
        save(model, tmp_path / "run", stored_as="float16")
    with pytest.raises(Refused, match=r"rounds float32 parameters; .* is torch\.bfloat16"):
        save(model.to(torch.bfloat16), tmp_path / "run", stored_as="float16")
    assert not (tmp_path / "run").exists()


def test_save_refuses_before_it_writes(tiny, lean: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no history"):
        save(open_model(tiny()), tmp_path / "run")
    lean.reset_classifier(3)
    with pytest.raises(Refused, match=r"head\.weight"):
        save(lean, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_kept_unless_overwrite(tiny, images: Tensor, tmp_path: Path) -> None:
    first, second = compress(tiny(), []), compress(tiny(depth=2), [])
    save(first, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds a run already"):
        save(second, tmp_path)
    assert torch.equal(load(tmp_path)(images), first(images))
    save(second, tmp_path, overwrite=True)
    assert torch.equal(load(tmp_path)(images), second(images))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.glob("weights-*"))) == 1


def test_a_failed_write_leaves_the_old_run(tiny, images: Tensor, tmp_path: Path, monkeypatch) -> None:
    first, second = compress(tiny(), []), compress(tiny(depth=2), [])
    save(first, tmp_path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leanvit.files.os.fsync", full)
    with pytest.raises(LeanvitError, match="No space left"):
        save(second, tmp_path, overwrite=True)
    assert torch.equal(load(tmp_path)(images), first(images))
    assert not list(tmp_path.glob(".*"))


def test_a_path_that_is_a_file_is_refused(tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        save(compress(tiny(), []), tmp_path / "file")
    with pytest.raises(BadInput, match="holds no run"):
        load(tmp_path / "file")


def _edit(path: Path, seal: bool = True, **changes: object) -> None:
    content = json.loads((path / "leanvit.json").read_text())
    content.update(changes)
    if seal:
        content["seal"] = seal_of(content)
    (path / "leanvit.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"kind": "other"}, "not a leanvit run"),
        ({"planz": []}, "did you mean 'plans'"),
        ({"plans": [{"slug": "evitt", "knobs": {}, "structure": {}}]}, "did you mean 'evit'"),
        ({"plans": [{"slug": "evit", "knobs": {"keep": 1}, "structure": {}}]}, "keep_rate"),
        ({"root": {"name": "vit_tinny_patch16_224", "kwargs": {}}}, "vit_tiny_patch16_224"),
        ({"root": {"name": "vit_tiny_patch16_224", "kwargs": {"pretrained": True}}}, "pretrained"),
        ({"root": {"name": "vit_tiny_patch16_224", "kwargs": {"depth": 10**6}}}, "accepted: up to"),
        ({"root": {"name": "hf-hub:someone/model", "kwargs": {}}}, "unknown timm model"),
        ({"root": {"name": "resnet18", "kwargs": {}}}, "not of a family"),
        ({"plans": []}, "do not fit the plans"),
        ({"weights": {"file": "../../secret", "sha256": "0"}}, "plain file name"),
        ({"weights": {"file": "gone.safetensors", "sha256": "0"}}, "missing"),
        ({"preprocess": {"input_size": "x"}}, "preprocess"),
    ],
)
def test_what_does_not_fit_is_named(lean: nn.Module, tmp_path: Path, changes: dict, message: str) -> None:
    save(lean, tmp_path)
    _edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_an_edited_plan_is_sent_to_the_root(lean: nn.Module, tmp_path: Path) -> None:
    save(lean, tmp_path)
    _edit(tmp_path, seal=False, classes=["x"])
    with pytest.raises(CheckpointError, match="reapply"):
        load(tmp_path)


class _Bomb:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('code ran')",))


def _damage(path: Path, rng: random.Random) -> bool:
    """One random injury to a run folder; True where the file was sealed anew (a sound file of another run, perhaps)."""
    text, weights = path / "leanvit.json", next(path.glob("weights-*"))
    file = rng.choice([text, weights])
    content = bytearray(file.read_bytes())
    kind = rng.choice(["truncate", "flip", "insert", "swap", "pickle", "empty", "key", "value", "header"])
    if kind == "truncate":
        file.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "flip":
        for _ in range(rng.choice([1, 5])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
    elif kind == "insert":
        at = rng.randrange(len(content))
        file.write_bytes(content[:at] + rng.randbytes(rng.choice([1, 100])) + content[at:])
    elif kind == "swap":
        text.write_bytes(weights.read_bytes())
    elif kind == "pickle":
        buffer = io.BytesIO()
        pickle.dump({"state_dict": _Bomb()}, buffer)
        file.write_bytes(buffer.getvalue())
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind in ("key", "value"):
        tree = json.loads(text.read_text())
        branch = rng.choice([tree, tree["root"], tree["weights"], *tree["plans"]])
        key = rng.choice(list(branch))
        value = branch.pop(key)
        odd = [None, -1, "x", [], {}, 1e400, True, [value], {"a": value}, "x" * 10**5]
        branch[rng.choice(["", key[1:], "__class__"]) if kind == "key" else key] = (
            value if kind == "key" else rng.choice(odd)
        )
        sealed = rng.random() < 0.5
        tree["seal"] = seal_of(tree) if sealed else tree.get("seal")
        text.write_text(json.dumps(tree))
        return sealed
    else:  # a weights file that is sound but not ours, with the hash set right
        tensors = load_file(weights)
        name = rng.choice(sorted(tensors))
        odd_tensors = [torch.zeros(2), tensors[name].double(), tensors[name].flatten()[:1], tensors[name].bool()]
        tensors[rng.choice([name, "other"])] = rng.choice(odd_tensors)
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, weights)
        tree = json.loads(text.read_text())
        tree["weights"]["sha256"] = file_sha256(weights)
        text.write_text(json.dumps({**tree, "seal": seal_of(tree)}))
        return True
    return False


def test_a_hundred_damaged_runs_fail_clearly_or_load_the_same(lean: nn.Module, images, tmp_path, monkeypatch) -> None:
    """No damage runs code, unpickles, hangs or gives other logits in silence."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    save(lean, tmp_path / "good")
    want, failed = lean(images), 0
    for seed in range(100):
        run = tmp_path / "bad"
        shutil.copytree(tmp_path / "good", run)
        sealed = _damage(run, random.Random(seed))
        try:
            model = load(run)
            assert sealed or torch.equal(model(images), want), f"seed {seed}: other logits without an error"
        except LeanvitError as error:
            assert len(str(error)) > 20
            failed += 1
        shutil.rmtree(run)
    assert failed >= 80
