"""Golden cases of T2T-ViT: logits, features, tokens of each step, positions; parameters and MACs of the variants."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor

import leanvit.backbones  # noqa: F401 (registers the names)
from leanvit.backbones.t2t_vit import T2TViT, T2TViTDense, T2TViTGhost, T2TViTSE, checkpoint_filter_fn
from leanvit.backbones.t2t_vit.model import sinusoid
from leanvit.measure import count
from parity.cases import Case, handler

KINDS = {"T2T_ViT": T2TViT, "T2T_ViT_SE": T2TViTSE, "T2T_ViT_Ghost": T2TViTGhost, "T2T_ViT_Dense": T2TViTDense}
RENAMED = {"growth_rate": "growth", "block_config": "depths"}  # official argument -> ours


def model_of(case: Case) -> Any:
    """Built from official arguments; the official state dict through the filter, strictly."""
    given = {RENAMED.get(key, key): value for key, value in case.spec["args"].items()}
    if case.spec["constructor"] == "T2T_ViT_Dense":
        given.pop("depth", None)
    model = KINDS[case.spec["constructor"]](**given)
    model.load_state_dict(checkpoint_filter_fn(case.part("weights"), model), strict=True)
    return model.train(case.spec["mode"] == "train")


@handler("t2t_vit", "forward")
def forward(case: Case) -> None:
    model, x, mid = model_of(case), case.part("input")["x"], case.part("mid")
    wanted = {key: value for key, value in mid.items() if not key.startswith("block")}
    with torch.no_grad():
        found = steps(model, x)
        _, maps = model.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True)
        blocks = {f"block{i}": torch.cat([prefix, one], dim=1) for i, (one, prefix) in enumerate(maps)}
        found |= {key: value for key, value in blocks.items() if key in mid}
        features = model.forward_features(x)
        outputs = {"logits": model(x), "cls_feature": features[:, 0]}
    for name, want in wanted.items():
        case.check(name, found[name], want)
    for name, want in {**mid, **case.part("output")}.items():
        case.check(name, {**found, **outputs}[name], want)
    table = model.pos_embed
    torch.testing.assert_close(sinusoid(table.shape[1], table.shape[2]), table, rtol=0, atol=1e-6)


def steps(model: Any, x: Tensor) -> dict[str, Tensor]:
    """Inside the tokens-to-token module."""
    t2t: Any = model.tokens_to_token
    windows = t2t.soft_split0(x).transpose(1, 2)
    found = {"soft_split0_first4tok": windows[:, :4]}
    hooks = [
        part.register_forward_hook(lambda m, args, out, name=name: found.update({name: out}))
        for name, part in (
            ("t2t_attention1", t2t.attention1), ("t2t_attention2", t2t.attention2), ("t2t_tokens", t2t),
        )
    ]  # fmt: skip
    model(x)
    for hook in hooks:
        hook.remove()
    return found


@handler("t2t_vit", "variants")
def variants(case: Case) -> None:
    """Parameters to the unit (`total` counts positions and random features too, buffers here), MACs within 1 %."""
    for name, want in case.spec["variants"].items():
        base, _, size = name.partition("@")
        side = int(size or 224)
        with torch.device("meta"):
            model = timm.create_model(base, img_size=side)
        total = sum(t.numel() for t in model.state_dict().values())
        assert total == want["params_total"], f"{name}: {total} elements"
        trained = sum(p.numel() for p in model.parameters())
        assert trained == want["params_trainable"], f"{name}: {trained} parameters"
        if "macs_224_incl_attention_matmuls" in want:
            cost = count(model, (3, side, side))
            assert not cost.uncounted, f"{name}: {cost.gaps()}"
            near(f"{name}: MACs", cost.macs, want["macs_224_incl_attention_matmuls"])
            tokenizer = cost.by_module["tokens_to_token"] + 5 * normed(
                model
            )  # their counter prices norms, ours does not
            near(f"{name}: MACs of the tokenizer", tokenizer, want["macs_t2t_module"])


def normed(model: Any) -> int:
    """Elements that the norms of the tokens-to-token module take, of one image."""
    t2t = model.tokens_to_token
    cells = ((4, t2t.attention1), (8, t2t.attention2))
    widths = [(stride, c.norm1.normalized_shape[0] + c.norm2.normalized_shape[0]) for stride, c in cells]
    return sum(t2t.grid(stride)[0] * t2t.grid(stride)[1] * width for stride, width in widths)


def near(what: str, got: int, want: float) -> None:
    assert abs(got / want - 1) < 0.01, f"{what}: {got}, published {want}"
