"""Golden cases of LITv2: HiLo alone (padded grids too), a whole model from official names, parameters and MACs."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

import leanvit.backbones  # noqa: F401 (registers the names)
from leanvit.backbones.litv2 import LITv2, checkpoint_filter_fn
from leanvit.measure import count
from leanvit.measure.counting import parameters
from leanvit.models.hilo import HiLoAttention
from parity.cases import Case, handler

OFFICIAL_OFFSETS = 12  # channels in the official formula, that of a layer with masks; the layer has 8


@handler("litv2", "hilo")
def hilo(case: Case) -> None:
    spec, output, mid = case.spec, case.part("output"), case.part("mid")
    args = dict(spec["args"])
    layer = HiLoAttention(args.pop("dim"), args.pop("num_heads"), grid_size=(spec["H"], spec["W"]), **args).eval()
    layer.load_state_dict(case.part("weights"))
    assert (layer.l_heads, layer.h_heads) == (spec["l_heads"], spec["h_heads"]), case.id
    x = case.part("input")["x"]
    tokens = layer(x)
    case.check("y", tokens, output["y"])
    as_map = layer(x.unflatten(1, (spec["H"], spec["W"])))
    assert torch.equal(as_map.flatten(1, 2), tokens), case.id
    if "hifi" in mid:
        case.check("hifi", as_map[..., : layer.h_dim], mid["hifi"])
        case.check("lofi", as_map[..., layer.h_dim :], mid["lofi"])
    assert count(layer, x.shape[1:]).macs == spec["flops_by_official_formula"], case.id
    layer.fuse()
    case.check("y of the fused layer", layer(x), output["y"])


@handler("litv2", "model")
def model(case: Case) -> None:
    net = LITv2(**case.spec["args"])
    net.load_state_dict(checkpoint_filter_fn(case.part("weights"), net))
    net.train(case.spec["mode"] == "train")
    x, output, mid = case.part("input")["x"], case.part("output"), case.part("mid")
    seen = watched(net)
    case.check("logits", net(x), output["logits"])
    for name, want in mid.items():
        case.check(name, seen[name].flatten(1, 2), want)
    if "features" in output:
        case.check("features", net.forward_head(net.forward_features(x), pre_logits=True), output["features"])
    if not net.training:
        case.check("logits of the fused model", net.fuse()(x), output["logits"])


def watched(net: LITv2) -> dict[str, Any]:
    """Filled by a forward: what each part gives, under the names of the cases."""
    seen: dict[str, Any] = {}

    def keep(name: str, part: Any) -> None:
        part.register_forward_hook(lambda module, args, out: seen.__setitem__(name, out))

    keep("patch_embed", net.patch_embed)
    for i, stage in enumerate(net.layers):
        if i:
            keep(f"stage{i - 1}.downsample", stage.downsample)
        for j, block in enumerate(stage.blocks):
            keep(f"stage{i}.block{j}", block)
    return seen


@handler("litv2", "variants")
def variants(case: Case) -> None:
    for name, want in case.spec["variants"].items():
        check(name, name, {}, want["params"], want["macs_official_formula"])
    for alpha, want in case.spec.get("litv2_small_alpha_sweep", {}).items():
        net = check(f"alpha {alpha}", "litv2_small", {"alpha": float(alpha)}, want["params"], want["macs"])
        attn = net.layers[2].blocks[0].attn
        assert (attn.l_heads, attn.h_heads) == (want["l_heads"], want["h_heads"]), alpha


def check(what: str, name: str, kwargs: dict[str, Any], params: int, macs: int) -> Any:
    with torch.device("meta"):
        net = timm.create_model(name, **kwargs)
    assert parameters(net) == params, what
    elements = watched_elements(net)
    cost = count(net, net.pretrained_cfg["input_size"])
    built = sum(macs for path, macs in cost.by_module.items() if path.endswith(".offset"))
    assert not cost.uncounted
    assert cost.macs < macs < 1.01 * cost.macs, what
    assert cost.macs + built * OFFICIAL_OFFSETS // 8 - built + sum(elements) == macs, what
    return net


def watched_elements(net: LITv2) -> list[int]:
    """Filled by a forward: what the official formula counts beside products, biases of convolutions and norms."""
    elements: list[int] = []

    def add(module: Any, args: Any, out: Any) -> None:
        elements.append(out.numel())

    for path, module in net.named_modules():
        if path.endswith(".offset"):
            module.register_forward_hook(lambda m, args, out: elements.append(OFFICIAL_OFFSETS * out[0, 0].numel()))
        elif isinstance(module, nn.Conv2d | nn.LayerNorm):
            module.register_forward_hook(add)
    for _ in range(2):  # it has the last norm three times
        net.norm.register_forward_hook(add)
    return elements
