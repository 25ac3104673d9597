"""Golden cases of DiffRate: rates and their gradients, merging, masked softmax, models in both forms, published costs.

The published counter lives here: MLPs of four times the width, and a class token in the patch embedding.
"""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from torch.nn import functional as F
from torch.nn.functional import one_hot

from leanvit.anatomy import OpenModel
from leanvit.anatomy.parts.tokens import take_tokens
from leanvit.tokens.diffrate.cost import Costs
from leanvit.tokens.diffrate.merging import match, merge, merged_sizes
from leanvit.tokens.diffrate.method import DiffRate
from leanvit.tokens.diffrate.search import KEY, Rate, lists_of, masked_softmax, rates, searching
from leanvit.tokens.diffrate.search import _merged as merged_in_training
from parity.cases import Case, handler
from parity.timm_model import opened_vit

RATES = {"prune_ddp": "prune_rate", "merge_ddp": "merge_rate"}
OURS = {"candidates": "kept_token_candidate", "logits": "selected_probability"}


def published_costs(model: OpenModel) -> Costs:
    """The published formula, whatever the width of the MLPs."""
    width, depth, tokens = model.embed_dim, len(model.blocks), model.patches() + 1
    size = model.patch_embed.patch_size[0]
    fixed = tokens * width * 3 * size**2 + width * model.num_classes
    each = [(float(factor * width**power),) * depth for factor, power in ((4, 2), (2, 1), (8, 2))]
    return Costs(tokens, 0, *each, fixed=float(fixed))


@handler("diffrate", "core")
def core(case: Case) -> None:
    inputs, outputs = case.part("input"), case.part("output")
    sizes = re.findall(r"(\d+):\((\d+),(\d+),(\d+|None)\)", _told(case, "proxy"))
    assert sizes, f"{case.id}: no rates are described"
    for i, patches, granularity, count in sizes:
        _rate(case, i, int(patches), int(granularity), None if count == "None" else int(count))
    case.check("masked_softmax", masked_softmax(inputs["attn_logits"], inputs["policy"]), outputs["masked_softmax"])
    kept = outputs["merge_mean"].shape[1]
    x, size = inputs["merge_x"], inputs["merge_size"].squeeze(-1)
    matching = match(x, kept)
    target = torch.cat([torch.arange(kept).expand(len(x), -1), matching.target], dim=1)
    got = {
        "merge_mean": merge(x, matching),
        "merge_max_similarity": matching.similarity,
        "merge_source": one_hot(target, kept).transpose(1, 2).float(),
        "merge_mean_training": merged_in_training(x, size, kept, x.shape[1], 1)[0],
        "uncompressed": take_tokens(merge(x, matching), target),
        "merge_sum_size": merged_sizes(size, matching).unsqueeze(-1),
    }
    want = {name: outputs[name] for name in got if name in outputs}
    plain = size[:, :kept].scatter_add(1, matching.target, size[:, kept:]).unsqueeze(-1)
    if "merge_sum_size" in want and torch.allclose(plain, want["merge_sum_size"], atol=1e-5):
        got["merge_sum_size"] = plain  # the sum alone, without the similarity that the model multiplies by
    for name in want:
        case.check(name, got[name], want[name])


def _told(case: Case, start: str) -> str:
    return next(text for key, text in case.spec["functions"].items() if key.startswith(start))


def _rate(case: Case, i: str, patches: int, granularity: int, count: int | None) -> None:
    inputs, outputs = case.part("input"), case.part("output")
    rate = Rate(patches, granularity)
    with torch.no_grad():
        rate.logits.copy_(inputs[f"selected_probability_{i}"])
    mask = rate.mask(patches + 1 if count is None else count)
    got = {
        "candidates": rate.candidates,
        "kept_number": rate.kept(),
        "token_probability": rate.survival(),
        "token_mask": mask,
        "grad_kept_number": torch.autograd.grad(rate.kept(), rate.logits)[0],
        "grad_mask": torch.autograd.grad((mask * inputs[f"mask_cotangent_{i}"]).sum(), rate.logits)[0],
    }
    for name, value in got.items():
        case.check(f"{name}_{i}", value, outputs[f"{name}_{i}"])


def _model(case: Case) -> OpenModel:
    c = dict(case.spec["constructor"])
    weights = {k: t for k, t in case.part("weights").items() if not any(f".{r}." in k for r in RATES)}
    for name in ("backbone", "granularity", "mae", "drop_path"):
        c.pop(name, None)
    patch = weights["patch_embed.proj.weight"].shape[-1]
    pooled = {"global_pool": "avg"} if "fc_norm.weight" in weights else {}
    return opened_vit({**c, "patch_size": patch, **pooled}, weights)


