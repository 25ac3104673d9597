"""EViT and ToMe once more, in plain PyTorch with full attention maps and loops: makes golden cases of any size.

It shares nothing with leanvit. Slow and obvious on purpose: one image at a time, one token at a time.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def random_weights(c: dict[str, Any], seed: int) -> Weights:
    """Weights of a vision transformer, all random."""
    generator = torch.Generator().manual_seed(seed)
    d, p, hidden = c["embed_dim"], c["patch_size"], int(c["embed_dim"] * c["mlp_ratio"])
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + (c["img_size"] // p) ** 2, d),
        "patch_embed.proj.weight": (d, 3, p, p),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
        "head.weight": (c["num_classes"], d),
        "head.bias": (c["num_classes"],),
    }
    for i in range(c["depth"]):
        for name, outputs, inputs in (
            ("attn.qkv", 3 * d, d),
            ("attn.proj", d, d),
            ("mlp.fc1", hidden, d),
            ("mlp.fc2", d, hidden),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (outputs, inputs), f"blocks.{i}.{name}.bias": (outputs,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (d,), f"blocks.{i}.{name}.bias": (d,)}
    return {
        name: 0.2 * torch.randn(shape, generator=generator) + float("norm" in name and name.endswith("weight"))
        for name, shape in shapes.items()
    }


def embed(x: Tensor, w: Weights, c: dict[str, Any]) -> Tensor:
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=c["patch_size"])
    x = x.flatten(2).transpose(1, 2)
    return torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]


def attention(x: Tensor, w: Weights, i: int, heads: int, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """x after the attention's residual sum, the map (B, H, N, N) and the keys (B, H, N, d)."""
    b = f"blocks.{i}"
    h = F.layer_norm(x, x.shape[-1:], w[f"{b}.norm1.weight"], w[f"{b}.norm1.bias"], 1e-6)
    qkv = F.linear(h, w[f"{b}.attn.qkv.weight"], w[f"{b}.attn.qkv.bias"])
    q, k, v = qkv.reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    a = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(-1)
    y = (a @ v).transpose(1, 2).reshape(x.shape)
    return x + F.linear(y, w[f"{b}.attn.proj.weight"], w[f"{b}.attn.proj.bias"]), a, k


def mlp(x: Tensor, w: Weights, i: int) -> Tensor:
    b = f"blocks.{i}"
    h = F.layer_norm(x, x.shape[-1:], w[f"{b}.norm2.weight"], w[f"{b}.norm2.bias"], 1e-6)
    h = F.gelu(F.linear(h, w[f"{b}.mlp.fc1.weight"], w[f"{b}.mlp.fc1.bias"]))
    return x + F.linear(h, w[f"{b}.mlp.fc2.weight"], w[f"{b}.mlp.fc2.bias"])


def head(x: Tensor, w: Weights) -> Tensor:
    x = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"], 1e-6)
    return F.linear(x[:, 0], w["head.weight"], w["head.bias"])


