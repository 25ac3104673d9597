"""The method whole: trained, cut, saved, resumed, composed, refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from leanvit.anatomy import open_model
from leanvit.errors import BadInput, LeanvitError, Refused
from leanvit.measure import count
from leanvit.measure.counting import parameters
from leanvit.prune.nvit import NViT, method, timing
from leanvit.prune.nvit.loop import GlobalPruning
from leanvit.quantize.int8 import Int8
from leanvit.recipe import compress, load, save
from leanvit.recipe.learning import Data
from leanvit.recipe.text import parse_with
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome import ToMe
from training.tiny_training import make_data, make_preprocess

QUICK: dict[str, Any] = {"interval": 2, "max_steps": 8, "batch_size": 16, "lr": 1e-3, "mlp_group": 4, "embed_group": 4}
SHAPE = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}


def dense(name: str = "vit_tiny_patch16_224", **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SHAPE, **kwargs})


def data(out: Path | None = None) -> Data:
    return Data(make_data(80), make_preprocess(), out=out)


def picture() -> torch.Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("kind", "ratio"), [("macs", 0.6), ("macs", 0.3), ("params", 0.5)])
def test_the_target_is_met_on_the_real_module(kind: str, ratio: float, tmp_path: Path) -> None:
    nvit = NViT(**{kind: ratio}, **QUICK)
    model = open_model(dense())
    whole = {"macs": count(model, (1, 8, 8)).macs, "params": parameters(model)}
    lean = compress(dense(), [nvit], data())
    now = {"macs": count(lean, (1, 8, 8)).macs, "params": parameters(lean)}
    assert ratio * 0.99 <= now[kind] / whole[kind] <= ratio
    structure = dict(lean.history.plans[0].structure)
    payload = nvit.achieved(lean, structure)
    assert payload[kind] == now[kind] / whole[kind] and payload["target"] == f"{kind} {ratio:g}"
    assert len(payload["widths"]) == 2 and "mlp 96 -> " in payload["widths"][0]
    assert nvit.check(lean, structure) == []
    save(lean, tmp_path / "run")
    again = load(tmp_path / "run")
    assert torch.equal(again(picture()), lean(picture()))


def test_a_target_of_one_changes_nothing() -> None:
    model = dense().eval()
    lean = compress(model, [NViT(macs=1.0)], data())
    assert torch.equal(lean(picture()), model(picture()))


def test_widths_differ_between_blocks_because_one_ranking_serves_all() -> None:
    lean = compress(dense(depth=3), [NViT(macs=0.5, kinds=("mlp",), eta=0.0, **QUICK)], data())
    assert len({block.mlp.fc2.in_features for block in lean.blocks}) > 1
    assert all(block.attn.heads == 3 and block.attn.proj.out_features == 24 for block in lean.blocks)


def test_it_prunes_in_half_precision_too() -> None:
    full, half = (compress(dense(), [NViT(macs=0.5, amp=amp, **QUICK)], data()) for amp in ("fp32", "bf16"))
    assert count(half, (1, 8, 8)).macs <= 0.5 * count(dense(), (1, 8, 8)).macs
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert not torch.equal(full(picture()), half(picture())), "its forwards were rounded"


def test_swin_is_cut_within_its_blocks() -> None:
    shape = {"img_size": 8, "patch_size": 1, "in_chans": 1, "num_classes": 4, "embed_dim": 12, "window_size": 4}
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", **shape, depths=(1, 1), num_heads=(2, 4))
    lean = compress(model, [NViT(macs=0.6, **QUICK)], data())
    assert 0.594 <= count(lean, (1, 8, 8)).macs / count(open_model(model), (1, 8, 8)).macs <= 0.6


class Killed(Exception):
    pass


class KillAt:
    """Ends the run after a step, as a kill would: nothing more is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Any) -> None:
        if run.step == self.step:
            raise Killed


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, step: int) -> None:
    nvit = NViT(macs=0.4, **QUICK)
    want = compress(dense(), [nvit], data())
    killed = replace(data(tmp_path), callbacks=(KillAt(step),))
    with pytest.raises(Killed):
        compress(dense(), [nvit], killed)
    got = compress(dense(), [nvit], data(tmp_path))
    assert got.history.plans[0].structure == want.history.plans[0].structure
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), want.parameters(), strict=True))
    finished = compress(dense(), [nvit], data(tmp_path))  # its training is done: nothing is trained again
    assert all(torch.equal(a, b) for a, b in zip(finished.parameters(), want.parameters(), strict=True))


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    compress(dense(), [NViT(macs=0.5, **QUICK)], data(tmp_path))
    with pytest.raises(BadInput, match="of another run"):
        compress(dense(), [NViT(macs=0.4, **QUICK)], data(tmp_path))


