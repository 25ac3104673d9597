"""Golden cases of NViT: saliency, latency term, gates, threshold, masked and shrunk models; published widths.

The published code's constants live here: its divisor of embedding channels (12 whatever the depth) and its cap on the
number of groups.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.anatomy import OpenModel, open_model
from leanvit.measure import count
from leanvit.measure.counting import parameters
from leanvit.prune.nvit.cost import Macs, Parameters
from leanvit.prune.nvit.groups import closed_below, due, groups, open_counts, threshold
from leanvit.prune.nvit.masking import close_units
from leanvit.prune.nvit.revit import widths
from leanvit.prune.nvit.saliency import scores
from leanvit.prune.nvit.structure import cut, structure_of
from leanvit.prune.nvit.units import layout
from nvit_layout import as_timm
from parity.cases import Case, handler

OFFICIAL_DIVISORS = {"embed": 12.0, "head": 12.0, "qk": 2.0, "v": 2.0, "mlp": 1.0}
OFFICIAL_CAP = 39000  # units, over group_size_divisor: the most groups that are ever closed
NAMES = {"head": "attn.qkv.head_mask", "qk": "attn.qkv.Q", "v": "attn.qkv.V", "mlp": "mlp.fc1"}


def model_of(case: Case) -> Any:
    """The distilled model of a case, opened, in training mode: both logits apart."""
    c = case.spec["constructor"]
    model = VisionTransformerDistilled(
        img_size=c["img_size"],
        patch_size=c["patch_size"],
        embed_dim=c["embed_dim"],
        depth=c["depth"],
        num_heads=c["num_heads"],
        num_classes=c["num_classes"],
        mlp_ratio=c["mlp_hidden"] / c["embed_dim"],
        qkv_bias=c["qkv_bias"],
        norm_layer=partial(nn.LayerNorm, eps=c["ln_eps"]),
    )
    weights = as_timm(case.part("weights"), c["patch_size"])
    model.load_state_dict({key: t for key, t in weights.items() if key in model.state_dict()})
    opened = open_model(model)
    opened.set_distilled_training(True)  # type: ignore[operator]
    return opened.train()


def official(units: str) -> str:
    """A list's name in the cases."""
    block, _, kind = units.rpartition(".")
    return f"{block}.{NAMES[kind]}" if block else "patch_embed.proj"


def criteria(model: OpenModel, case: Case) -> Tensor:
    """Scores of one batch, from the gradients of the model itself; in float64, as signed sums cancel."""
    inputs, exact = case.part("input"), copy.deepcopy(model).double()
    logits = sum(exact(inputs["x"].double())) / 2
    F.cross_entropy(logits, inputs["y"].long()).backward()
    named = dict(exact.named_parameters())
    gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
    return scores(layout(exact), named, gradients, OFFICIAL_DIVISORS)


@handler("nvit", "prune")
def prune(case: Case) -> None:
    model, pruning, output = model_of(case), case.spec["pruning"], case.part("output")
    inputs, mid = case.part("input"), case.part("mid")
    units, sizes = layout(model), dict(pruning["group_sizes"])
    sizes["embed"] = sizes.pop("emb")
    compare(case, "logits", model(inputs["x"]), "")

    found = criteria(model, case)
    for name, got in units.split(found).items():
        close(case, f"criteria of {name}", got, mid[f"criteria/{official(name)}"])
    gain = torch.cat([inputs[f"latency_gain/{official(u.name)}"].expand(u.size) for u in units.lists])
    lowered = found - pruning["eta"] * gain
    for name, got in units.split(lowered).items():
        close(case, f"criteria with latency of {name}", got, mid[f"criteria_latency/{official(name)}"])

    gates = torch.ones(units.total, dtype=torch.bool)
    ranked = groups(units, lowered, gates, sizes)
    number, divisor = pruning["pruning_iterations_done_before"], pruning["group_size_divisor"]
    cap = min(len(ranked), OFFICIAL_CAP // divisor)
    n = due(1, number * pruning["prune_per_iteration"] // divisor, cap)
    assert n == pruning["cumulative_groups"], case.id
    limit = threshold(ranked, n)
    torch.testing.assert_close(torch.tensor([limit], dtype=torch.float32), output["threshold"], rtol=1e-4, atol=1e-10)
    gates = closed_below(units, ranked, gates, limit)
    for name, got in units.split(gates).items():
        assert torch.equal(got.float(), output[f"gates/{official(name)}"]), f"{case.id}: gates of {name}"
    check_widths(case, open_counts(units, gates))

    small = cut(copy.deepcopy(model), structure_of(units, gates, emb_norm="plain"))
    compare(case, "shrunk logits", small.train()(inputs["x"]), "_dense")
    assert all(block.attn.scale == case.spec["constructor"]["head_dim"] ** -0.5 for block in small.blocks)
    exact = cut(copy.deepcopy(model), structure_of(units, gates, emb_norm="exact"))
    compare(case, "logits of the model shrunk with exact norms", exact.train()(inputs["x"]), "_masked")
    close_units(units, dict(model.named_parameters()), gates)
    compare(case, "masked logits", model(inputs["x"]), "_masked")


def compare(case: Case, what: str, got: tuple[Tensor, Tensor], suffix: str) -> None:
    for logits, head in zip(got, ("cls", "dist"), strict=True):
        want = case.part("output")[f"logits_{head}{suffix}"]
        torch.testing.assert_close(logits, want, rtol=0, atol=2e-5, msg=lambda text: f"{case.id}: {what}: {text}")


def close(case: Case, what: str, got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.float(), want, rtol=1e-4, atol=1e-10, msg=lambda text: f"{case.id}: {what}: {text}")


def check_widths(case: Case, kept: dict[str, int]) -> None:
    want = case.spec["kept_dims"]
    assert kept["embed"] == want["EMB"], case.id
    for kind, name in (("head", "head"), ("qk", "QK"), ("v", "V"), ("mlp", "MLP")):
        got = [kept[f"blocks.{i}.{kind}"] for i in range(case.spec["constructor"]["depth"])]
        assert got == want[name], f"{case.id}: {name}"


@handler("nvit", "ReViT-T")
def variants(case: Case) -> None:
    """Published widths: the rule, parameters on the module, MACs counted and in closed form. N = 198 tokens."""
    for name, want in case.spec.items():
        if name.startswith("ReViT"):
            check_revit(name, want)
    want = case.spec["DeiT-B distilled, masked form"]
    with torch.device("meta"):
        dense = open_model(timm.create_model("deit_base_distilled_patch16_224"), check=False)
    assert count(dense, (3, 224, 224)).macs == want["macs_computed_by_formula"]
    assert parameters(dense) == want["params_without_masks"]
    assert Macs.of(dense).total({}) == want["macs_computed_by_formula"]


def check_revit(name: str, want: dict[str, Any]) -> None:
    rule = widths(want["EMB"])
    found = {"head": "heads", "QK": "qk", "V": "v", "MLP": "mlp"}
    assert all([getattr(w, ours) for w in rule] == want[theirs] for theirs, ours in found.items()), name
    size = {"ReViT-T": "tiny", "ReViT-S": "small"}[name]
    with torch.device("meta"):
        model = open_model(timm.create_model(f"revit_{size}"), check=False)
    assert parameters(model) == want["params_without_token_mask"], name
    assert count(model, (3, 224, 224)).macs == want["macs_computed_by_formula"], name
    assert Macs.of(model).total({}) == want["macs_computed_by_formula"], name
    assert Parameters.of(model).total({}) == want["params_without_token_mask"], name
    assert all(block.attn.scale == 64**-0.5 for block in model.blocks)
