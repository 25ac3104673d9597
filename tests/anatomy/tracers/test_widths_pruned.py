"""Tracer: structural pruning (NViT, arXiv 2110.04869): per-block widths, masked and physically shrunk."""

import torch
from timm.models.deit import VisionTransformerDistilled

from golden import Case, cases, vit
from leanvit.anatomy import open_model
from leanvit.anatomy.surgery.widths import set_attention_widths, set_embed_width, set_mlp_width
from nvit_layout import as_timm

# the units (e: residual channel, h: head, q: q/k dim, v: v dim, m: hidden) along the axes of each official tensor
AXES = {
    "qkv.Q.weight": "qeh", "qkv.Q.bias": "qh", "qkv.K.weight": "qeh", "qkv.K.bias": "qh", "qkv.V.weight": "veh",
    "qkv.V.bias": "vh", "attn.proj.weight": "evh", "attn.proj.bias": "e", "fc1.weight": "me", "fc1.bias": "m",
    "fc2.weight": "em", "fc2.bias": "e", "norm1.weight": "e", "norm1.bias": "e", "norm2.weight": "e", "norm2.bias": "e",
    "norm.weight": "e", "norm.bias": "e", "head.weight": ".e", "head_dist.weight": ".e", "cls_token": "..e",
    "dist_token": "..e", "pos_embed": "..e", "patch_embed.proj.weight": "e...", "patch_embed.proj.bias": "e",
}  # fmt: skip
UNITS = {"h": "attn.qkv.head_mask", "q": "attn.qkv.Q", "v": "attn.qkv.V", "m": "mlp.fc1"}


def gates_of(key, gates):
    """Unit letter -> gates, for the block that a tensor belongs to."""
    block = ".".join(key.split(".")[:2])
    own = {unit: gates[f"{block}.{name}"].bool() for unit, name in UNITS.items() if key.startswith("blocks")}
    return own | {"e": gates["patch_embed.proj"].bool()}


def pruned(weights, gates, shrink):
    """Official weights with the closed units set to zero, or cut out."""
    out = {}
    for key, t in weights.items():
        letters = next((axes for name, axes in AXES.items() if f".{key}".endswith(f".{name}")), "")
        for axis, unit in enumerate(letters):
            keep = gates_of(key, gates).get(unit, torch.ones(t.shape[axis], dtype=torch.bool))
            t = t.movedim(axis, -1)
            t = (t[..., keep] if shrink else t * keep).movedim(-1, axis)
        out[key] = t
    return out


@cases("nvit", "prune")
@torch.no_grad()
def test_masked_and_shrunk(case: Case):
    c, weights, output = case.meta["constructor"], case.group("weights/"), case.group("output/")
    gates, x = case.group("output/gates/"), case.group("input/")["x"]
    everything = {key: torch.ones_like(gate) for key, gate in gates.items()}
    for kept, shrink, suffix in ((everything, False, ""), (gates, False, "_masked"), (gates, True, "_dense")):
        ratio = c["mlp_hidden"] / c["embed_dim"]
        model = open_model(vit(c, cls=VisionTransformerDistilled, mlp_ratio=ratio, eps=c["ln_eps"]).train())
        model.set_distilled_training(True)  # both logits apart
        for i, block in enumerate(model.blocks):
            n = {unit: int(gates[f"blocks.{i}.{name}"].sum()) for unit, name in UNITS.items()}
            if shrink:
                set_attention_widths(block.attn, heads=n["h"], qk_dim=n["q"], v_dim=n["v"])
                set_mlp_width(block.mlp, n["m"])
        if shrink:
            set_embed_width(model, int(gates["patch_embed.proj"].sum()))
        model.load_state_dict(as_timm(pruned(weights, kept, shrink), c["patch_size"]))
        for logits, head in zip(model(x), ("cls", "dist"), strict=True):
            torch.testing.assert_close(logits, output[f"logits_{head}{suffix}"], rtol=0, atol=2e-5)
