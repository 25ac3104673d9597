"""Golden cases of DHVT: whole models in eval mode with their intermediates, a training step, the published sizes."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import leanvit.backbones  # noqa: F401 (registers the names)
from leanvit.anatomy import open_model
from leanvit.backbones.dhvt import DHVT
from leanvit.measure import count
from parity.cases import Case, handler


def dhvt(case: Case) -> DHVT:
    """The model of a case in its mode, official weights loaded strictly."""
    model = DHVT(**{key: value for key, value in case.spec["args"].items() if key != "apply_dhvt"})
    model.load_state_dict(case.part("weights"), strict=True)
    return model.train(case.spec["kind"] == "train_step")


def watched(model: DHVT) -> dict[str, Tensor]:
    """Filled by the next forward: outputs of the stem, and of every block and its two parts, by the names of cases."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: Any, given: Any, out: Tensor) -> None:
        seen[name] = out
        if name.endswith(".attn"):
            seen[name.replace(".attn", ".head_tokens")] = module.head_tokens(given[0])

    model.patch_embed.register_forward_hook(
        lambda module, given, out: seen.update(patch_embed=out.flatten(2).transpose(1, 2))
    )
    for i, block in enumerate(model.blocks):
        for name, part in (("", block), (".attn", block.attn), (".mlp", block.mlp)):
            part.register_forward_hook(partial(keep, f"block{i}{name}"))
    return seen


@handler("dhvt", "forward")
def forward(case: Case) -> None:
    model, x = dhvt(case), case.part("input")["x"]
    outputs, mid = case.part("output"), case.part("mid")
    with torch.no_grad():
        opened = open_model(model)(x)
        seen = watched(model)
        features = model.forward_features(x)
        logits = model.forward_head(features)
        fused = model.fuse()(x)
    for name, want in mid.items():
        case.check(name, seen[name], want)
    case.check("cls_feature", features[:, 0], outputs["cls_feature"])
    for name, got in {"logits": logits, "opened": opened, "fused": fused}.items():
        case.check(name, got, outputs["logits"])


@handler("dhvt", "train_step")
def train_step(case: Case) -> None:
    model, inputs, outputs = dhvt(case), case.part("input"), case.part("output")
    logits = model(inputs["x"])
    loss = F.cross_entropy(logits, inputs["target"])
    loss.backward()
    case.check("logits", logits, outputs["logits"])
    case.check("loss", loss.reshape(outputs["loss"].shape), outputs["loss"])
    first: Any = model.patch_embed.proj[0]
    for name, want in case.part("mid").items():
        if found := re.fullmatch(r"grad/(.+)", name):
            case.check(name, model.get_parameter(found[1]).grad, want)
        elif name == "patch_embed_bn_running_mean_after":
            case.check(name, first[1].running_mean, want)
        else:
            raise AssertionError(f"{case.id}: unknown intermediate {name!r}")


@handler("dhvt", "variants")
def variants(case: Case) -> None:
    """Parameters exactly; MACs too, once what fvcore adds for norms and pooling is added to ours."""
    for name, want in case.spec["variants"].items():
        with torch.device("meta"):
            model = timm.create_model(name)
        assert model.num_classes == want["num_classes"] and model.img_size == (want["img_size"],) * 2, name
        assert sum(p.numel() for p in model.parameters()) == want["params"], name
        size = (3, want["img_size"], want["img_size"])
        cost, rest = count(model, size), elementwise(model, torch.empty(1, *size, device="meta"))
        assert not cost.uncounted and cost.macs + rest == want["macs"], (name, cost.macs, rest, want["macs"])


def elementwise(model: DHVT, x: Tensor) -> int:
    """What fvcore counts besides products: 5 operations an element of a LayerNorm, 2 of a BatchNorm, 1 of pooling."""
    found: list[int] = []

    def add(operations: int, module: nn.Module, given: Any, out: Tensor) -> None:
        found.append(operations * out.numel())

    for name, module in model.named_modules():  # what leaves bn3 is pooled
        operations = {nn.LayerNorm: 5, nn.BatchNorm2d: 2}.get(type(module), 0) + name.endswith("bn3")
        if operations:
            module.register_forward_hook(partial(add, operations))
    with torch.no_grad():
        model.eval()(x)
    return sum(found)
