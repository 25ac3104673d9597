"""SiT: the slimming module, the method on plain ViTs, its distillation, and what it composes with."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from leanvit.anatomy import OpenViT, Ops, open_model
from leanvit.anatomy.parts.slimming import TokenSlimming
from leanvit.backbones.gmm_mask.method import GmmMask
from leanvit.data import Batch
from leanvit.deploy import export, load_artefact
from leanvit.errors import BadInput, Refused
from leanvit.prune.nvit import NViT
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Data, Recovery, compress, load, make_method, missed, reapply, register, save
from leanvit.recipe.compat import cell
from leanvit.recipe.structure import check_structure
from leanvit.runs.token_maps import trace_tokens
from leanvit.tokens.evit import EViT
from leanvit.tokens.sit import FeatureRecalibration, SiT
from leanvit.tokens.sit.distillation import check_pair
from leanvit.tokens.sit.method import default_stages, kept_tokens
from leanvit.tokens.tome import ToMe
from leanvit.training.optimizers import make_optimizer
from tokens.reduction import VARIANTS, gradients, images, lengths_in_mlps, reduced
from training.tiny_training import make_data, make_model, make_preprocess

DISTILLED = "deit_tiny_distilled_patch16_224"
GREY = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2, "in_chans": 1, "num_classes": 4}
SMALL = SiT(stages=(1, 1, 1))  # 16 patches: 8 after the first block, 4 after the second
RECOVERY = Recovery(epochs=1, batch_size=8, lr=1e-3, settings={"save_every": 1})


@pytest.fixture(scope="module")
def dense() -> OpenViT:
    return compress(make_dense(), [])


def make_dense(**changes: Any) -> torch.nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**GREY, **changes}).eval()


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(make_data(16), make_preprocess(), batch_size=8)


def frd(student: Any, teacher: Any, **knobs: Any) -> FeatureRecalibration:
    return FeatureRecalibration(student, teacher, teacher_preprocess=make_preprocess(), **knobs)


def grey(batch: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch(torch.randn(batch, 1, 8, 8, generator=generator), torch.arange(batch) % 4, [])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


# --- the module ---------------------------------------------------------------------------------------------------


def slimming(slots: int = 5) -> TokenSlimming:
    module = TokenSlimming("blocks.0.after.0", width=12, slots=slots, hidden=6)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return module


def test_slots_are_weighted_means_of_the_raw_tokens() -> None:
    module, x = slimming(), torch.randn(2, 10, 12)
    out, weights = module.slim(Ops(), x, 1)
    patches = x[:, 1:]
    normed = F.layer_norm(patches, (12,), module.norm.weight, module.norm.bias, 1e-5)
    scores = module.fc2(F.gelu(module.fc1(normed))) * module.scale
    want = torch.einsum("bns,bnc->bsc", scores.softmax(dim=1), patches)
    torch.testing.assert_close(out, torch.cat([x[:, :1], want], dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 5))
    assert not torch.allclose(weights.sum(dim=1), torch.ones(2, 9), atol=0.05), "columns do not sum to 1"


def test_the_identity_as_weights_gives_the_tokens_back() -> None:
    class Identity(Ops):
        def softmax(self, site: str, scores: Any) -> Any:
            return torch.eye(scores.shape[-1]).expand_as(scores)

    x = torch.randn(2, 9, 12)
    assert torch.equal(slimming(9).slim(Identity(), x, 0)[0], x)


# --- in a model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [*VARIANTS, "distilled"])
def test_off_is_exact(tiny, variant: str) -> None:
    model = tiny(DISTILLED) if variant == "distilled" else tiny(**VARIANTS[variant])
    want = model(images())
    for off in (SiT(stages=(4,)), SiT(keep_rate=1.0), SiT(tokens=(16, 16, 16))):
        lean = reduced(copy.deepcopy(model), off)
        assert torch.equal(lean(images()), want) and not lean.reduces_tokens


@pytest.mark.parametrize("variant", [*VARIANTS, "distilled"])
def test_tokens_leave_after_each_stage_and_prefix_tokens_pass(tiny, variant: str) -> None:
    lean = reduced(tiny(DISTILLED) if variant == "distilled" else tiny(**VARIANTS[variant]), SiT())
    prefix = lean.num_prefix_tokens
    assert lengths_in_mlps(lean, images()) == [prefix + n for n in (16, 8, 4, 2)]
    assert SiT().achieved(lean, {}) == {"patch_tokens": [16, 8, 4, 2]} and missed(lean) == []
    x, state = lean.embed(images(), lean.start(images()))
    step = lean.blocks[0].after[0]
    assert torch.equal(step(x, state)[0][:, :prefix], x[:, :prefix])
    assert torch.isfinite(lean(images())).all()


def test_a_mean_over_patches_is_one_over_slots(tiny) -> None:
    lean = reduced(tiny(class_token=False, global_pool="avg"), SiT(stages=(2, 2)))
    x, _ = lean.run(*lean.embed(images(), lean.start(images())))
    assert x.shape[1] == 8
    torch.testing.assert_close(lean(images()), lean.head(lean.fc_norm(x.mean(dim=1))), rtol=1e-5, atol=1e-5)


def test_counts_and_stages() -> None:
    assert kept_tokens(196, 0.5, 4) == [196, 98, 49, 24] and kept_tokens(196, 0.7, 4) == [196, 137, 96, 67]
    assert [default_stages(d) for d in (12, 24, 16, 6, 2, 1)] == [
        (3,) * 4, (6,) * 4, (4,) * 4, (1, 2, 1, 2), (1, 1), (1,)
    ]  # fmt: skip


def test_values_are_keyed_and_saved(tiny, tmp_path: Path) -> None:
    model = tiny()
    lean, again = (compress(model, [SiT(seed=3)]) for _ in range(2))
    assert same(lean.state_dict(), again.state_dict())
    assert same(reapply(model, lean.history.plans).state_dict(), lean.state_dict())
    assert not same(lean.state_dict(), compress(model, [SiT(seed=4)]).state_dict())
    save(lean, tmp_path)
    assert torch.equal(load(tmp_path)(images()), lean(images()))


def test_gradients_survive_checkpointing(tiny) -> None:
    model = reduced(tiny(), SiT()).train()
    want = gradients(model, images())
    model.set_grad_checkpointing()
    got = gradients(model, images())
    assert "blocks.0.after.0.scale" in want
    assert set(got) == set(want) and all(torch.equal(got[key], want[key]) for key in want)


def test_token_maps_show_the_heaviest_slot(dense, data) -> None:
    maps = trace_tokens(compress(dense, [SMALL]), data.dataset, data.preprocess, name="sit", count=2)
    assert [(r.block, r.source, r.tokens) for r in maps.reductions] == [(0, "sit", 9), (1, "sit", 5)]
    assert all(1 <= owner < r.tokens for r in maps.reductions for owners in r.owners for owner in owners)


@pytest.mark.e2e
def test_it_exports_with_int8(dense, data, tmp_path: Path) -> None:
    lean = compress(dense, [SMALL, Int8(images=8)], data)
    assert {"blocks.0.after.0.fc1", "blocks.1.after.0.fc2"} <= set(lean.ops.names())
    export(lean, tmp_path / "artefact", to="openvino", preprocess=data.preprocess, batch=4)
    got = torch.as_tensor(load_artefact(tmp_path / "artefact")(grey().images))
    torch.testing.assert_close(got, lean(grey().images), rtol=0.1, atol=0.05)


# --- what does not go together ------------------------------------------------------------------------------------


def test_slots_are_no_patches_for_other_methods(tiny) -> None:
    late, early = EViT(blocks=(3,)), EViT(keep_rate=0.8, blocks=(1,))
    sit = SiT(stages=(2, 2))
    for methods in ([sit, late], [late, sit], [sit, ToMe(r=1)], [ToMe(r=1), sit]):
        with pytest.raises(Refused, match=r"would reduce tokens in blocks\.\d, behind blocks\.1, where sit mixes them"):
            compress(tiny(), methods)
    assert compress(tiny(), [early, sit]).patch_tokens() == [16, 14, 8, 8]
    with pytest.raises(Refused, match=r"evit would reduce tokens in blocks\.3, behind blocks\.1"):
        compress(compress(tiny(), [sit]), [late])
    with pytest.raises(Refused, match=r"sit needs tokens that stand for patches.*sit takes away"):
        compress(tiny(), [sit, SiT(stages=(3, 1))])
    assert cell("sit", "evit").verdict == "different blocks" and cell("sit", "sit").verdict == "no"
    assert cell("sit", "int8").verdict == "yes" and cell("sit", "gmm_mask").verdict == "no"


def test_models_that_read_places_are_refused(tiny) -> None:
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    for name in ("vit_small_patch16_rope_224", "vit_relpos_base_patch16_clsgap_224"):
        with pytest.raises(Refused, match="sit needs attention that does not read where tokens are"):
            compress(tiny(name, **small), [SiT()])
    for methods in ([GmmMask(), SiT()], [SiT(), GmmMask()]):
        with pytest.raises(Refused, match=r"(gmm_mask|sit) takes away"):
            compress(tiny(), methods)


def test_pruned_before_it_and_not_in_the_stream_after_it(dense, data) -> None:
    lean = compress(dense, [NViT(macs=0.9, interval=1, max_steps=1, batch_size=8, kinds=("mlp",)), SMALL], data)
    assert lean.patch_tokens() == [16, 8, 4] and torch.isfinite(lean(grey().images)).all()
    with pytest.raises(Refused, match="a step in its blocks holds weights"):
        compress(compress(dense, [SMALL]), [NViT(macs=0.5, kinds=("embed",))], data)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"stages": (2, 1)}, r"stages is \(2, 1\), 3 blocks in all; accepted: 4"),
        ({"tokens": (8, 4)}, r"tokens is \(8, 4\); accepted: 3 numbers"),
        ({"tokens": (4, 8, 2)}, "8 tokens after block 1, where there are 4"),
        ({"keep_rate": 0.1}, "keep_rate is 0.1, which leaves none of 16 patches"),
    ],
)
def test_what_does_not_fit_the_model_is_named(tiny, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        compress(tiny(), [make_method("sit", knobs)])


def test_an_edited_plan_is_checked(tiny) -> None:
    model = open_model(tiny())
    for row, message in (
        ({"block": 3, "tokens": 4, "hidden": 8}, "block is 3; accepted: a whole number from 0 to 2"),
        ({"block": 1, "tokens": 0, "hidden": 8}, "tokens of block 1 is 0"),
    ):
        with pytest.raises(BadInput, match=message):
            check_structure(SiT(), {"slimming": [row]})
            SiT().shape(model, {"slimming": [row]})


# --- the distillation ---------------------------------------------------------------------------------------------


def test_the_first_stage_of_a_twin_has_no_distance(dense) -> None:
    lean = compress(dense, [SiT(stages=(2, 1))])
    before = frd(lean, copy.deepcopy(dense), rtsm=False)
    assert before.compared == (0,) and not list(before.rtsm)
    assert before(lean, grey(), 0, {}).parts["tokens"] == 0
    full = frd(lean, copy.deepcopy(dense))
    assert full.compared == (0, 1, 2) and list(full.rtsm) == ["1", "2"]
    assert full(lean, grey(), 0, {}).parts["tokens"] > 0


def test_gradients_reach_the_student_and_not_the_teacher(dense) -> None:
    lean, teacher = compress(dense, [SMALL]), copy.deepcopy(dense)
    objective = frd(lean, teacher, token_weight=2.0, logit_weight=3.0, temperature=2.0)
    loss = objective(lean, grey(), 0, {})
    base, tokens, divergence = (loss.parts[name] for name in ("base", "tokens", "distillation"))
    torch.testing.assert_close(loss.total.detach(), base + 2 * tokens + 3 * divergence)
    torch.testing.assert_close(base, F.cross_entropy(lean(grey().images), grey().targets).detach())
    loss.total.backward()
    assert all(p.grad is not None for p in (*lean.parameters(), *objective.rtsm.parameters()))
    assert all(p.grad is None for p in teacher.parameters())
    lean.zero_grad()
    only = frd(lean, teacher)
    _, taught = only.ask_teacher(grey().images, frozenset({"blocks.0", "blocks.1", "blocks.2"}))
    _, state = lean.trace(grey().images, tap=frozenset("*"))
    mine = [state.taps[f"blocks.{i}"][:, 1:] for i in range(3)]
    only.distance(mine, taught, loss.total).backward()
    assert lean.patch_embed.proj.weight.grad is not None and lean.head.weight.grad is None, "tokens teach the trunk"


def test_reverse_modules_learn_faster_and_decay_whole(dense) -> None:
    lean = compress(dense, [SMALL])
    objective = frd(lean, copy.deepcopy(dense), lr_scale=5.0)
    config = RECOVERY.config(seed=0)
    groups = make_optimizer(lean, objective, replace(config, weight_decay=0.05)).param_groups
    mine = {id(p) for p in objective.rtsm.parameters()}
    (own,) = [g for g in groups if {id(p) for p in g["params"]} & mine]
    assert {id(p) for p in own["params"]} == mine and own["peak_scale"] == 5.0 and own["weight_decay"] == 0.05
    assert not [g for g in groups if g is not own and (g.get("lr_scale", 1.0), g.get("peak_scale", 1.0)) != (1, 1)]


def test_teachers_that_cannot_teach_are_refused_before_any_work(dense, data, monkeypatch) -> None:
    monkeypatch.setattr(SiT, "shape", lambda *_: pytest.fail("work was done"))
    others = {
        "2 blocks, the model 3": make_dense(depth=2),
        "24 channels, the model 16": make_dense(embed_dim=24),
        "this teacher reduces tokens": compress(dense, [EViT(blocks=(1,))]),
    }
    for message, teacher in others.items():
        with pytest.raises(Refused, match=message):
            compress(dense, [SMALL], data, recovery=RECOVERY, teacher=teacher)
    with pytest.raises(Refused, match="4 patches, the model 16"):
        check_pair(dense, make_model(depth=3))
    SiT(token_weight=0).check_teacher(dense, make_dense(depth=2))


def test_images_of_another_size_are_refused_by_the_reverse_modules(dense) -> None:
    objective = frd(compress(dense, [SMALL]), copy.deepcopy(dense))
    with pytest.raises(BadInput, match="9 patch tokens behind block 0, the student's make 16"):
        objective.recalibrated(0, torch.zeros(1, 8, 16), 9)
    with pytest.raises(BadInput, match="accepted: an opened model"):
        objective.bind(make_model(), make_preprocess())


# --- in a recovery ------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a SIGKILL."""


