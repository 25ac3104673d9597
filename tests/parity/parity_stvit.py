"""Golden cases of STViT: pooling, a stage of dumbbell units, whole models from official names, parameters and MACs."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from torch import nn

import leanvit.backbones  # noqa: F401 (registers the names)
from leanvit.measure import count
from leanvit.measure.counting import parameters
from leanvit.tokens.stvit import STViTR, checkpoint_filter_fn
from leanvit.tokens.stvit.official import official_name
from leanvit.tokens.stvit.parts import PatchMerging
from leanvit.tokens.stvit.semantic import adaptive_max
from leanvit.tokens.stvit.unit import SemanticStage
from parity.cases import Case, handler

STAGE = {  # official argument -> ours
    "window_size": "window",
    "sample_window_size": "samples",
    "use_global": "use_global",
    "shortcut": "shortcut",
    "use_conv_pos": "conv_pos",
    "relative_pos": "relative_pos",
}
MODEL = {
    "img_size": "img_size",
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "embed_dim": "embed_dim",
    "depths": "depths",
    "num_heads": "num_heads",
    "window_size": "window_size",
    "sample_window_size": "samples",
    "mlp_ratio": "mlp_ratio",
    "drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate",
    "use_global": "use_global",
    "shortcut": "shortcut",
    "use_conv_pos": "conv_pos",
    "relative_pos": "relative_pos",
}
# what the official class has one value of
ONLY: dict[str, Any] = {"patch_size": 4, "qkv_bias": True, "ape": False}
TOLD = {"class", "layer_scale", "norm_eps"}  # words about the case


def ours(case: Case, names: dict[str, str], besides: set[str]) -> dict[str, Any]:
    """The constructor of a case as arguments of ours. What is neither is an error of the case."""
    given = {}
    for key, value in case.spec["constructor"].items():
        if key in names:
            given[names[key]] = value
        elif key in ONLY:
            assert value == ONLY[key], f"{case.id}: {key} is {value!r}, the official class has {ONLY[key]!r}"
        else:
            assert key in TOLD | besides, f"{case.id}: unknown argument {key!r}"
    return given


def with_eps(net: nn.Module, case: Case) -> None:
    """Norms with the case's epsilon, where it states one."""
    for module in net.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = case.spec["constructor"].get("norm_eps", module.eps)


@handler("stvit", "pooling")
def pooling(case: Case) -> None:
    inputs, outputs = case.part("input"), case.part("output")
    for i, side in enumerate(case.spec["n"]):
        window = inputs[f"window_{i}"].permute(0, 2, 3, 1)
        case.check(f"pooled_{i}", adaptive_max(window, side), outputs[f"pooled_{i}"])


@handler("stvit", "stage")
def stage(case: Case) -> None:
    payload = case.spec["constructor"]
    shape = {"input_resolution", "embed_dim", "num_heads", "mlp_ratio", "depth", "downsample"}
    given = ours(case, STAGE, shape)
    dim, grid = payload["embed_dim"], tuple(payload["input_resolution"])
    hidden = int(dim * payload["mlp_ratio"])
    net = SemanticStage(None, dim, payload["num_heads"], hidden, [0.0] * payload["depth"], grid=grid, **given)
    end = PatchMerging(dim, 2 * dim) if payload.get("downsample") else nn.Identity()
    both = nn.ModuleDict({"stage": net, "downsample": end}).train(case.spec["mode"] == "train")
    with_eps(both, case)
    weights = {official_name(key): tensor for key, tensor in case.part("weights").items()}
    named = {key: tensor for key, tensor in weights.items() if key is not None}
    both.load_state_dict({k if k.startswith("downsample.") else f"stage.{k}": t for k, t in named.items()})
    seen = watched(net)
    x = case.part("input")["x"]
    out = end(net(x.unflatten(1, grid))).flatten(1, 2)
    case.check("x", out, case.part("output")["x"])
    check_seen(case, seen)


@handler("stvit", "model")
def model(case: Case) -> None:
    net = STViTR(**ours(case, MODEL, set()))
    with_eps(net, case)
    net.load_state_dict(checkpoint_filter_fn(case.part("weights"), net))
    net.train(case.spec["mode"] == "train")
    seen: dict[str, torch.Tensor] = {}
    for i, level in enumerate(net.layers):
        if i:  # official stages end with the merging
            level.downsample.register_forward_hook(_keep(seen, f"stage{i - 1}_out"))
    net.layers[-1].register_forward_hook(_keep(seen, f"stage{len(net.layers) - 1}_out"))
    seen |= {"logits": net(case.part("input")["x"])}
    case.check("logits", seen["logits"], case.part("output")["logits"])
    for name, want in case.part("mid").items():
        assert name in seen, f"{case.id}: unknown intermediate {name!r}"
        case.check(name, seen[name].flatten(1, 2), want)


def watched(net: SemanticStage) -> dict[str, torch.Tensor]:
    """Filled by a forward: tokens after each block, under the names of the cases."""
    seen: dict[str, torch.Tensor] = {}
    for i, block in enumerate(net.blocks):
        # each block ends with its second residual sum: what enters its norm2, and the branch
        block.norm2.register_forward_pre_hook(lambda m, args, i=i: seen.__setitem__(f"in{i}", args[0]))
        block.drop_path2.register_forward_hook(_keep(seen, f"branch{i}"))
    return seen


def check_seen(case: Case, seen: dict[str, torch.Tensor]) -> None:
    for name, want in case.part("mid").items():
        found = re.fullmatch(r"block(\d+)_out", name)
        assert found, f"{case.id}: unknown intermediate {name!r}"
        got = seen[f"in{found[1]}"] + seen[f"branch{found[1]}"]
        case.check(name, got.flatten(1, 2) if got.ndim == 4 else got, want)


def _keep(seen: dict[str, torch.Tensor], name: str) -> Any:
    return lambda module, args, out: seen.__setitem__(name, out)


@handler("stvit", "computed")
def variants(case: Case) -> None:
    for name, want in case.spec["computed"].items():
        if name.startswith("baseline_timm_"):  # timm's own models, to compare with
            continue
        found = re.fullmatch(r"(\w+?)(?:_global(True|False))?", name)
        assert found, f"{case.id}: cannot read the variant {name!r}"
        with torch.device("meta"):
            net = timm.create_model(found[1], **({"use_global": found[2] == "True"} if found[2] else {}))
        if "params" in want:
            assert parameters(net) == want["params"], name
        if "MACs_G" in want:
            cost = count(net, (3, 224, 224))
            assert not cost.uncounted and abs(cost.gmacs / want["MACs_G"] - 1) < 5e-4, (name, cost.gmacs, want)
