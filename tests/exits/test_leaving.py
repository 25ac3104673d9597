"""Images that leave: exactness, cost, rules, and what a model with exits tells the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from exits.exiting import NEVER, ROWS, exiting, images, split_threshold
from leanvit.anatomy import State, close_model
from leanvit.anatomy.arithmetic.ops import TORCH
from leanvit.anatomy.exits.rules import Evidence, Rule, check_rule
from leanvit.anatomy.exits.running import leave
from leanvit.errors import BadInput, Refused
from leanvit.exits.lgvit.losses import run_all
from leanvit.measure import compare, count
from tokens.reduction import VARIANTS
from zoo import build_swin

MORE = {
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_medium_patch16_reg4_gap_256", {}),
    "attention pool": ("vit_base_patch16_siglip_224", {}),
    "rotary": ("vit_small_patch16_rope_224", {"num_heads": 4}),
}


def models(tiny) -> dict[str, nn.Module]:
    plain = {name: tiny(**kwargs) for name, kwargs in VARIANTS.items()}
    plain |= {name: tiny(model, **kwargs) for name, (model, kwargs) in MORE.items()}
    return plain | {"swin": build_swin("swin_tiny_patch4_window7_224", embed_dim=16)}


def test_nobody_leaves_and_every_bit_is_the_backbones(tiny) -> None:
    """On every variant of the backbone, heads in place."""
    for name, model in models(tiny).items():
        x = images(3)
        want = model(x)
        rows = [(1, "lph_pw"), (2, "gah2"), (4, "lph_dw")] if name == "swin" else ROWS
        logits, state = exiting(model, rows=rows).trace(x)
        assert torch.equal(logits, want), name
        assert set(state.left.tolist()) == {len(list(model.blocks)) if hasattr(model, "blocks") else 5}, name


def test_all_leave_at_the_first_exit(tiny) -> None:
    model, x = exiting(tiny(), 0.0), images()
    logits, state = model.trace(x)
    assert state.left.tolist() == [1] * 6 and torch.equal(logits, run_all(model, x, {}).logits[0])
    assert count(model, (3, 32, 32), make_input=lambda _: x[:1]).macs == model.exits.policy.macs[0]


def test_a_batch_is_its_images_one_by_one(tiny) -> None:
    model, x = exiting(tiny("deit_tiny_distilled_patch16_224")), images(12)
    model.exits.policy.rule = Rule("confidence", (split_threshold(model, x),) * 3)
    logits, state = model.trace(x)
    alone = [model.trace(one) for one in x.split(1)]
    assert len(set(state.left.tolist())) > 1, "some leave, some stay"
    assert state.left.tolist() == [s.left.item() for _, s in alone]
    torch.testing.assert_close(logits, torch.cat([one for one, _ in alone]), rtol=1e-5, atol=1e-5)


def test_nothing_is_computed_for_who_left(tiny) -> None:
    model, x = exiting(tiny()), images(12)
    model.exits.policy.rule = Rule("confidence", (split_threshold(model, x),) * 3)
    seen = [0] * 4
    for i, block in enumerate(model.blocks):
        block.mlp.fc1.register_forward_pre_hook(lambda m, args, i=i: seen.__setitem__(i, args[0].shape[0]))
    with model.exits.recording() as work:
        left = model.trace(x)[1].left
    assert seen == [int((left > i).sum()) for i in range(4)] and seen[3] < 12
    each = torch.tensor([model.exits.policy.macs[[1, 2, 3, 4].index(n)] for n in left.tolist()])
    assert work.mean_macs == pytest.approx(float(each.float().mean()))
    assert count(model, (3, 32, 32), batch=12, make_input=lambda _: x).macs == pytest.approx(work.mean_macs, abs=1)
    assert work.mean_layer == pytest.approx(float(left.float().mean())) and work.images == 12


def test_a_higher_threshold_lets_nobody_leave_earlier(tiny) -> None:
    model, x = exiting(tiny()), images(10)
    before = torch.zeros(10, dtype=torch.int64)
    for threshold in (0.0, 0.3, 0.5, 0.7, 0.9, 1.0):
        model.exits.policy.rule = Rule("confidence", (threshold,) * 3)
        left = model.trace(x)[1].left
        assert (left >= before).all()
        before = left
    assert before.tolist() == [4] * 10


def _by_hand(kind: str, threshold: float, patience: int, logits: list[Tensor]) -> int:
    """The exit of one image, (classes,) logits of each exit; as many as there are: none."""
    answer, streak = None, 0
    for i, one in enumerate(logits):
        p = one.softmax(-1)
        entropy, top = -(p * p.log()).sum().item(), int(p.argmax())
        if kind == "confidence" and p.max().item() > threshold:
            return i
        if kind == "entropy" and entropy < threshold:
            return i
        if kind == "patience":
            streak = streak + 1 if top == answer else 1
            answer = top
            if streak >= threshold:
                return i
        if kind == "patient_confident":
            streak = streak + 1 if entropy < threshold else 0
            if streak >= patience:
                return i
    return len(logits)


@pytest.mark.parametrize(
    ("kind", "threshold"), [("confidence", 0.6), ("entropy", 0.9), ("patience", 2), ("patient_confident", 1.2)]
)
def test_rules_keep_each_images_own_count(kind: str, threshold: float) -> None:
    logits = torch.randn(5, 40, 4, generator=torch.Generator().manual_seed(3)) * 1.5
    parts = [lambda rows, i=i: (logits[i][rows], rows) for i in range(5)]
    rule = Rule(kind, (threshold,) * 4)
    got, at, _ = leave(torch.arange(40), parts, rule, lambda rows, index: rows[index])
    want = [_by_hand(kind, threshold, 2, list(logits[:4, i])) for i in range(40)]
    assert at.tolist() == want and len(set(want)) >= 3
    assert torch.equal(got, torch.stack([logits[n, i] for i, n in enumerate(want)]))


def test_entropy_of_certainty_is_zero_not_nan() -> None:
    seen = Evidence.of(torch.tensor([[1000.0, 0.0, -1000.0]]))
    assert seen.entropy.item() == 0 and seen.confidence.item() == 1


def test_thresholds_have_ranges() -> None:
    assert check_rule("patience", [3, 4], 2, 2).thresholds == (3, 4)
    for kind, value in (("confidence", 1.5), ("confidence", -0.1), ("entropy", -1), ("patience", 0), ("patience", 2.5)):
        with pytest.raises(BadInput, match="threshold is"):
            check_rule(kind, [value], 2, 1)
    with pytest.raises(BadInput, match="2 thresholds for 3 exits"):
        check_rule("confidence", [0.5, 0.5], 2, 3)


def test_rows_of_a_state_are_those_of_the_images_that_stay() -> None:
    state = State(ops=TORCH, grid=(1, 2), num_prefix=0, size=torch.arange(6).reshape(3, 2))
    assert state.rows(torch.tensor([2, 0])).size.tolist() == [[4, 5], [0, 1]]


def test_heads_cost_what_a_count_says(tiny) -> None:
    """The cost of leaving somewhere, counted in one run of all parts, is that of a model that does leave there."""
    model, x = exiting(tiny(depth=4)), images(1)
    for i in range(4):
        model.exits.policy.rule = Rule("confidence", tuple(0.0 if j == i else NEVER for j in range(3)))
        assert count(model, (3, 32, 32), make_input=lambda _: x).macs == model.exits.policy.macs[i]
    with model.without_exits():
        bare = count(model, (3, 32, 32)).macs
    assert count(model, (3, 32, 32)).macs == model.exits.policy.macs[3] > bare


def test_a_comparison_shows_the_mean_cost_of_the_images_it_saw(tiny) -> None:
    from dataclasses import dataclass

    @dataclass
    class Batch:
        images: Tensor
        targets: Tensor
        keys: list[str]

    model, x = exiting(tiny()), images(12)
    model.exits.policy.rule = Rule("confidence", (split_threshold(model, x),) * 3)
    batches = [
        Batch(x[i : i + 4], torch.zeros(4, dtype=torch.int64), [str(i + j) for j in range(4)]) for i in (0, 4, 8)
    ]
    with model.exits.recording() as work:
        model(x)
    found = compare({"dense": copy.deepcopy(model), "exits": model}, batches, rounds=3, min_seconds=1e-4)
    row = found.row("exits")
    assert row.macs_per_image == round(work.mean_macs)
    assert any("mean over 12 images" in note and "mean block" in note for note in row.notes)


def test_a_model_with_exits_says_so(tiny) -> None:
    model = exiting(tiny())
    assert "token_blocks" not in model.traits() and "full_grid" in model.traits()
    with pytest.raises(Refused, match="exits of lgvit"):
        close_model(model)
    with model.whole_depth():
        assert model.exits.policy.rule is None
        assert model.trace(images(2))[1].left.tolist() == [4, 4]
    model.train()
    assert torch.equal(model(images(2)), model(images(2))), "in training there is the network's end alone"
    assert {"exits.heads.0.map.conv_dw", "exits.heads.1.map.qkv", "exits.heads.2.classifiers.0"} <= set(model.sites())
