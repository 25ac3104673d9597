"""Tracer: early exits (LGViT, arXiv 2308.00255): heads at the seams of `run`, which leaves the later blocks unrun."""

import json
import re
from functools import partial

import torch
from timm.models.deit import VisionTransformerDistilled
from torch.nn.functional import batch_norm, conv2d, gelu, linear, scaled_dot_product_attention

from golden import Case, cases, close, vit
from leanvit.anatomy import open_model

NAMES = [
    (r"^deit\.(embeddings|encoder)\.", ""), ("patch_embeddings.projection", "patch_embed.proj"), ("^layer", "blocks"),
    ("position_embeddings", "pos_embed"), ("distillation_token", "dist_token"), ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"), ("attention.output.dense", "attn.proj"), ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"), (r"^deit\.layernorm", "norm"), ("^cls_classifier", "head"),
    ("^distillation_classifier", "head_dist"), ("attention.attention.query", "attn.qkv"),
    ("hidden_size", "embed_dim"), ("num_hidden_layers", "depth"), ("num_attention_heads", "num_heads"),
    ("image_size", "img_size"), ("num_labels", "num_classes"),
]  # fmt: skip


def as_timm(given):  # weights and constructor arguments under timm's names, q, k and v in one
    for key, value in given.items():
        if "attention.query" in key:
            value = torch.cat([given[key.replace("query", part)] for part in ("query", "key", "value")])
        for pattern, name in NAMES:
            key = re.sub(pattern, name, key)
        yield key, value


def exit_head(w, stride, x, state):  # tokens after a block -> (logits, feature map); stride: of a global head
    conv = lambda t, at, **kw: conv2d(t, w[f"{at}.weight"], w[f"{at}.bias"], **kw)  # noqa: E731
    norm = lambda t, at: batch_norm(t, *(w[f"{at}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))  # noqa: E731
    grid = x[:, state.num_prefix :].mT.unflatten(-1, state.grid)
    if "mlp.qkv.weight" in w:
        qkv = linear(grid[..., ::stride, ::stride].flatten(2).mT, w["mlp.qkv.weight"])
        out = scaled_dot_product_attention(*qkv.unflatten(-1, (3, 8, -1)).permute(2, 0, 3, 1, 4))
        out = linear(out.transpose(1, 2).flatten(2), w["mlp.proj.weight"], w["mlp.proj.bias"])
    else:
        out = norm(gelu(conv(grid, "mlp.conv1.0")), "mlp.conv1.2")
        if "mlp.proj.weight" in w:
            out = norm(gelu(conv(out, "mlp.proj", padding=1, groups=out.shape[1])), "mlp.proj_bn")
        out = (norm(conv(out, "mlp.conv2.0"), "mlp.conv2.1") + grid).flatten(2).mT
    tokens = {"cls_classifier": x[:, 0] + out.mean(1), "distillation_classifier": x[:, 1] + out.mean(1)}
    return sum(linear(t, w[f"{name}.weight"], w[f"{name}.bias"]) for name, t in tokens.items()) / 2, out


def leave_early(model, heads, image, threshold):
    (x, state), at = model.embed(image, model.start(image)), 0
    for position, head in heads.items():
        x, state = model.run(x, state, at, position)
        logits, at = head(x, state)[0], position
        if logits.softmax(-1).amax() > threshold:
            return logits, state
    return model.classify(*model.run(x, state, at))


@cases("lgvit", "forward_eval")
@torch.no_grad()
def test_exits(case: Case):
    meta, mid, output, given = case.meta, case.group("mid/"), case.group("output/"), case.group("input/")["x"]
    c, weights = dict(as_timm(meta["constructor"])), dict(as_timm(case.group("weights/")))
    ratio, eps = c["intermediate_size"] / c["embed_dim"], meta["norm_eps"]
    model, heads = open_model(vit(c, weights, cls=VisionTransformerDistilled, mlp_ratio=ratio, eps=eps)), {}
    _, state = model.trace(given, tap=frozenset("*"))
    for i, position in enumerate(positions := json.loads(c["position_exits"])):
        stride = 3 if i >= len(positions) - 2 >= 4 else 2
        heads[position] = partial(exit_head, case.group(f"weights/deit.encoder.highway.{i}."), stride)
        x = state.taps[f"blocks.{position - 1}"]
        for got, name in zip((x, *heads[position](x, state)), ("hidden", "logits", "feature"), strict=True):
            close(got, mid[f"hidden_after_layer{position}" if name == "hidden" else f"exit{i}_{name}"], 1e-5)
    for rule, threshold in enumerate(meta["thresholds_per_rule"]):
        left = [leave_early(model, heads, image, threshold) for image in given.split(1)]
        close(torch.cat([logits for logits, _ in left]), output[f"exit_logits_rule{rule}"], 1e-5)
        assert [len(state.tokens) for _, state in left] == output[f"exit_layer_rule{rule}"].tolist()