@handler("diffrate", "forward_eval")
def forward_eval(case: Case) -> None:
    spec, outputs = case.spec, case.part("output")
    model = _model(case)
    lists = spec["prune_kept"], spec["merge_kept"]
    rows = [{"block": i, "prune": p, "merge": m} for i, (p, m) in enumerate(zip(*lists, strict=True))]
    DiffRate(prune=lists[0], merge=lists[1]).shape(model, {"blocks": rows})
    logits, state = model.trace(case.part("input")["x"], trace=True, tap=frozenset("*"))
    for name, want in case.part("mid").items():
        case.check(name, state.taps[f"blocks.{re.findall(r'[0-9]+', name)[0]}"], want)
    case.check("logits", logits, outputs["logits"])
    case.check("size", state.size.unsqueeze(-1), outputs["size"])
    if "source" in outputs:
        held = outputs["source"].shape[1]
        owner = torch.cat([torch.zeros(len(logits), 1, dtype=torch.int64), state.owner], dim=1)
        source = (owner.unsqueeze(1) == torch.arange(held).view(1, -1, 1)).float()
        case.check("source", source, outputs["source"])
    case.check("flops", torch.tensor(published_costs(model).macs(*lists)), outputs["flops"])


@handler("diffrate", "forward_train")
def forward_train(case: Case) -> None:
    outputs, inputs = case.part("output"), case.part("input")
    model = searching(_model(case), case.spec["constructor"]["granularity"]).train()
    steps = rates(model)
    named = {}
    for i, step in enumerate(steps):
        for theirs, ours in RATES.items():
            rate = getattr(step, ours)
            named[f"blocks.{i}.{theirs}.selected_probability"] = rate.logits
            held = case.part("weights")
            case.check("candidates", rate.candidates, held[f"blocks.{i}.{theirs}.kept_token_candidate"])
            with torch.no_grad():
                rate.logits.copy_(held[f"blocks.{i}.{theirs}.selected_probability"])
    logits, state = model.trace(inputs["x"], tap=frozenset("*"))
    lists = lists_of(steps)
    for name, want in case.part("mid").items():
        block = int(re.findall(r"[0-9]+", name)[0])
        there = min(*lists[0][: block + 1], *lists[1][: block + 1])  # those behind are masked: their order is chance
        case.check(name, state.taps[f"blocks.{block}"][:, :there], want[:, :there])
    case.check("logits", logits, outputs["logits"])
    for name, counts in zip(("prune_kept_num", "merge_kept_num"), lists, strict=True):
        case.check(name, torch.tensor(counts), outputs[name])
    case.check("mask", state.extra[KEY].mask, outputs["mask"])
    there = state.extra[KEY].count
    case.check("size", state.size[:, :there], outputs["size"][:, :there, 0])
    costs = published_costs(model)
    flops = costs.macs([s.prune_rate.kept() for s in steps], [s.merge_rate.kept() for s in steps])
    case.check("flops", flops, outputs["flops"])
    task = F.cross_entropy(logits, inputs["y"])
    penalty = (flops / 1e6 - case.spec["target_M"]) ** 2
    case.check("loss_cls", task, outputs["loss_cls"])
    case.check("loss_flops", penalty, outputs["loss_flops"])
    for part, loss in (("grad_cls", task), ("grad_total", task + 5 * penalty)):
        gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            want = outputs[f"{part}/{name}"]
            case.check(f"{part}/{name}", torch.zeros_like(want) if gradient is None else gradient, want)


# The published schedules whose cost the cases hold: (model, target) -> counts are theirs, the classes 1000.
@handler("diffrate", "computed")
def variants(case: Case) -> None:
    """Dense costs of the published models by the published counter, and the number of parameters of a search."""
    known: dict[str, Any] = {"T": "deit_tiny", "S": "deit_small", "B": "deit_base", "L": "vit_large", "H": "vit_huge"}
    for name, row in case.spec["computed"].items():
        letter = name.split("-")[1]
        timm_name = f"{known[letter]}_patch{14 if letter == 'H' else 16}_224"
        with torch.device("meta"):
            model: Any = timm.create_model(timm_name)
        width, depth, tokens = model.embed_dim, len(model.blocks), model.patch_embed.num_patches + 1
        patch = model.patch_embed.patch_size[0]
        each = [(float(factor * width**power),) * depth for factor, power in ((4, 2), (2, 1), (8, 2))]
        costs = Costs(tokens, 0, *each, fixed=float(tokens * width * 3 * patch**2 + width * 1000))
        dense = torch.tensor(costs.dense / 1e9)
        torch.testing.assert_close(dense, torch.tensor(row["uncompressed_GFLOPs"]), atol=6e-5, rtol=1e-3)
        rate = Rate(tokens - 1, 4)
        learned = 2 * (len(rate.candidates) * (depth - 1) + 1)  # of MAE models too: their last block is not taken out
        assert learned == row["learnable_arch_params_granularity4"], (name, learned)