class KillAt:
    """Training callback that kills at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Any) -> None:
        if run.step == self.step:
            raise Killed


def test_a_recovery_learns_by_it_resumes_with_its_bits_and_leaves_nothing_of_it(dense, data, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    whole = compress(dense, [SMALL], data, recovery=replace(RECOVERY, log=log))
    start = compress(dense, [SMALL])
    assert whole.state_dict().keys() == start.state_dict().keys(), "no reverse module is saved"
    assert '"tokens"' in log.read_text() and not torch.equal(whole(grey().images), start(grey().images))
    with pytest.raises(Killed):
        compress(dense, [SMALL], replace(data, callbacks=(KillAt(1),)), recovery=RECOVERY, out=tmp_path / "run")
    resumed = compress(dense, [SMALL], data, recovery=RECOVERY, out=tmp_path / "run", resume=True)
    assert same(resumed.state_dict(), whole.state_dict())
    save(whole, tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved")(grey().images), whole(grey().images))


def test_one_objective_a_recovery(dense, data) -> None:
    @register("test_objective", title="An objective", summary="brings an objective")
    class Other:
        needs_data = False

        def shape(self, model: Any, structure: Any) -> None: ...

        def objective(self, model: Any, data: Any, config: Any) -> None: ...

    for methods in ([SMALL, Other()], [Other(), SMALL]):
        with pytest.raises(Refused, match=r"(sit and test_objective|test_objective and sit) each bring the objective"):
            compress(dense, methods, data, recovery=RECOVERY)
    for change in ({"alpha": 0.9}, {"temperature": 1.0}, {"distillation": "hard"}):
        with pytest.raises(BadInput, match=f"recovery {next(iter(change))} is .* sit brings the objective"):
            compress(dense, [SMALL], data, recovery=replace(RECOVERY, **change))
