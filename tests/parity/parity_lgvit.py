"""Golden cases of LGViT: the maps of heads, whole models with their decisions, the losses of both stages, costs."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from leanvit.anatomy import OpenModel, State, open_model
from leanvit.anatomy.arithmetic.ops import TORCH
from leanvit.anatomy.exits.rules import THRESHOLDS, Evidence, Rule
from leanvit.anatomy.exits.running import ExitPolicy, Exits
from leanvit.data import Batch
from leanvit.exits.cost import exit_macs
from leanvit.exits.lgvit.heads import build_heads, build_map, parse_rows
from leanvit.exits.lgvit.losses import Joint, SelfDistillation, Weights, kinds_of, run_all, stage2_parts
from leanvit.exits.lgvit.method import default_heads
from leanvit.exits.lgvit.official import map_names, official_names, reference_teacher
from parity.cases import Case, handler


@handler("lgvit", "heads")
@torch.no_grad()
def heads(case: Case) -> None:
    """`lph_dw*`, `lph_pw*`, `gah_r<stride>*`: one map on patch tokens of a square grid."""
    weights, inputs, outputs = case.part("weights"), case.part("input"), case.part("output")
    for name, row in case.spec["heads"].items():
        found = re.match(r"(lph_dw|lph_pw|gah_r(\d+))", name)
        assert found, f"{case.id}: cannot read the head {name!r}"
        width = case.spec.get("dim", inputs[name].shape[-1])
        module = build_map("map", f"gah{found[2]}" if found[2] else found[1], width)
        assert module is not None
        prefix = f"{name}."
        given = {key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix)}
        module.load_state_dict(map_names(given), strict=True)
        state = State(ops=TORCH, grid=(row["grid"], row["grid"]), num_prefix=0)
        got = module.train(case.spec.get("mode") == "train")(inputs[name], state)
        assert got.shape[1] == row["out_tokens"]
        case.check(name, got, outputs[name])


def exiting(case: Case) -> OpenModel:
    """The model of a case with its exits and weights."""
    c, weights = case.spec["constructor"], official_names(case.part("weights"))
    distilled = "dist_token" in weights
    model = open_model(
        (VisionTransformerDistilled if distilled else VisionTransformer)(
            img_size=c["image_size"],
            patch_size=c["patch_size"],
            in_chans=c.get("num_channels", 3),
            embed_dim=c["hidden_size"],
            depth=c["num_hidden_layers"],
            num_heads=c["num_attention_heads"],
            mlp_ratio=c["intermediate_size"] / c["hidden_size"],
            num_classes=c["num_labels"],
            norm_layer=partial(nn.LayerNorm, eps=case.spec.get("norm_eps", 1e-12)),
        )
    )
    layers = c["position_exits"]
    layers = json.loads(layers) if isinstance(layers, str) else list(layers)
    kinds = default_heads(len(layers)) if c.get("highway_type", "LGViT") == "LGViT" else ("linear",) * len(layers)
    rows = parse_rows(layers, kinds, len(model.blocks))
    policy = ExitPolicy(layers, len(model.blocks), None)
    model.exits = Exits(build_heads(model, rows), policy, source="lgvit")
    model.load_state_dict(weights, strict=True)
    return model.train("train" in case.spec["mode"].split()[0])


@handler("lgvit", "forward_eval")
@torch.no_grad()
def forward_eval(case: Case) -> None:
    model, images, mid, outputs = exiting(case), case.part("input")["x"], case.part("mid"), case.part("output")
    seen = run_all(model, images, {})
    _, state = model.trace(images, tap=frozenset("*"))
    for name, want in mid.items():
        if found := re.fullmatch(r"exit(\d+)_(feature|logits)", name):
            i = int(found[1])
            tokens = mid.get(f"hidden_after_layer{model.exits.layers[i]}")
            if tokens is None or found[2] == "logits":
                got = (seen.features if found[2] == "feature" else seen.logits)[i]
            else:  # of the case's own tokens: random attention makes much of their last bits
                got = model.exits.heads[i](tokens, seen.states[i])[1]
        elif found := re.fullmatch(r"hidden_after_layer(\d+)", name):
            got = state.taps[f"blocks.{int(found[1]) - 1}"]
        elif name == "exit_confidence":
            got = torch.stack([Evidence.of(logits).confidence for logits in seen.logits])
        else:
            raise AssertionError(f"{case.id}: unknown intermediate {name!r}")
        case.check(name, got, want)
    if "final_logits" in outputs:
        case.check("final_logits", seen.final, outputs["final_logits"])
    for i, threshold in enumerate(case.spec.get("thresholds_per_rule", [])):
        model.exits.policy.rule = _rule(case, threshold, len(seen.logits))
        logits, state = model.trace(images)  # in one batch; the case ran one image at a time
        case.check(f"exit_layer_rule{i}", state.left, outputs[f"exit_layer_rule{i}"])
        case.check(f"exit_logits_rule{i}", logits, outputs[f"exit_logits_rule{i}"])


def _rule(case: Case, threshold: Any, exits: int) -> Rule:
    """A number, or a list: `[4]` (patience: four exits in a row), `[0.5, 2]` (entropy below 0.5, twice in a row)."""
    name = case.spec.get("exit_rule", case.spec["constructor"].get("exit_strategy", "confidence"))
    kind = {"patient_and_confident": "patient_confident"}.get(name.replace("-", "_"), name.replace("-", "_"))
    assert kind in THRESHOLDS, f"{case.id}: unknown rule {name!r}"
    value, *rest = threshold if isinstance(threshold, list | tuple) else (threshold,)
    assert len(rest) <= (kind == "patient_confident"), f"{case.id}: cannot read the threshold {threshold!r} of {name!r}"
    return Rule(kind, (value,) * exits, int(rest[0]) if rest else 2)


@handler("lgvit", "stage1_loss")
def stage1_loss(case: Case) -> None:
    model, inputs, outputs = exiting(case), case.part("input"), case.part("output")
    batch = Batch(inputs["x"], inputs["y"], keys=[])
    joint = Joint(case.spec["constructor"]["train_strategy"])
    for name, step in (("loss_even_step", 0), ("loss_odd_step", 1)):
        case.check(name, joint(model, batch, step, {}).total, outputs[name])


@handler("lgvit", "stage2_loss")
def stage2_loss(case: Case) -> None:
    model, inputs, outputs, mid = exiting(case), case.part("input"), case.part("output"), case.part("mid")
    c = case.spec["coefficients"]
    weights = Weights(c["loss"], c["hete"], c["homo"], c["T"])
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("exits."))
    model.eval()
    objective = SelfDistillation(kinds_of(model), weights)
    objective.bind(model, None)
    model.exits.train()
    seen = objective.run(model, Batch(inputs["x"], inputs["y"], keys=[]), {})
    teacher = reference_teacher(model, seen)
    for name, got in (("final_logits_with_norm", seen.final), ("teacher_logits_as_coded", teacher)):
        if name in mid:
            case.check(name, got, mid[name])
    parts = stage2_parts(seen, kinds_of(model), inputs["y"], weights, teacher)
    case.check("ce", parts.labels, outputs["ce"])
    case.check("kd", parts.teacher, outputs["kd"])
    case.check("hete", _in_published_order(parts.heterogeneous, kinds_of(model)), outputs["hete"])
    local = [i for i in parts.homogeneous if kinds_of(model)[i].startswith("lph")]
    spread = [i for i in parts.homogeneous if i not in local]
    case.check("homo_conv", torch.stack([parts.homogeneous[i] for i in local]), outputs["homo_conv"])
    case.check("homo_attn", torch.stack([parts.homogeneous[i] for i in spread]), outputs["homo_attn"])
    total = parts.total(weights)
    case.check("loss", total, outputs["loss"])
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(name.startswith("exits.") for name in gradients)
    wanted = {k.removeprefix("grad/"): t for k, t in outputs.items() if k.startswith("grad/")}
    for name, tensor in wanted.items():
        ((ours, want),) = official_names({name: tensor}).items()
        case.check(name, gradients[_depthwise(model, ours)], want)


def _depthwise(model: OpenModel, name: str) -> str:
    """A gradient given alone says not whether its `proj` is a depthwise convolution: the model does."""
    swapped = name.replace(".map.proj.", ".map.conv_dw.")
    return swapped if swapped in dict(model.named_parameters()) else name


def _in_published_order(terms: dict[int, Tensor], kinds: list[str]) -> Tensor:
    """First local, last local, last global, first global."""
    local = [i for i in terms if kinds[i].startswith("lph")]
    spread = [i for i in terms if i not in local]
    return torch.stack([terms[i] for i in (*local, *reversed(spread))])


@handler("lgvit", "computed")
def variants(case: Case) -> None:
    """Parameters and MACs of the published backbones' heads: `ViT-B/16, <n> classes`, `DeiT-B/16, <n> classes`."""
    for name, want in case.spec["computed"].items():
        found = re.fullmatch(r"(ViT|DeiT)-B/16, (\d+) classes", name)
        assert found, f"{case.id}: cannot read the variant {name!r}"
        cls = VisionTransformerDistilled if found[1] == "DeiT" else VisionTransformer
        with torch.device("meta"):
            model = open_model(cls(num_classes=int(found[2])), check=False)
        count = len(want["exit_head_params"])
        layers = list(range(12 - count, 12))
        heads = build_heads(model, parse_rows(layers, default_heads(count), 12))
        model.exits = Exits(heads, ExitPolicy(layers, 12, None), source="lgvit")
        assert [sum(p.numel() for p in head.parameters()) for head in heads] == want["exit_head_params"], name
        total = sum(p.numel() for p in model.parameters())
        assert total + want["of_which_unused_pooler"] == want["params_total"], name
        macs = exit_macs(model.eval())
        without = exit_macs(_headless(model, layers))
        steps = [b - a for a, b in zip((0, *macs), macs, strict=False)]
        bare = [b - a for a, b in zip((0, *without), without, strict=False)]
        got = [round((a - b) / 1e6, 2) for a, b in zip(steps[:-1], bare[:-1], strict=True)]
        assert got == want["exit_head_MACs_M"], (name, got)
        assert abs(bare[1] / 1e6 - want["one_encoder_layer_MACs_M"]) < 0.006, (name, bare[1])


class _Nothing(nn.Module):
    """A head that costs nothing."""

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, None]:
        return x[:, 0], None


def _headless(model: OpenModel, layers: list[int]) -> OpenModel:
    model.exits = Exits([_Nothing() for _ in layers], ExitPolicy(layers, 12, None), source="lgvit")
    return model
