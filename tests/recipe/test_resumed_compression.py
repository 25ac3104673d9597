"""Compressions that train: killed anywhere and resumed, they end with the bits of one that was not. Temporary modules
are rebuilt on the way and gone at the end."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gates import Gates, digits, gates_of
from torch import Tensor

from leanvit.anatomy import OpenModel
from leanvit.data import Preprocess
from leanvit.errors import BadInput, CheckpointError, LeanvitError, Refused
from leanvit.exits.lgvit import LGViT
from leanvit.files import sealed_text
from leanvit.prune.nvit import NViT
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Data, Recovery, Root, apply, compress, create, finish, load, load_run, missed, reapply, save
from leanvit.recipe.steps import ABOUT, STEPS, clear_steps, last_log
from leanvit.tokens.diffrate import DiffRate
from leanvit.tokens.evit import EViT
from leanvit.tokens.sit import SiT
from leanvit.tokens.stvit import STViT

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 1, "in_chans": 1, "num_classes": 10}
METHODS = (Gates(epochs=1), EViT(keep_rate=0.5, blocks=(1,)), Int8(images=8))
RECOVERY = Recovery(epochs=1, batch_size=10, lr=1e-2, settings={"save_every": 1})


class Killed(Exception):
    """Stands for a SIGKILL: nothing catches it, nothing is saved after it."""


class KillAfter:
    """Training callback that kills at the n-th step of all trainings together."""

    def __init__(self, step: int) -> None:
        self.left = step

    def after_step(self, run: Any) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.fixture(scope="module")
def model() -> OpenModel:
    torch.manual_seed(0)
    return create(Root("vit_tiny_patch16_224", SMALL)).eval()


@pytest.fixture(scope="module")
def data(model: OpenModel) -> Data:
    return Data(digits(), Preprocess.of(model))


Go = Callable[..., OpenModel]


@pytest.fixture(scope="module")
def go(model: OpenModel, data: Data) -> Go:
    """compress(), with changes."""

    def run(kill: int | None = None, methods: tuple[Any, ...] = METHODS, **more: Any) -> OpenModel:
        here = replace(data, callbacks=() if kill is None else (KillAfter(kill),))
        return compress(model, methods, more.pop("data", here), **{"recovery": RECOVERY, **more})

    return run


@pytest.fixture(scope="module")
def whole(go: Go) -> dict[str, Tensor]:
    return go().state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.fixture
def killed(go: Go, tmp_path: Path) -> Path:
    """A folder whose compression was killed in the recovery."""
    with pytest.raises(Killed):
        go(kill=6, out=tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("step", "done", "under_way"),
    [
        (2, [], "1-test_gates"),  # in the method's own training
        (6, ["1-test_gates", "2-evit"], "3-recovery"),
    ],
)
def test_a_killed_compression_ends_with_the_same_bits(go, whole, tmp_path, step, done, under_way) -> None:
    with pytest.raises(Killed):
        go(kill=step, out=tmp_path)
    assert [path.parent.name for path in sorted(tmp_path.glob("steps/*/leanvit.json"))] == done
    assert (tmp_path / "steps" / under_way / "training/state.safetensors").is_file()
    labels: list[str] = []
    lean = go(out=tmp_path, resume=True, on_step=lambda label, model: labels.append(label))
    assert same(lean.state_dict(), whole)
    assert labels == ["dense", "test_gates", "evit", "recovery", "int8"], "finished steps are reported too"
    assert last_log(tmp_path).count(b'"event": "epoch"') == 1
    clear_steps(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_finished_steps_are_loaded_not_done_again(go, whole, killed, monkeypatch) -> None:
    monkeypatch.setattr(Gates, "learn", lambda *_: pytest.fail("learned again"))
    assert same(go(out=killed, resume=True).state_dict(), whole)


def test_a_kill_while_a_step_is_saved(go, whole, tmp_path, monkeypatch) -> None:
    def die(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("leanvit.recipe.store.write_atomic", die)
        with pytest.raises(Killed):
            go(out=tmp_path)
    assert not list(tmp_path.glob("steps/*/leanvit.json"))
    assert same(go(out=tmp_path, resume=True).state_dict(), whole)


def test_a_full_disk_leaves_what_was_finished(go, whole, tmp_path, monkeypatch) -> None:
    def full(*args: object) -> None:
        if list(tmp_path.glob("steps/1-*/leanvit.json")):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("leanvit.files.os.fsync", full)
        with pytest.raises(LeanvitError, match="No space left"):
            go(out=tmp_path)
    assert same(go(out=tmp_path, resume=True).state_dict(), whole)


# --- temporary modules --------------------------------------------------------------------------------------------


def test_off_is_exact_after_prepare_and_the_temporary_parts_learn(model, data) -> None:
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    lean = compress(model, [])
    Gates().prepare(lean)
    assert len(gates_of(lean)) == 2 and torch.equal(lean(images), model(images))
    lean = compress(model, [])
    apply(lean, Gates(epochs=1), data)
    assert not lean.history.plans[0].finished and all((gate != 1).any() for gate in gates_of(lean))


def test_a_run_saved_in_between_loads_with_its_temporary_modules(model, data, tmp_path) -> None:
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    lean = compress(model, [])
    apply(lean, Gates(first=1, epochs=1), data)
    save(lean.eval(), tmp_path)
    again = load(tmp_path)
    assert len(gates_of(again)) == 1 and not again.history.plans[0].finished
    assert torch.equal(again(images), lean(images))
    before = again(images)
    finish(again)
    assert not gates_of(again) and again.history.plans[0].finished
    assert torch.allclose(again(images), before, atol=1e-6), "folded: the same function"
    save(again, tmp_path, overwrite=True)
    assert (
        torch.equal(load(tmp_path)(images), again(images)) and "finished" not in (tmp_path / "leanvit.json").read_text()
    )


def test_they_stay_for_the_recovery_and_end_with_it(go) -> None:
    seen: dict[str, int] = {}
    lean = go(on_step=lambda label, model: seen.update({label: len(gates_of(model))}))
    assert seen == {"dense": 0, "test_gates": 2, "evit": 2, "recovery": 0, "int8": 0}
    assert all(plan.finished for plan in lean.history.plans)
    go(methods=METHODS[:2], recovery=None, on_step=lambda label, model: seen.update({label: len(gates_of(model))}))
    assert seen["test_gates"] == 0, "no recovery follows: they end at once"


def test_an_unfinished_plan_is_not_applied_again(model, data) -> None:
    lean = compress(model, [])
    plan = apply(lean, Gates(), data)
    with pytest.raises(Refused, match="test_gates"):
        reapply(model, [plan])
    with pytest.raises(Refused, match="unfinished"):
        reapply(model, [replace(plan, slug="test_gates")])


def test_unfinished_on_a_method_without_prepare_is_named(model, tmp_path) -> None:
    save(compress(model, [EViT(blocks=(1,))]), tmp_path)
    content = json.loads((tmp_path / "leanvit.json").read_text())
    content["plans"][0]["finished"] = False
    (tmp_path / "leanvit.json").write_bytes(sealed_text(content))
    with pytest.raises(CheckpointError, match=r"plan 'evit' is unfinished, and its method puts nothing in"):
        load(tmp_path)


# --- what is not accepted -----------------------------------------------------------------------------------------


def test_another_compression_is_named_by_its_differences(go, model, data, killed) -> None:
    other = Recovery(epochs=1, batch_size=10, lr=2e-2)
    for change, says in (
        ({"recovery": other}, r"recovery.lr was 0.01 and is now 0.02"),
        ({"recovery": replace(RECOVERY, distillation="hard")}, r'recovery.distillation was "soft" and is now "hard"'),
        ({"methods": (Gates(first=1, epochs=1), *METHODS[1:])}, r"methods\[0\].first was 0 and is now 1"),
        ({"methods": METHODS[:2]}, r'methods\[2\] was \{"slug": "int8".*\} and is now null'),
        ({"data": replace(data, seed=1)}, r"seed was 0 and is now 1"),
        ({"data": replace(data, dataset=digits(50))}, r"data.images was 40 and is now 50"),
        ({"teacher": create(Root("vit_tiny_patch16_224", SMALL))}, r"teacher was null and is now"),
    ):
        with pytest.raises(BadInput, match=says):
            go(out=killed, resume=True, **change)
    with torch.no_grad():
        moved = compress(model, [])
        moved.head.bias.add_(1)
    with pytest.raises(BadInput, match="weights was"):
        compress(moved, METHODS, data, recovery=RECOVERY, out=killed, resume=True)


def test_one_that_an_older_version_began_goes_on(go, whole, data, killed, tmp_path) -> None:
    """It knew its data by less: spec, split, images, and keys and labels together."""
    shutil.copytree(killed, tmp_path / "old")
    file = tmp_path / "old" / ABOUT
    content = json.loads(file.read_bytes())
    was = hashlib.sha256(json.dumps(content["about"], sort_keys=True).encode()).hexdigest()
    kept = {key: content["about"]["data"][key] for key in ("spec", "split", "images", "samples")}
    content["about"]["data"] = kept
    file.write_bytes(sealed_text(content))
    now = hashlib.sha256(json.dumps(content["about"], sort_keys=True).encode()).hexdigest()
    for run in (tmp_path / "old" / STEPS).glob("*/leanvit.json"):
        step = json.loads(run.read_bytes())
        assert step["info"]["steps"] == was
        step["info"]["steps"] = now
        run.write_bytes(sealed_text(step))
    other = replace(data, dataset=replace(data.dataset, targets=data.dataset.targets[::-1].copy()))
    with pytest.raises(BadInput, match="data: its keys or labels changed"):
        go(out=tmp_path / "old", resume=True, data=other)
    assert same(go(out=tmp_path / "old", resume=True).state_dict(), whole)


def test_workers_and_save_every_may_change(go, whole, killed) -> None:
    recovery = replace(RECOVERY, settings={"save_every": 2, "workers": 0})
    assert same(go(out=killed, resume=True, recovery=recovery).state_dict(), whole)


def test_an_unfinished_compression_is_not_begun_again(go, killed) -> None:
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="holds an unfinished compression: give resume=True"):
        go(out=killed)
    assert {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()} == before


def test_damage_is_named_with_the_way_out(go, whole, killed) -> None:
    kept = killed.with_name("kept")
    shutil.copytree(killed, kept)
    for damage, error, says in (
        ("1-test_gates/leanvit.json", CheckpointError, r"not valid JSON.*remove .*1-test_gates and resume"),
        ("3-recovery/training/state.safetensors", CheckpointError, r"damaged.*remove .*3-recovery and resume"),
        ("about.json", CheckpointError, r"about.json is not valid JSON"),
    ):
        path = killed / "steps" / damage
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(error, match=says):
            go(out=killed, resume=True)
        shutil.rmtree(killed)
        shutil.copytree(kept, killed)
    shutil.rmtree(killed / "steps/1-test_gates")
    assert same(go(out=killed, resume=True).state_dict(), whole), "as the advice says"


def test_a_step_of_something_else_is_not_taken(go, model, killed) -> None:
    save(compress(model, []), killed / "steps/2-evit", overwrite=True)
    with pytest.raises(CheckpointError, match=r"2-evit is not a step of this compression"):
        go(out=killed, resume=True)


def test_nothing_to_resume_and_nothing_that_trains(go, model, tmp_path) -> None:
    with pytest.raises(BadInput, match="needs out="):
        go(resume=True)
    with pytest.raises(BadInput, match="nothing to resume"):
        go(out=tmp_path, resume=True)
    with pytest.raises(BadInput, match="nothing here trains"):
        compress(model, [EViT(blocks=(1,))], out=tmp_path, resume=True)
    compress(model, [EViT(blocks=(1,))], out=tmp_path)
    assert list(tmp_path.iterdir()) == [], "one that does not train writes nothing"
    with pytest.raises(BadInput, match=r"holds no run.*unfinished compression.*--resume"):
        (tmp_path / ABOUT).parent.mkdir()
        (tmp_path / ABOUT).touch()
        load_run(tmp_path)


def test_a_parameter_that_was_frozen_stays_so(model, data, tmp_path) -> None:
    frozen = compress(model, [])
    frozen.patch_embed.proj.weight.requires_grad_(False)
    want = compress(frozen, [EViT(blocks=(1,))], data, recovery=RECOVERY).state_dict()
    here = replace(data, callbacks=(KillAfter(2),))
    with pytest.raises(Killed):
        compress(frozen, [EViT(blocks=(1,))], here, recovery=RECOVERY, out=tmp_path)
    assert same(
        compress(frozen, [EViT(blocks=(1,))], data, recovery=RECOVERY, out=tmp_path, resume=True).state_dict(), want
    )
    assert torch.equal(want["patch_embed.proj.weight"], model.patch_embed.proj.weight)


# --- asked and achieved -------------------------------------------------------------------------------------------


def test_a_missed_target_is_said_aloud(go, model) -> None:
    with pytest.warns(UserWarning, match=r"test_gates missed its target: asked 0\.5, reached 0"):
        lean = go(methods=(Gates(target=0.5),))
    assert missed(lean) == [("test_gates", "asked 0.5, reached 0")]


def test_evit_and_int8_are_checked_on_the_model_itself(go) -> None:
    lean = go(recovery=None)
    assert missed(lean) == []
    lean.blocks[1].between[0].keep_rate = 0.9
    lean.ops.at("blocks.0.mlp.fc1")["weight"].bits = 4
    (evit, first), (int8, second) = missed(lean)
    assert evit == "evit" and first == "block 1: requested 9 patch tokens of 16, has 16"
    assert int8 == "int8" and second.endswith("operands are not in 8 bits, first weight of blocks.0.mlp.fc1")


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        ((NViT(macs=0.01, batch_size=8),), "macs is 0.01, but this model can be cut to"),
        ((NViT(macs=0.9, batch_size=64),), "batch_size=64"),
        ((NViT(macs=0.3, batch_size=8, kinds=("embed",)), Int8()), "can be cut to"),
        ((DiffRate(macs=0.01, batch_size=8),), "macs 0.01 cannot be reached"),
        ((LGViT(exits=(5,), batch_size=8),), "exits"),
        ((LGViT(exits=(1,), held_out=0.5, batch_size=30),), "batch_size=30"),
        ((EViT(blocks=(1,)), Int8(skip=("nowhere.*",))), "fits no site"),
        ((EViT(blocks=(1,)), STViT(after=0, window=4), NViT(macs=0.9)), "holds steps of another method|needs"),
        ((SiT(stages=(1, 1), tokens=(40,)), NViT(macs=0.9)), "sit would make 40 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(go, methods, says, tmp_path) -> None:
    seen: list[str] = []
    with pytest.raises((BadInput, Refused), match=says):
        go(methods=methods, recovery=None, out=tmp_path / "run", on_step=lambda label, model: seen.append(label))
    assert not seen and not (tmp_path / "run").exists()


def test_a_late_refusal_leaves_no_steps(go, tmp_path, monkeypatch) -> None:
    def refuse(self, model, data):
        raise Refused("late")

    monkeypatch.setattr(Gates, "learn", refuse)
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(Refused, match="late"):
            go(out=tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
