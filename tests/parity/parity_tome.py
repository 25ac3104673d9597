"""Golden cases of ToMe: matching and merging with their inverse and source maps, schedules, a whole model."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from leanvit.anatomy.parts.tokens import take_tokens
from leanvit.tokens.tome.matching import match, merge, shares
from leanvit.tokens.tome.method import ToMe, schedule
from parity.cases import Case, handler
from parity.timm_model import opened_vit


@handler("tome", "core")
def core(case: Case) -> None:
    inputs, outputs, functions = case.part("input"), case.part("output"), case.spec["functions"]
    for i, flags in enumerate(functions.get("cases", [])):
        got = _merged(inputs[f"x_{i}"], inputs[f"metric_{i}"], inputs[f"size_{i}"], **flags)
        held = [name for name in got if f"{name}_{i}" in outputs]
        assert held, f"{case.id}: nothing to compare for case {i}"
        for name in held:
            case.check(f"{name}_{i} of {flags}", got[name], outputs[f"{name}_{i}"])
    for i, row in enumerate(functions.get("schedules", [])):
        r = row["r"] if isinstance(row["r"], int) else tuple(row["r"])
        if row["kind"] == "tuple":
            r = (r[0], float(r[1]))
        case.check(f"schedule of {row}", torch.tensor(schedule(r, row["layers"])), outputs[f"schedule_{i}"])


def _merged(
    x: Tensor, metric: Tensor, size: Tensor, *, class_token: bool, distill_token: bool, r: int
) -> dict[str, Tensor]:
    """What the official merge returns, by name. Without a class token its unmerged tokens come by similarity."""
    even, odd = int(class_token), int(distill_token)
    r = min(r, (x.shape[1] - even - odd) // 2)
    matching = match(metric, r, even=even, odd=odd, keep_order=class_token)
    share, after = shares(matching, size.squeeze(-1))
    merged, indices = merge(x, matching, share), matching.indices()
    back = indices
    if distill_token:  # the official inverse forgets that its merge moved the distillation token to the front
        back = _moved(indices, even, merged.shape[1] - matching.receivers - 1)
    if distill_token and not class_token:  # and it puts the first unmerged token before that token
        order = torch.tensor([1, 0, *range(2, merged.shape[1])])
        merged, after, indices = merged[:, order], after[:, order], order[indices]
    source = one_hot(indices, merged.shape[1]).transpose(1, 2).to(x.dtype)  # (B, N', N)
    return {"merged": merged, "size": after.unsqueeze(-1), "source": source, "unmerged": take_tokens(merged, back)}


def _moved(indices: Tensor, old: int, new: int) -> Tensor:
    """Places after the token at `old` is taken out and put in again at `new` > `old`."""
    closed = torch.where((indices > old) & (indices <= new), indices - 1, indices)
    return torch.where(indices == old, new, closed)


@handler("tome", "model")
def model(case: Case) -> None:
    spec, mid, outputs = case.spec, case.part("mid"), case.part("output")
    vit = opened_vit(spec["constructor"], case.part("weights"))
    tome = ToMe(r=_knob(spec["r"]), prop_attn=spec.get("prop_attn", True))
    tome.shape(vit, tome.learn(vit))
    vit.train(spec.get("mode") == "train")
    inputs = case.part("input")
    x = inputs["x"].clone().requires_grad_()
    logits, state = vit.trace(x, trace=True, tap=frozenset("*"))
    for name, want in mid.items():
        found = re.fullmatch(r"block(\d+)_out", name)
        assert found, f"{case.id}: unknown intermediate {name!r}"
        case.check(name, state.taps[f"blocks.{found[1]}"], want)
    case.check("logits", logits, outputs["logits"])
    if "size" in outputs:
        size = torch.ones(len(x), state.tokens[-1]) if state.size is None else state.size
        case.check("size", size.unsqueeze(-1), outputs["size"])
    if "source" in outputs:
        prefix = torch.arange(vit.num_prefix_tokens).expand(len(x), -1)
        indices = torch.cat([prefix, state.owners(len(x), x.device)], dim=1)  # (B, N): prefix tokens never move
        source = one_hot(indices, state.tokens[-1]).transpose(1, 2)
        case.check("source", source.to(torch.float32), outputs["source"])
    if "grad_x" in outputs:
        (logits * inputs["grad_weight"]).sum().backward()
        case.check("grad_x", x.grad, outputs["grad_x"])


def _knob(r: Any) -> Any:
    return r if isinstance(r, int) else tuple(r)
