"""Golden cases of EViT: whole models (logits, gradients, every block, kept indices), its algorithms, its variants."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch

from leanvit.anatomy import OpenViT, open_model
from leanvit.anatomy.parts.tokens import complement
from leanvit.measure import count
from leanvit.tokens.evit.method import EViT, keep_rate_at
from parity.cases import Case, handler
from parity.timm_model import opened_vit

OFFICIAL_ONLY = ("class", "keep_rate", "fuse_token")


def _per_block(value: Any, depth: int) -> list[Any]:
    return list(value) if isinstance(value, list) else [value] * depth


def lean_vit(case: Case) -> tuple[OpenViT, dict[str, Any]]:
    """The model of a case with EViT in it, and the context of its call."""
    constructor, call = case.spec["constructor"], case.spec.get("call", {})
    depth = constructor["depth"]
    model = opened_vit(constructor, case.part("weights"), not_timm=OFFICIAL_ONLY)
    stored = _per_block(constructor.get("keep_rate", 1), depth)
    rate, context = call.get("keep_rate"), {}
    if isinstance(rate, list):  # one rate a block: each replaces the stored one where that is below 1
        stored = [new if old < 1 else old for old, new in zip(stored, rate, strict=True)]
    elif rate is not None:
        context["keep_rate"] = rate
    tokens = tuple(_per_block(call.get("tokens"), depth))
    evit = EViT(keep_rate=tuple(stored), fuse=constructor.get("fuse_token", False), tokens=tokens)
    evit.shape(model, evit.learn(model))
    return model.train(case.spec.get("mode") == "train"), context


@handler("evit", "forward")
def forward(case: Case) -> None:
    model, context = lean_vit(case)
    inputs, outputs, mid = case.part("input"), case.part("output"), case.part("mid")
    x = inputs["x"].clone().requires_grad_()
    logits, state = model.trace(x, tap=frozenset("*"), **context)
    topk = [state.taps[key] for i in range(len(model.blocks)) if (key := f"blocks.{i}.topk") in state.taps]
    for name, want in mid.items():
        if found := re.fullmatch(r"block(\d+)_out", name):
            case.check(name, state.taps[f"blocks.{found[1]}"], want)
        elif found := re.fullmatch(r"topk_idx_(\d+)", name):
            case.check(name, topk[int(found[1])], want)
        else:
            raise AssertionError(f"{case.id}: unknown intermediate {name!r}")
    assert len(topk) == sum(name.startswith("topk_idx_") for name in mid) or not mid
    case.check("logits", logits, outputs["logits"])
    if "grad_x" in outputs:
        (logits * inputs["grad_weight"]).sum().backward()
        case.check("grad_x", x.grad, outputs["grad_x"])


@handler("evit", "algorithms")
def algorithms(case: Case) -> None:
    inputs, outputs = case.part("input"), case.part("output")
    functions = case.spec["functions"]
    for row in functions.get("dims", []):
        i = row["case"]
        got = complement(inputs[f"idx_{i}"], row["dim"])
        case.check(f"complement of {row}", got, outputs[f"complement_{i}"])
    if "sched_iter" in inputs:
        knobs = _schedule(functions["schedule"])
        got = [keep_rate_at(int(t), **knobs) for t in inputs["sched_iter"]]
        case.check("schedule", torch.tensor(got), outputs["sched_keep_rate"])


def _schedule(text: str) -> dict[str, Any]:
    """The schedule's arguments out of its description: the official one takes start + shrink epochs as its total."""
    numbers = {}
    for name, pattern in {
        "steps": r"([\d.]+) iterations per epoch",
        "start": r"warm-up ([\d.]+) epochs",
        "total": r"total_epochs argument ([\d.]+)",
        "base": r"base ([\d.]+)",
        "maximum": r"max ([\d.]+)",
    }.items():
        found = re.search(pattern, text)
        assert found, f"the schedule's description names no {name}: {text}"
        numbers[name] = float(found[1].rstrip("."))
    start, total = int(numbers["start"]), int(numbers["total"])
    return {
        "steps_per_epoch": int(numbers["steps"]),
        "start_epoch": start,
        "shrink_epochs": total - start,
        "base": numbers["base"],
        "maximum": numbers["maximum"],
    }


@handler("evit", "computed")
def variants(case: Case) -> None:
    """Parameters, MACs and tokens per block of the published variants: `<model>[_<img_size>]_r<rate>_<fuse|drop>`."""
    for name, want in case.spec["computed"].items():
        found = re.fullmatch(r"(deit_(?:tiny|small|base))(?:_(\d+))?_r([\d.]+)_(fuse|drop)", name)
        assert found, f"{case.id}: cannot read the variant {name!r}"
        size, rate = int(found[2] or 224), float(found[3])
        with torch.device("meta"):
            model = open_model(timm.create_model(f"{found[1]}_patch16_224", img_size=size), check=False)
        evit = EViT(keep_rate=rate, fuse=found[4] == "fuse")
        evit.shape(model, evit.learn(model))
        if "params" in want:
            assert sum(p.numel() for p in model.parameters()) == want["params"], name
        if "MACs_G" in want:
            cost = count(model, (3, size, size))
            assert not cost.uncounted and abs(cost.gmacs / want["MACs_G"] - 1) < 5e-4, (name, cost.gmacs, want)
        if "patch_tokens_after_each_block" in want:
            _, state = model.trace(torch.empty(1, 3, size, size, device="meta"))
            assert [n - 1 for n in state.tokens] == want["patch_tokens_after_each_block"], name
