"""Golden cases of SiT: whole models (logits, tokens behind every block), the distillation, parameters and MACs."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from torch import Tensor

import leanvit.backbones  # noqa: F401 (registers the names)
from leanvit.anatomy import OpenModel, open_model
from leanvit.anatomy.parts.slimming import TokenSlimming
from leanvit.backbones.lv_vit import LVViT, checkpoint_filter_fn
from leanvit.data import Batch, Preprocess
from leanvit.measure import count
from leanvit.tokens.sit import FeatureRecalibration, SiT
from leanvit.tokens.sit.distillation import reverse_modules, token_counts
from parity.cases import Case, handler

RENAMED = {"p_emb": "stem", "keeping_ratio": "keep_rate"}  # official argument -> ours
OFFICIAL_ONLY = ("distillation_type", "class")
METHOD_ONLY = ("stage_blocks", "keep_rate")


def model_of(case: Case, part: str = "weights") -> LVViT:
    """Built from official arguments; the official state dict through the filter, strictly. Dense without TSMs in it."""
    constructor = case.spec["constructor"]
    given = {RENAMED.get(key, key): value for key, value in constructor.items() if key not in OFFICIAL_ONLY}
    weights = case.part(part)
    if not any(key.startswith("tsm.") for key in weights):
        given = {key: value for key, value in given.items() if key not in METHOD_ONLY}
    model = LVViT(**given)
    model.load_state_dict(checkpoint_filter_fn(weights, model), strict=True)
    return model.eval()


def by_method(case: Case, model: LVViT) -> OpenModel:
    """The same network from the dense one and the method, with the values of `model`."""
    constructor = case.spec["constructor"]
    given = {RENAMED.get(key, key): value for key, value in constructor.items() if key not in OFFICIAL_ONLY}
    dense = open_model(LVViT(**{key: value for key, value in given.items() if key not in METHOD_ONLY}))
    sit = SiT(keep_rate=given.get("keep_rate", 0.5), stages=tuple(given["stage_blocks"]))
    sit.shape(dense, sit.learn(dense))
    dense.load_state_dict(model.state_dict(), strict=True)
    return dense.eval()


@handler("sit", "forward_eval")
def forward(case: Case) -> None:
    model, x = model_of(case), case.part("input")["x"]
    case.check("logits in timm", model(x), case.part("output")["logits"])
    models = {"opened": open_model(model)}
    if any(True for _ in models["opened"].steps()) and case.spec["constructor"].get("keeping_ratio", 0.5) < 1:
        models["method"] = by_method(case, model)
    for how, opened in models.items():
        logits, state = opened.trace(x, tap=frozenset("*"))
        for name, want in case.part("mid").items():
            block = re.fullmatch(r"tokens_after_block(\d+)", name)
            assert block, f"{case.id}: unknown intermediate {name!r}"
            case.check(f"{how}: {name}", state.taps[f"blocks.{block[1]}"][:, 1:], want)
        case.check(f"{how}: logits", logits, case.part("output")["logits"])


@handler("sit", "train_frd")
def distillation(case: Case) -> None:
    student, teacher = open_model(model_of(case)), open_model(model_of(case, "weights_teacher"))
    objective = FeatureRecalibration(
        student,
        teacher,
        teacher_preprocess=Preprocess.of(student),
        token_weight=case.spec["lambda_token"],
        logit_weight=case.spec["lambda_logits"],
        temperature=case.spec["tau"],
    )
    official = {k.removeprefix("rtsm."): t for k, t in case.part("weights").items() if k.startswith("rtsm.")}
    objective.rtsm.load_state_dict({k: t for k, t in official.items() if k.split(".")[0] in objective.rtsm})
    student.train(case.spec["mode"].startswith("train"))
    inputs, outputs, mid = case.part("input"), case.part("output"), case.part("mid")
    seen: dict[str, Tensor] = {}
    recalibrated, ask = objective.recalibrated, objective.ask_teacher

    def watched(block: int, tokens: Tensor, patches: int) -> Tensor:
        seen[f"recalibrated_tokens{block}"] = recalibrated(block, tokens, patches)
        return seen[f"recalibrated_tokens{block}"]

    def asked(*given: Any) -> Any:
        seen["teacher_logits"], tokens = ask(*given)
        return seen["teacher_logits"], tokens

    objective.recalibrated, objective.ask_teacher = watched, asked  # type: ignore[method-assign]
    loss = objective(student, Batch(inputs["x"], inputs["y_soft"], []), 0, {})
    loss.total.backward()
    for name, want in mid.items():
        case.check(name, seen[name], want)
    weights = {"loss_cls": ("base", 1.0), "loss_token": ("tokens", objective.token_weight)}
    weights |= {"loss_logits": ("distillation", objective.logit_weight)}
    assert not any(p.grad is not None for p in teacher.parameters()), "a gradient reached the teacher"
    for name, want in outputs.items():
        if name.startswith("grad/"):
            case.check(name, gradient(student, objective, name.removeprefix("grad/")), want)
        elif name == "logits":
            case.check(name, student(inputs["x"]), want)
        elif name == "loss":
            case.check(name, loss.total, want)
        else:
            part, factor = weights[name]
            case.check(name, factor * loss.parts[part], want)


def gradient(student: OpenModel, objective: FeatureRecalibration, name: str) -> Tensor:
    """The gradient of a parameter by its official name."""
    if name.startswith("rtsm."):
        return objective.get_parameter(name).grad  # type: ignore[return-value]
    if found := re.fullmatch(r"tsm\.(\d+)\.(?:weight\.)?(scale|[013])(\..+)?", name):
        steps = [block.after[0] for block in student.blocks if len(block.after)]
        part = {"0": "norm", "1": "fc1", "3": "fc2", "scale": "scale"}[found[2]]
        return steps[int(found[1])].get_parameter(part + (found[3] or "")).grad
    return student.get_parameter(name).grad  # type: ignore[return-value]


@handler("sit", "computed")
def variants(case: Case) -> None:
    """Parameters, MACs and token counts of the published variants and their teachers."""
    for name, want in case.spec["computed"].items():
        short, size = name.replace("lvvit_", ""), want["img"]
        with torch.device("meta"):
            built = timm.create_model(short, img_size=size)
            dense = timm.create_model(short.replace("sit", "lvvit").replace("xsmall", "small"), img_size=size)
        model, teacher = open_model(built, check=False), open_model(dense, check=False)
        aux = built.num_classes * (built.embed_dim + 1)  # the head of token labelling, which is left out here
        counts, patches = token_counts(model), token_counts(teacher)
        steps = {i + 1: step for i, block in enumerate(model.blocks) for step in block.after}
        with torch.device("meta"):
            reverse = reverse_modules_of(counts, patches, built.embed_dim)
        found = {
            "params_inference_without_rtsm_and_aux_head": parameters(model),
            "params_inference_with_aux_head": parameters(model) + aux,
            "params_training_total": parameters(model) + aux + reverse,
            "rtsm_params": reverse,
            "tsm_params": sum(parameters(step) for step in steps.values()),
            "aux_head_params": aux,
            "kept_patches": [patches[0], *(step.slots for step in steps.values())],
            "tsm_after_block_1based": list(steps),
            "teacher_params": parameters(teacher) + aux,
            "teacher_params_without_aux": parameters(teacher),
        }
        for key, expected in want.items():
            if key.endswith("MACs_G"):
                cost = count(teacher if key.startswith("teacher") else model, (3, size, size))
                assert not cost.uncounted and abs(cost.gmacs / expected - 1) < 5e-3, (name, key, cost.gmacs, expected)
            elif key != "img":
                assert found[key] == expected, (name, key, found[key], expected)
        assert all(isinstance(step, TokenSlimming) for step in steps.values())


def parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def reverse_modules_of(counts: list[int], patches: list[int], width: int) -> int:
    return parameters(reverse_modules(counts, patches, width))