class Watch:
    """What the objective does step by step."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, bool, bool]] = []

    def after_step(self, run: Any) -> None:
        pruning: GlobalPruning = run.objective
        closed = int((~pruning.gates).sum())
        self.rows.append((run.step, closed, "divergence" in run.losses, run.model.training))
        w = dict(run.model.named_parameters())["blocks.0.mlp.fc1.weight"]
        gates = pruning.target.units.split(pruning.gates)["blocks.0.mlp"]
        assert not w[~gates].any() and w[gates].any()


def test_the_course_of_pruning() -> None:
    watch = Watch()
    nvit = NViT(macs=0.5, **{**QUICK, "prune_per_step": 2})
    compress(dense(drop_path_rate=0.2), [nvit], replace(data(), callbacks=(watch,)))
    steps, closed, taught, training = zip(*watch.rows, strict=True)
    assert steps == tuple(range(1, 9)) and list(closed) == sorted(closed)
    assert closed[0] == 0 < closed[1] < closed[3] < closed[5] < closed[7]  # at each interval, monotone
    assert taught == (False, False, True, True, True, True, True, True)
    assert training == (True, True, False, False, False, False, False, False)  # eval mode after the first pruning step


def test_scores_do_not_depend_on_clipping() -> None:
    class Scores:
        def __init__(self) -> None:
            self.sums: list[torch.Tensor] = []

        def after_step(self, run: Any) -> None:
            if run.step == 1:
                self.sums.append(run.objective.sums.clone())

    from leanvit.training import FitConfig, fit

    sums = []
    for clip in (None, 1e-3):
        seen, model = Scores(), open_model(dense())
        nvit = NViT(macs=0.5, **QUICK)
        target = nvit._target(model, method.layout(model), None)
        objective = nvit._objective(model, target, data())
        config = FitConfig(epochs=1, batch_size=40, lr=1e-12, min_lr=0.0, weight_decay=0.0, clip_grad=clip)
        fit(model, make_data(80), preprocess=make_preprocess(), config=config, objective=objective,
            callbacks=[objective, seen])  # fmt: skip
        sums += seen.sums
    assert sums[0].any()
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-3, atol=1e-12)


class Analytic:
    """A latency table with a formula: half of the time is fixed."""

    fingerprint, provenance = "analytic", {"date": "never"}

    def __init__(self, least_mlp: int = 1, most_mlp: int = 4096) -> None:
        self.mlp = range(least_mlp, most_mlp + 1)

    def seconds(self, *, tokens: int, embed: int, heads: int, qk: int, v: int, mlp: int, attn_tokens: int = 0) -> float:
        if mlp not in self.mlp:
            raise BadInput(f"mlp is {mlp}; the table covers {self.mlp}")
        return 1e-9 * embed * (2 * heads * (qk + v) + 2 * mlp) * tokens

    def covers(self, *, mlp: int, **others: int) -> bool:
        return mlp in self.mlp

    def model_seconds(self, blocks: list[dict[str, int]], embed: int) -> float:
        return 1e-4 + sum(self.seconds(embed=embed, **row) for row in blocks)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """An analytic table, and a clock that finds the cut model 10 % slower than predicted; the ratios it told."""
    payload: list[float] = []
    monkeypatch.setattr(method, "open_table", lambda *args, **kwargs: Analytic())

    def measured(model: Any, units: Any, **kwargs: Any) -> Any:
        figure = method.Seconds.of(model, Analytic())

        def measure(gates: torch.Tensor) -> float:
            dims = {name: int(view.sum()) for name, view in units.split(gates).items()}
            payload.append(1.1 * figure.total(dims) / figure.total({}))
            return payload[-1]

        return measure

    monkeypatch.setattr(method, "measured_ratio", measured)
    return payload


def test_a_latency_target_is_held_against_the_clock(clock: list[float]) -> None:
    nvit = NViT(latency=0.75, **QUICK)
    lean = compress(dense(), [nvit], data())
    assert abs(clock[-1] / 0.75 - 1) < 0.05 and len(clock) <= 4
    structure = dict(lean.history.plans[0].structure)
    assert structure["reached"]["measured"] == pytest.approx(clock[-1])
    assert structure["reached"]["latency"] == pytest.approx(clock[-1] / 1.1)
    assert structure["reached"]["provenance"] == {"date": "never"}
    assert nvit.achieved(lean, structure)["latency"] == pytest.approx(clock[-1]) and nvit.check(lean, structure) == []
    missed = {**structure, "reached": {**structure["reached"], "measured": 0.9}}
    assert nvit.check(lean, missed) == ["latency 0.75 was requested, 0.900 measured"]


def test_a_latency_that_cannot_be_reached_says_what_can(clock: list[float]) -> None:
    with pytest.raises(Refused, match=r"latency is 0\.2, but this model can be cut to 0\.\d+ at the least"):
        compress(dense(), [NViT(latency=0.2, **QUICK)], data())
    assert not clock


def test_units_stay_within_what_the_table_covers(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "open_table", lambda *args, **kwargs: Analytic(least_mlp=50))
    lean = compress(dense(), [NViT(latency=0.85, kinds=("qk", "v", "mlp"), **QUICK)], data())
    assert all(50 <= block.mlp.fc2.in_features <= 96 for block in lean.blocks)
    assert abs(clock[-1] / 0.85 - 1) < 0.05


def test_a_table_of_a_smaller_model_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "open_table", lambda *args, **kwargs: Analytic(most_mlp=80))
    with pytest.raises(BadInput, match="mlp is 96; the table covers"):
        compress(dense(), [NViT(latency=0.8, **QUICK)], data())


def test_the_clock_times_the_cut_model() -> None:
    model = open_model(dense(embed_dim=192, depth=4, patch_size=1))
    units = method.layout(model)
    gates = method.all_open(units)
    for u, span in units.spans():
        if u.kind in ("embed", "mlp"):
            gates[span][u.size // 4 :] = False
    measure = timing.measured_ratio(model, units, emb_norm="plain", runtime="torch", batch=4, data=data())
    assert measure(gates) < 0.8


@pytest.mark.parametrize(
    "chain",
    [
        [NViT(macs=0.6, **QUICK), EViT(keep_rate=0.6, blocks=(1,)), Int8(images=16)],
        [NViT(macs=0.6, emb_norm="exact", **QUICK), ToMe(r=2), Int8(images=16)],
        [EViT(keep_rate=0.6, blocks=(1,)), NViT(macs=0.6, **QUICK)],
        [NViT(params=0.7, **QUICK), NViT(params=0.6, **QUICK)],
    ],
    ids=["nvit-evit-int8", "nvit-tome-int8", "evit-nvit", "twice"],
)
def test_it_composes_and_reloads(chain: list[Any], tmp_path: Path) -> None:
    lean = compress(dense(), chain, data())
    save(lean, tmp_path / "run")
    assert torch.equal(load(tmp_path / "run")(picture()), lean(picture()))


def test_macs_are_of_the_model_with_its_token_reduction() -> None:
    evit = compress(dense(), [EViT(keep_rate=0.5, blocks=(0,))])
    lean = compress(evit, [NViT(macs=0.5, **QUICK)], data())
    assert 0.495 <= count(lean, (1, 8, 8)).macs / count(evit, (1, 8, 8)).macs <= 0.5


def test_quantized_models_traced_models_and_no_data_are_refused() -> None:
    rounded = compress(dense(), [Int8(images=8)], data())
    with pytest.raises(Refused, match="float weights"):
        compress(rounded, [NViT(macs=0.5)], data())
    with pytest.raises(BadInput, match="give data"):
        compress(dense(), [NViT(macs=0.5)])
    with pytest.raises(Refused, match="transformer blocks"):
        compress(timm.create_model("mobilevit_xxs"), [NViT(macs=0.5)], data())


def test_frozen_weights_are_named() -> None:
    model = open_model(dense())
    for name, p in model.named_parameters():
        p.requires_grad_("blocks.1.mlp" not in name)
    with pytest.raises(BadInput, match=r"no gradient reaches the units blocks\.1\.mlp: .*fc1"):
        NViT(macs=0.5, **QUICK).learn(model, data())


def test_targets_out_of_reach_are_refused_before_training() -> None:
    class Never:
        def start(self, run: Any) -> None:
            raise AssertionError("training began")

    quiet = replace(data(), callbacks=(Never(),))
    with pytest.raises(Refused, match=r"macs is 0\.01, but this model can be cut to 0\.\d+ at the least"):
        compress(dense(), [NViT(macs=0.01, **QUICK)], quiet)
    with pytest.raises(Refused, match="too coarse"):
        compress(dense(), [NViT(macs=0.77, kinds=("head",), **QUICK)], quiet)


def test_recovery_follows() -> None:
    from leanvit.recipe import Recovery

    lean = compress(dense(), [NViT(macs=0.5, **QUICK)], data(), recovery=Recovery(epochs=1, batch_size=16))
    assert torch.isfinite(lean(picture())).all()


def test_kinds_as_they_are_typed() -> None:
    for text in ("[qk,mlp]", '["qk", "mlp"]'):
        assert parse_with(f"nvit:macs=0.5,kinds={text}").kinds == ("qk", "mlp")
    assert parse_with("nvit:macs=0.5,kinds=mlp").kinds == ("mlp",)


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ("", "no target"),
        ("macs=0.5,params=0.5", "macs and params"),
        ("macs=0", "above 0, up to 1"),
        ("macs=1.2", "above 0, up to 1"),
        ("latency=yes", "above 0, up to 1"),
        ("macs=0.5,kinds=[heads]", "kinds is .*did you mean 'head'"),
        ("macs=0.5,kinds=[]", "kinds is"),
        ("macs=0.5,mlp_group=0", "mlp_group is 0"),
        ("macs=0.5,eta=-1", "eta is -1"),
        ("macs=0.5,lr=0", "lr is 0"),
        ("macs=0.5,emb_norm=none", "emb_norm"),
        ("macs=0.5,runtime=tensorrt", "runtime"),
        ("macs=0.5,table=a.json", "goes with a target in latency"),
        ("macs=0.5,max_steps=5", "max_steps is 5"),
        ("macs=0.5,prune_per_step=0", "prune_per_step is 0"),
    ],
)
def test_bad_knobs(knobs: str, named: str) -> None:
    with pytest.raises(LeanvitError, match=named):
        parse_with(f"nvit:{knobs}" if knobs else "nvit")


def test_the_model_given_is_left_alone() -> None:
    model = open_model(dense())
    before = copy.deepcopy(model.state_dict())
    compress(model, [NViT(macs=0.5, **QUICK)], data())
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