def evit_case(
    folder: Path, name: str, *, constructor: dict[str, Any], call: dict[str, Any], batch: int, seed: int
) -> Path:
    """Write one `forward` case of EViT."""
    c, depth = constructor, constructor["depth"]
    w = random_weights(c, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    image = torch.randn(batch, 3, c["img_size"], c["img_size"], generator=generator).requires_grad_()
    cotangent = torch.randn(batch, c["num_classes"], generator=generator)
    stored, tokens = _list(c["keep_rate"], depth), _list(call["tokens"], depth)
    passed = _list(call["keep_rate"], depth)
    x, mid = embed(image, w, c), {}
    for i in range(depth):
        x, a, _ = attention(x, w, i, c["num_heads"])
        rate = stored[i] if passed[i] is None else passed[i]
        n = x.shape[1] - 1
        k = n
        if stored[i] < 1 and rate < 1:
            k = math.ceil(rate * n)
        if tokens[i] is not None:
            k = tokens[i]
        if k < n:
            scores = a[:, :, 0, 1:].mean(1)
            mid[f"topk_idx_{sum(key.startswith('topk') for key in mid)}"] = scores.topk(k).indices
            x = torch.stack([_kept(xb, sb, k, fuse=c["fuse_token"]) for xb, sb in zip(x, scores, strict=True)])
        x = mlp(x, w, i)
        mid[f"block{i}_out"] = x
    logits = head(x, w)
    (logits * cotangent).sum().backward()
    spec = {
        "kind": "forward",
        "constructor": {"class": "EViT", **c},
        "mode": "eval",
        "call": call,
        "tolerance": TOLERANCE,
    }
    outputs = {"output/logits": logits, "output/grad_x": image.grad}
    return write(
        folder / "evit",
        name,
        spec,
        {"input/x": image, "input/grad_weight": cotangent, **outputs, **_under("mid", mid), **_under("weights", w)},
    )


def _kept(x: Tensor, scores: Tensor, k: int, *, fuse: bool) -> Tensor:
    order = sorted(range(len(scores)), key=lambda j: -scores[j].item())
    rows = [x[0], *(x[1 + j] for j in order[:k])]
    if fuse:
        rows.append(sum(scores[j] * x[1 + j] for j in sorted(order[k:])))
    return torch.stack(rows)


def tome_merge(
    x: Tensor, metric: Tensor, size: Tensor, r: int, *, class_token: bool, distill_token: bool
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """One image: (N, C), (N, d), (N,) -> merged tokens, sizes, and the old tokens inside each new one."""
    n, protected = len(x), class_token + distill_token
    r = min(r, (n - protected) // 2)
    unit = metric / metric.norm(dim=-1, keepdim=True)
    best = {}
    for a in range(0, n, 2):
        if a == 0 and class_token:
            continue
        choices = [(float(unit[a] @ unit[b]), b) for b in range(1, n, 2) if not (b == 1 and distill_token)]
        best[a] = max(choices, key=lambda choice: choice[0])
    ranked = sorted(best, key=lambda a: -best[a][0])
    gone = ranked[:r]
    alone = ([0] if class_token else []) + (sorted(ranked[r:]) if class_token else ranked[r:])
    receivers = list(range(1, n, 2))
    order = [*alone[:1], receivers[0], *alone[1:], *receivers[1:]] if distill_token else [*alone, *receivers]
    inside = [[j, *(a for a in gone if best[a][1] == j)] for j in order]
    sizes = torch.stack([size[group].sum() for group in inside])
    merged = torch.stack([(x[g] * size[g, None]).sum(0) / size[g].sum() for g in inside])
    return merged, sizes, inside


def tome_case(
    folder: Path,
    name: str,
    *,
    constructor: dict[str, Any],
    r: Any,
    per_block: list[int],
    prop: bool,
    batch: int,
    seed: int,
) -> Path:
    """Write one `model` case of ToMe; `per_block` is what `r` means."""
    c, w = constructor, random_weights(constructor, seed)
    image = torch.randn(batch, 3, c["img_size"], c["img_size"], generator=torch.Generator().manual_seed(seed + 1))
    x, mid = embed(image, w, c), {}
    n = x.shape[1]
    size: Tensor | None = None
    inside = [[[j] for j in range(n)] for _ in range(batch)]
    for i in range(c["depth"]):
        bias = 0.0 if size is None or not prop else size.log()[:, None, None]
        x, _, k = attention(x, w, i, c["num_heads"], bias)
        r_now = min(per_block[i], (x.shape[1] - 1) // 2)
        if r_now > 0:
            old = torch.ones(x.shape[:2]) if size is None else size
            done = [
                tome_merge(x[b], k[b].mean(0), old[b], r_now, class_token=True, distill_token=False)
                for b in range(batch)
            ]
            x, size = torch.stack([d[0] for d in done]), torch.stack([d[1] for d in done])
            inside = [[[p for j in g for p in inside[b][j]] for g in done[b][2]] for b in range(batch)]
        x = mlp(x, w, i)
        mid[f"block{i}_out"] = x
    source = torch.zeros(batch, x.shape[1], n)
    for b in range(batch):
        for new, group in enumerate(inside[b]):
            source[b, new, group] = 1
    size = torch.ones(x.shape[:2]) if size is None else size
    outputs = {"output/logits": head(x, w), "output/size": size[..., None], "output/source": source}
    spec = {"kind": "model", "constructor": {**c, "qkv_bias": True, "norm_eps": 1e-6}, "r": r, "prop_attn": prop}
    tensors = {"input/x": image, **outputs, **_under("mid", mid), **_under("weights", w)}
    return write(folder / "tome", name, {**spec, "mode": "eval", "tolerance": TOLERANCE}, tensors)


def tome_core_case(folder: Path, name: str, *, flags: list[dict[str, Any]], tokens: int, seed: int) -> Path:
    """Write one `core` case of ToMe: merges with size and source, no inverse."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i, case in enumerate(flags):
        x = torch.randn(3, tokens, 5, generator=generator)
        metric = torch.randn(3, tokens, 4, generator=generator)
        size = 1 + torch.rand(3, tokens, 1, generator=generator)
        done = [
            tome_merge(
                xb, mb, sb[:, 0], case["r"], class_token=case["class_token"], distill_token=case["distill_token"]
            )
            for xb, mb, sb in zip(x, metric, size, strict=True)
        ]
        tensors |= {f"input/x_{i}": x, f"input/metric_{i}": metric, f"input/size_{i}": size}
        tensors[f"output/merged_{i}"] = torch.stack([d[0] for d in done])
        tensors[f"output/size_{i}"] = torch.stack([d[1] for d in done])[..., None]
        source = torch.zeros(3, len(done[0][0]), tokens)
        for b, d in enumerate(done):
            for new, group in enumerate(d[2]):
                source[b, new, group] = 1
        tensors[f"output/source_{i}"] = source
    spec = {"kind": "core", "functions": {"cases": flags, "schedules": []}, "tolerance": TOLERANCE}
    return write(folder / "tome", name, spec, tensors)


def write(folder: Path, name: str, spec: dict[str, Any], tensors: Weights) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: t.detach().contiguous() for key, t in tensors.items()}, folder / f"{name}.safetensors")
    path = folder / f"{name}.json"
    path.write_text(json.dumps(spec))
    return path


def _under(part: str, tensors: Weights) -> Weights:
    return {f"{part}/{key}": t for key, t in tensors.items()}


def _list(value: Any, depth: int) -> list[Any]:
    return list(value) if isinstance(value, list) else [value] * depth
