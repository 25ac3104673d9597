"""Golden cases of the masks: the mask on scores with its gradients, the official ViT with and without, its variants."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from torch import Tensor, nn

import leanvit.backbones  # noqa: F401 (registers the names)
from leanvit.anatomy import Ops, open_model
from leanvit.anatomy.parts.masks import gaussian_mixture
from leanvit.backbones.gmm_mask import checkpoint_filter_fn
from leanvit.measure import count
from parity.cases import Case, handler

UNDERFLOWN = 1e-18  # below this the official distances have lost their digits
RENAMED = {"dim": "embed_dim", "dim_head": "head_dim", "mlp_dim_ratio": "mlp_ratio", "num_kernals": "num_kernels"}
RENAMED |= {"heads": "num_heads", "channels": "in_chans", "dropout": "proj_drop_rate", "emb_dropout": "pos_drop_rate"}
SAME = ("img_size", "patch_size", "num_classes", "depth")
IDLE = {"t2t": 1408}  # parameters that no official forward uses: without them its MACs are ours, to the last one
NORM_FLOPS = 5  # fvcore's count for each element that is normalised; ours are products only


@handler("gmm_mask", "gmm_core")
def core(case: Case) -> None:
    """The official arithmetic is 0 where exp(-d²) is: there, and only there, the case's own zeros are taken."""
    inputs, outputs, mid = case.part("input"), case.part("output"), case.part("mid")
    weights = case.part("weights") or inputs
    sigma, alpha, scores = (_leaf(t) for t in (weights["sigma"], weights["alpha"], inputs["scores"]))
    side = round(case.spec["num_patches"] ** 0.5)
    base = mid["base_mask"][0, 0]
    mask = gaussian_mixture(sigma, alpha, (side, side))
    mask = torch.where(base > 0, mask, 0.0)
    exact = base > UNDERFLOWN
    case.check("mask", mask[:, exact], mid["mask"].reshape(mask.shape)[:, exact])
    masked = mask * scores
    case.check("masked scores", masked[..., exact], outputs["masked_scores"][..., exact])
    attention = masked.softmax(dim=-1)
    case.check("attention", attention, outputs["attention"])
    (masked * inputs["grad_out"]).sum().backward()
    for name, tensor in (("sigma", sigma), ("alpha", alpha), ("scores", scores)):
        case.check(f"gradient of {name}", tensor.grad, mid[f"grad_{name}"])


def _leaf(t: Tensor) -> Tensor:
    return t.clone().requires_grad_()


class Watched(Ops):
    """Keeps what each multiplication of scores gives, by site."""

    fused = False

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def mul(self, site: str, x: Any, y: Any) -> Any:
        self.kept[site] = out = super().mul(site, x, y)
        return out


@handler("gmm_mask", "vit_forward")
def vit(case: Case) -> None:
    assert case.spec["constructor"] == "ViT", f"{case.id}: no host for {case.spec['constructor']}"
    args = dict(case.spec["args"])
    gmm, elm = args.pop("is_GMM", False), args.pop("is_SLM", False)
    given = {RENAMED.get(name, name): value for name, value in args.items()}
    assert given.keys() <= {*RENAMED.values(), *SAME}, f"{case.id}: unknown arguments {sorted(given)}"
    if not gmm and not elm:
        given |= {"class_token": True, "global_pool": "token"}
    name = "elm_vit_cifar" if elm else "gmm_vit_cifar"
    model = timm.create_model(name, mask="gmm" if gmm else "elm" if elm else "none", **given)
    if "trainable_params" in case.spec:
        assert sum(p.numel() for p in model.parameters()) == case.spec["trainable_params"], case.id
    model.load_state_dict(checkpoint_filter_fn(case.part("weights"), model), strict=True)
    model.train(case.spec.get("mode") == "train")
    branches: dict[str, Tensor] = {}
    for i, block in enumerate(model.blocks):
        for key, part in (("attn", block.attn), ("ff", block.mlp)):
            part.register_forward_hook(lambda m, a, out, key=f"layer{i}.{key}_branch": branches.update({key: out}))
    x = case.part("input")["x"]
    case.check("logits", model(x), case.part("output")["logits"])
    for block in model.blocks:
        for part in (block.attn, block.mlp):
            part._forward_hooks.clear()
    opened, watched = open_model(model), Watched()
    case.check("logits of the opened model", opened(x, ops=watched), case.part("output")["logits"])
    for name, want in case.part("mid").items():
        found = re.fullmatch(r"layer(\d+)\.masked_scores", name)
        got = watched.kept[f"blocks.{found[1]}.attn.multiply"] if found else branches[name]
        case.check(name, got, want)


@handler("gmm_mask", "variants")
def variants(case: Case) -> None:
    """Parameters exactly, and MACs with what fvcore adds for norms."""
    for label, want in case.spec["variants"].items():
        host, _, mask = label.partition("+")
        name, given = f"{mask or 'gmm'}_{host.replace('-', '_')}_cifar", {}
        if not mask or (mask == "elm" and host in ("swin", "vit_d30")):  # there the official flag is not passed on
            given = {"mask": "none"}
            if host.startswith("vit"):
                given |= {"class_token": True, "global_pool": "token"}
        with torch.device("meta"):
            model = timm.create_model(name, **given).eval()
        found = sum(p.numel() for p in model.parameters()) + IDLE.get(host, 0)
        assert found == want["trainable_params"], label
        macs = count(model, (3, 32, 32)).macs + NORM_FLOPS * normalised(model)
        assert abs(macs / want["macs_fvcore"] - 1) < 1e-3, (label, macs, want)


def normalised(model: nn.Module) -> int:
    """Elements that pass through layer norms, for one image."""
    seen: list[int] = []
    hooks = [
        m.register_forward_hook(lambda m, a, out: seen.append(out.numel()))
        for m in model.modules()
        if isinstance(m, nn.LayerNorm)
    ]
    model(torch.empty(1, 3, 32, 32, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(seen)
