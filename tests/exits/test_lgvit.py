"""LGViT: heads, both stages, the threshold, and the life of a run."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from exits.exiting import exiting, images
from leanvit.anatomy import OpenModel, State
from leanvit.anatomy.arithmetic.ops import TORCH
from leanvit.cli.main import app
from leanvit.data import Batch, Preprocess, open_dataset
from leanvit.errors import BadInput, Refused
from leanvit.exits import calibration
from leanvit.exits.calibration import chosen, collect, curve, held_out, replay
from leanvit.exits.lgvit import LGViT
from leanvit.exits.lgvit.heads import FoldedLocalMap, GlobalMap, LocalMap, build_heads, picked
from leanvit.exits.lgvit.losses import SelfDistillation, Weights, heterogeneous, joint_loss, kinds_of, run_all, taught
from leanvit.exits.lgvit.method import DEFAULTS, default_heads
from leanvit.exits.lgvit.training import only_heads_learn
from leanvit.quantize.int8.method import Int8, describe
from leanvit.recipe import Data, Plan, Root, compatibility, compress, create, load, load_run, reapply, retune, save
from leanvit.runs.commands import commands_of
from leanvit.tokens.evit import EViT
from zoo import build_swin

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2, "in_chans": 1, "num_classes": 10}
QUICK = LGViT(exits=(1, 2), heads=("lph_dw", "gah2"), epochs=1, batch_size=16, lr=5e-3, augment=None, held_out=0.2)


@pytest.fixture(scope="module")
def model() -> OpenModel:
    torch.manual_seed(0)
    return create(Root("vit_tiny_patch16_224", SMALL)).eval()


@pytest.fixture(scope="module")
def data(model: OpenModel) -> Data:
    return Data(open_dataset("digits", "train", limit=80), Preprocess.of(model))


@pytest.fixture(scope="module")
def lean(model: OpenModel, data: Data) -> OpenModel:
    return compress(model, [QUICK], data)


# --- heads -----------------------------------------------------------------------


def test_a_global_head_picks_tokens_and_does_not_average() -> None:
    tokens = torch.arange(25.0).reshape(1, 25, 1)
    assert picked((5, 5), 2)(tokens).flatten().tolist() == [0, 2, 4, 10, 12, 14, 20, 22, 24]
    assert picked((4, 5), 3)(torch.arange(20.0).reshape(1, 20, 1)).flatten().tolist() == [0, 3, 15, 18]
    attention = GlobalMap("map", 16, stride=2)
    got = attention(torch.randn(2, 25, 16), State(ops=TORCH, grid=(5, 5), num_prefix=0))
    assert got.shape == (2, 9, 16) and attention.qkv.bias is None and attention.heads == 8


@pytest.mark.parametrize("depthwise", [True, False])
@torch.no_grad()
def test_norms_fold_into_convolutions_at_the_border_too(depthwise: bool) -> None:
    head = LocalMap("map", 8, depthwise=depthwise)
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else torch.randn_like(tensor))
    head.eval()
    folded = FoldedLocalMap(head, (3, 4))
    x, state = torch.randn(2, 12, 8), State(ops=TORCH, grid=(3, 4), num_prefix=0)
    torch.testing.assert_close(folded(x, state), head(x, state), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_published_layouts() -> None:
    assert default_heads(8) == ("lph_dw",) * 2 + ("lph_pw",) * 2 + ("gah2",) * 2 + ("gah3",) * 2
    assert default_heads(6) == ("lph_dw", "lph_pw", "gah2", "gah2", "gah3", "gah3")
    assert default_heads(4) == ("lph_dw", "lph_pw", "gah2", "gah3") and default_heads(2) == ("lph_dw", "gah2")
    with torch.device("meta"):
        import timm

        from leanvit.anatomy import open_model

        vit = open_model(timm.create_model("vit_tiny_patch16_224"), check=False)
        swin = open_model(timm.create_model("swin_base_patch4_window7_224"), check=False)
    assert [n for n, _ in LGViT().rows(vit)] == [4, 5, 6, 7, 8, 9, 10, 11]
    assert [n for n, _ in LGViT().rows(swin)] == [4, 7, 10, 13, 16, 19, 22, 23]
    assert [k for _, k in LGViT().rows(swin)] == ["lph_dw"] * 2 + ["lph_pw"] * 2 + ["gah1"] * 2 + ["gah2"] * 2


def test_widths_that_heads_cannot_divide_are_refused(tiny) -> None:
    with pytest.raises(Refused, match="36 is not divisible"):
        exiting(tiny(embed_dim=36))
    with pytest.raises(Refused, match="no classes"):
        exiting(tiny(num_classes=0))


def test_swin_heads_normalise_before_the_mean() -> None:
    model = exiting(build_swin("swin_tiny_patch4_window7_224", embed_dim=16), rows=[(1, "lph_dw"), (4, "gah2")])
    head, grids = model.exits.heads[1], []
    x, state = model.run(*model.embed(images(2), model.start(images(2))), 0, 4)
    logits, features = head(x, state)
    grids.append(state.grid)
    assert features.shape[1:] == (picked(grids[0], 2)(x).shape[1], 32)
    want = F.linear(head.norm(features).mean(1), head.classifiers[0].weight, head.classifiers[0].bias)
    torch.testing.assert_close(logits, want)


# --- losses ----------------------------------------------------------------------


def test_strategies_of_stage_1() -> None:
    exits, final = [torch.tensor(2.0), torch.tensor(4.0)], torch.tensor(9.0)
    for strategy, even, odd in (
        ("normal", 5.0, 5.0),
        ("weighted", 6.5, 6.5),
        ("alternating", 9.0, 5.0),
        ("alternating_weighted", 9.0, 6.5),
    ):
        got = [joint_loss(exits, final, (1, 2, 3), strategy, step).item() for step in (0, 1)]
        assert got == pytest.approx([even, odd if strategy != "weighted" else (2 + 8 + 27) / 6], abs=0.4)
    assert joint_loss(exits, final, (1, 2, 3), "weighted", 0).item() == pytest.approx(37 / 6)


def test_terms_of_stage_2_are_divided_as_published() -> None:
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    kl = (F.softmax(teacher / 2, -1) * (F.log_softmax(teacher / 2, -1) - F.log_softmax(student / 2, -1))).sum()
    torch.testing.assert_close(taught(student, teacher, 2.0), kl * 4 / 15)
    f, r = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    kl = (F.softmax(r, -1) * (F.log_softmax(r, -1) - F.log_softmax(f, -1))).sum()
    torch.testing.assert_close(heterogeneous(f, r), kl / 3)


def test_the_deployed_end_teaches(model, data) -> None:
    model = copy.deepcopy(model)
    from leanvit.anatomy.exits.running import ExitPolicy, Exits

    heads = build_heads(model, [(1, "lph_pw"), (2, "linear"), (3, "gah2")])
    model.exits = Exits(heads, ExitPolicy((1, 2, 3), 4, None), source="lgvit").eval()
    seen = run_all(model, images(2, 8, 1), {})
    with model.without_exits():
        torch.testing.assert_close(seen.final, model(images(2, 8, 1)))
    assert seen.features[1] is None
    with pytest.raises(BadInput, match="requires a gradient"):
        SelfDistillation(kinds_of(model), Weights()).bind(model, data.preprocess)
    objective = SelfDistillation(kinds_of(model), Weights())
    with only_heads_learn(model):
        objective.bind(model, data.preprocess)
        loss = objective(model, Batch(images(2, 8, 1), torch.tensor([1, 2]), []), 0, {})
        loss.total.backward()
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("exits."))
    assert all(p.grad is not None for p in model.exits.parameters())
    assert {"labels", "teacher", "heterogeneous"} <= set(loss.parts) and model.blocks[0].training is False
    assert all(p.requires_grad for p in model.parameters())


def test_a_hierarchical_net_learns_from_labels_and_teacher() -> None:
    rows = [(1, "lph_pw"), (3, "gah2"), (4, "lph_dw")]
    model = exiting(build_swin("swin_tiny_patch4_window7_224", embed_dim=16), rows=rows)
    with only_heads_learn(model):
        loss = SelfDistillation(kinds_of(model), Weights())(model, Batch(images(4), torch.arange(4), []), 0, {})
        loss.total.backward()
    assert set(loss.parts) == {"labels", "teacher"} and all(p.grad is not None for p in model.exits.parameters())


# --- training --------------------------------------------------------------------


def test_stage_2_leaves_the_backbone_bit_for_bit(model, lean) -> None:
    before, after = model.state_dict(), lean.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert int(after["exits.heads.0.map.norm1.num_batches_tracked"]) == 4, "80 images, 16 of them held out, by 16"
    assert all(p.requires_grad for p in lean.parameters())


def test_stage_1_trains_the_backbone(model, data) -> None:
    both = compress(model, [replace(QUICK, stage1_epochs=1, stage1_lr=1e-3)], data)
    assert not torch.equal(both.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)


class Killed(Exception):
    pass


class KillAfter:
    def __init__(self, step: int) -> None:
        self.left = step

    def after_step(self, run: Any) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def test_a_killed_training_ends_with_the_same_bits(model, data, tmp_path) -> None:
    """In stage 1, and in stage 2 behind it."""
    knobs = replace(QUICK, stage1_epochs=1, epochs=1, batch_size=32)
    want = compress(model, [knobs], data).state_dict()
    for step in (1, 3):
        with pytest.raises(Killed):
            compress(model, [knobs], replace(data, callbacks=(KillAfter(step),)), out=tmp_path / str(step))
        got = compress(model, [knobs], data, out=tmp_path / str(step), resume=True).state_dict()
        assert got.keys() == want.keys() and all(torch.equal(tensor, want[name]) for name, tensor in got.items())


# --- the threshold ---------------------------------------------------------------


def test_thresholds_are_chosen_on_images_that_nothing_learned_from(data) -> None:
    train, apart = held_out(data.dataset, 0.2, 0)
    assert len(apart) == 16 and len(train) == 64 and not set(train.keys) & set(apart.keys)
    assert held_out(data.dataset, 0.2, 1)[1].keys != apart.keys and held_out(data.dataset, 0, 0)[1] is None
    with pytest.raises(BadInput, match="leaves none"):
        held_out(data.dataset.take([0]), 0.5, 0)


def test_a_replayed_rule_is_what_the_model_does(lean, data) -> None:
    """Every point of the curve: share of each exit, accuracy and cost are those of runs with its threshold."""
    seen = collect(lean, data.dataset, data.preprocess, batch_size=16)
    layers, macs = (1, 2, 4), lean.exits.policy.macs
    for kind in ("confidence", "entropy", "patience", "patient_confident"):
        points = curve(seen, kind, 2, layers, macs, points=6)
        assert points[0].shares[0 if kind != "patient_confident" else 1] == 1 and points[-1].shares[-1] == 1
        costs = [p.macs for p in points]
        assert costs == sorted(costs), "from the cheapest to the dearest"
        middle = points[len(points) // 2]
        model = copy.deepcopy(lean)
        model.exits.policy.rule = replace(_rule(kind), thresholds=(middle.threshold,) * 2)
        with model.exits.recording() as work:
            from leanvit.data import loader
            from leanvit.measure import accuracy, predict

            found = predict(model, loader(data.dataset, data.preprocess, batch_size=16))
        assert work.shares == pytest.approx(middle.shares) and work.mean_macs == pytest.approx(middle.macs)
        assert accuracy(found).value == pytest.approx(middle.top1)
    final = replay(seen, replace(_rule("confidence"), thresholds=(1.0, 1.0)), layers, macs)
    assert final.top1 == pytest.approx(float((seen.final == seen.targets).double().mean()))


def test_answers_collected_in_units_are_those_of_one_pass(lean, data, tmp_path, monkeypatch) -> None:
    """And of a killed calibration, those that were finished are not collected again."""
    monkeypatch.setattr(calibration, "UNIT", 2)
    data = replace(data, batch_size=16, out=tmp_path)  # 80 images: units of 32, 32, 16
    whole = collect(lean, data.dataset, data.preprocess, batch_size=16).tensors()
    asked: list[int] = []

    def counted(model, dataset, *args, **more):
        asked.append(len(dataset))
        return collect(model, dataset, *args, **more)

    monkeypatch.setattr(calibration, "collect", counted)
    for expected in ([32, 32, 16], [], [32]):
        found = calibration.collect_in_units(lean, data.dataset, data).tensors()
        assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
        assert asked == expected
        asked.clear()
        if not expected:
            (tmp_path / "units" / "thresholds" / "1.safetensors").unlink()


def _rule(kind: str) -> Any:
    from leanvit.anatomy.exits.rules import Rule

    return Rule(kind, (), 2)


def test_targets_choose_the_threshold(lean, data) -> None:
    structure = lean.history.plans[-1].structure
    seen = collect(lean, data.dataset, data.preprocess, batch_size=16)
    points, dense = curve(seen, "confidence", 2, (1, 2, 4), structure["macs"]), structure["dense_macs"]
    final = points[-1].top1
    for speedup in (1.0, 1.3):
        best = chosen(points, dense=dense, final_top1=final, speedup=speedup, points_lost=None)
        assert dense / best.macs >= speedup
        assert all(p.top1 <= best.top1 for p in points if dense / p.macs >= speedup)
    cheap = chosen(points, dense=dense, final_top1=final, speedup=None, points_lost=5)
    assert 100 * (final - cheap.top1) <= 5
    assert all(p.macs >= cheap.macs for p in points if 100 * (final - p.top1) <= 5)
    with pytest.raises(Refused, match="speedup 50 was requested; if all images leave"):
        chosen(points, dense=dense, final_top1=final, speedup=50, points_lost=None)


def test_a_target_reaches_the_model(model, data) -> None:
    asked = compress(model, [replace(QUICK, speedup=1.5)], data)
    plan = asked.history.plans[-1]
    payload, rule = plan.method().achieved(asked, plan.structure), asked.exits.policy.rule
    assert payload["held_out_speedup_macs"] >= 1.5 and rule.thresholds == tuple(plan.structure["thresholds"])
    assert plan.structure["expected"]["of"]["thresholds"] == plan.structure["thresholds"]
    assert plan.method().check(asked, dict(plan.structure)) == []


# --- the life of a run -----------------------------------------------------------


def test_no_exits_is_the_model_itself(model) -> None:
    x = images(2, 8, 1)
    off = compress(model, [LGViT(exits=())])
    assert off.exits is None and torch.equal(off(x), model(x))


def test_saved_loaded_and_given_another_threshold(lean, tmp_path: Path) -> None:
    x = images(9, 8, 1)
    save(lean, tmp_path / "run")
    again = load(tmp_path / "run")
    assert torch.equal(again(x), lean(x)) and again.exits.policy.macs == lean.exits.policy.macs
    (plan,) = again.history.plans
    edited = Plan(plan.slug, plan.knobs, {**plan.structure, "thresholds": [0.0, 0.0]})
    other = reapply(again, [edited])
    assert other.trace(x)[1].left.tolist() == [1] * 9 and again.trace(x)[1].left.tolist() != [1] * 9
    save(other, tmp_path / "other")
    assert load(tmp_path / "other").exits.policy.rule.thresholds == (0.0, 0.0)
    never = reapply(other, [Plan(plan.slug, plan.knobs, {**plan.structure, "rule": "entropy", "thresholds": [0, 0]})])
    assert never.trace(x)[1].left.tolist() == [4] * 9
    for change, words in (
        ({"thresholds": [2.0, 2.0]}, "threshold is 2"),
        ({"macs": [1, 2, 3]}, "macs cannot be edited"),
        ({"thresholds": 2}, "plan 'lgvit' does not fit: thresholds is 2; accepted: a list"),
        ({"rule": None}, "plan 'lgvit' does not fit: rule"),
        ({"extra": 1}, "it has no key 'extra'"),
    ):
        with pytest.raises((BadInput, Refused), match=words):
            reapply(again, [Plan(plan.slug, plan.knobs, {**plan.structure, **change})])


def test_retuned_it_has_other_knobs_the_same_weights_and_no_need_of_data(lean, data, tmp_path: Path) -> None:
    x = images(9, 8, 1)
    all_leave = retune(lean, "lgvit", {"threshold": 0})
    assert all_leave.trace(x)[1].left.tolist() == [1] * 9 and lean.trace(x)[1].left.tolist() != [1] * 9
    assert all(torch.equal(t, lean.state_dict()[name]) for name, t in all_leave.state_dict().items())
    for knobs in ({"speedup": 1.3}, {"points": 5.0}):
        asked = retune(all_leave, "lgvit", knobs)
        plan = asked.history.plans[-1]
        fresh = compress_again(lean, data, knobs)
        assert plan.structure["thresholds"] == [fresh] * 2
        assert plan.method() == replace(QUICK, **knobs) and plan.method().check(asked, dict(plan.structure)) == []
        save(asked, tmp_path / next(iter(knobs)))
        assert torch.equal(load(tmp_path / next(iter(knobs)))(x), asked(x))
    never = retune(asked, "lgvit", {"rule": "entropy", "threshold": [0, 0]})
    assert never.trace(x)[1].left.tolist() == [4] * 9 and never.history.plans[-1].method().points is None
    published = retune(asked, "lgvit", {"rule": "entropy"})
    assert published.history.plans[-1].structure["thresholds"] == [DEFAULTS["entropy"]] * 2, "not that of another rule"
    kept = retune(never, "lgvit", {"patience": 1})
    assert kept.history.plans[-1].method().threshold == (0, 0) and kept.exits.policy.rule.patience == 1


def compress_again(lean: OpenModel, data: Data, knobs: dict[str, Any]) -> float:
    """The threshold that the held-out images themselves give for a target."""
    structure = lean.history.plans[-1].structure
    seen = collect(lean, held_out(data.dataset, 0.2, data.seed)[1], data.preprocess, batch_size=16)
    points = curve(seen, "confidence", 2, (1, 2, 4), structure["macs"])
    target = {"speedup": knobs.get("speedup"), "points_lost": knobs.get("points")}
    final = structure["held_out"]["top1"]
    return chosen(points, dense=structure["dense_macs"], final_top1=final, **target).threshold


def test_what_retuning_refuses(model, lean) -> None:
    plan = lean.history.plans[-1]
    blind = copy.deepcopy(lean)
    unseen = {k: v for k, v in plan.structure.items() if k not in ("curve", "held_out", "expected")}
    blind.history = replace(lean.history, plans=(Plan("lgvit", plan.knobs, unseen),))
    for which, slug, knobs, words in (
        (model, "lgvit", {"threshold": 0.5}, "lgvit is not a method of this model: it is dense"),
        (lean, "evit", {"keep_rate": 0.5}, "unknown method of this model 'evit'"),
        (
            compress(model, [EViT(keep_rate=0.5)]),
            "evit",
            {"keep_rate": 0.7},
            "no knob that a finished model can change",
        ),
        (lean, "lgvit", {"epochs": 3}, "unknown tunable knob of lgvit 'epochs'"),
        (lean, "lgvit", {}, "lgvit is given no knob"),
        (lean, "lgvit", {"threshold": 2.0}, "threshold is 2"),
        (lean, "lgvit", {"threshold": [0.5]}, "threshold names 1 for 2 exits"),
        (lean, "lgvit", {"speedup": 50.0}, "speedup 50 was requested"),
        (lean, "lgvit", {"rule": "entropy", "speedup": 1.2}, "has that of rule confidence"),
        (blind, "lgvit", {"speedup": 1.2}, "held_out was 0"),
    ):
        with pytest.raises((BadInput, Refused), match=words):
            retune(which, slug, knobs)


def test_a_run_is_retuned_into_a_new_one(model, lean, data, tmp_path: Path) -> None:
    save(lean, tmp_path / "run", preprocess=data.preprocess, classes=tuple("0123456789"), info={"data": "digits"})
    command = ["retune", str(tmp_path / "run"), "--with", "lgvit:threshold=0", "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["asked"]
    assert row["method"] == "lgvit" and row["asked"]["threshold"] == row["achieved"]["threshold"] == 0
    run = load_run(tmp_path / "new")
    assert run.model.exits.policy.rule.thresholds == (0.0, 0.0) and run.info["data"] == "digits"
    assert run.preprocess == data.preprocess and run.classes == tuple("0123456789")
    assert [c.verb for c in commands_of(tmp_path / "new")] == ["retune"]
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "is not empty" in again.output
    table = CliRunner().invoke(app, [*command, "--overwrite"])
    assert table.exit_code == 0 and "held_out_speedup_macs" in table.output


def test_int8_sees_backbone_and_heads(model, lean, data, tmp_path: Path) -> None:
    x = images(6, 8, 1)
    rounded = compress(lean, [Int8(images=16)], data)
    rows = {(row["site"], row["operand"]): row["bits"] for row in describe(rounded)}
    assert set(rows.values()) == {8}
    for site in ("exits.heads.0.map.conv_dw", "exits.heads.1.map.qkv", "exits.heads.0.classifiers.0"):
        assert (site, "weight") in rows
    assert ("exits.heads.1.map.attn", "a") not in rows and ("exits.heads.1.map.matmul1", "a") in rows
    assert rounded.exits.policy.rule == lean.exits.policy.rule
    save(rounded, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(x), rounded(x))


def test_clashes_are_refused_by_name_before_any_work(model, data, tiny) -> None:
    cells = {(c.first, c.second): c for c in compatibility(["evit", "lgvit", "int8", "nvit"])}
    assert cells["lgvit", "int8"].verdict == cells["nvit", "lgvit"].verdict == "yes"
    for first, second, word in (
        ("evit", "lgvit", "full grid"),
        ("lgvit", "evit", "transformer blocks"),
        ("int8", "lgvit", "float"),
        ("lgvit", "nvit", "transformer blocks"),
        ("lgvit", "lgvit", "transformer blocks"),
    ):
        cell = cells[first, second]
        assert cell.verdict == "no" and word in cell.reason and second in cell.reason
    with pytest.raises(Refused, match="lgvit needs the full grid of patches, which evit takes away"):
        compress(model, [EViT(blocks=(1,)), QUICK], data)
    with pytest.raises(BadInput, match="1 to 3"):
        compress(model, [replace(QUICK, exits=(1, 4))], data)


def test_methods_before_it_are_judged_without_its_heads(model, data) -> None:
    from leanvit.recipe.compressing import as_made

    lean = compress(model, [replace(QUICK, epochs=0)], data)
    with as_made(lean, "lgvit"):
        assert lean.exits is not None
    lean.history = replace(lean.history, plans=(Plan("evit"), *lean.history.plans))
    with as_made(lean, "evit"):
        assert lean.exits is None
    assert lean.exits is not None
