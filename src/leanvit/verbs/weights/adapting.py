"""Weights adapted to a model's shapes: classifier, image size, channels; adaptations and misfits are reported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from leanvit.errors import CheckpointError
from leanvit.verbs.weights.choosing import Choice
from leanvit.verbs.weights.describing import Looks, advice, looks, looks_of
from leanvit.verbs.weights.reading import Held

# What files hold beside a model's weights and no model needs: parts of pre-training, counters, computed tables.
LEFT_OUT = re.compile(
    r"(^|\.)(mask_token|n_averaged|total_ops|total_params|relative_position_index|relative_coords_table|attn_mask)$"
    r"|^(decoder|decoder_[a-z_]+|head_dist|dino_head|ibot_head|pre_logits|attn_pool|lm_head|projector|predictor)\b"
)
_POSITIONS = re.compile(r"pos_embed|rel_pos|relative_position|patch_embed\.proj|attention_bias")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 3


@dataclass
class Fitted:
    """Weights for a model, and what was done to them."""

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)  # what was done and left, for people
    adapted: list[tuple[str, str]] = field(default_factory=list)  # how it differs, what is done: for `adapt` alone
    problems: list[str] = field(default_factory=list)

    @property
    def done(self) -> list[str]:
        """What was adapted; of many resized tables the first is named."""
        resized = [done for _, done in self.adapted if " resized, " in done]
        others = [done for _, done in self.adapted if " resized, " not in done]
        if len(resized) > _SHOWN:
            resized = [f"{resized[0]}, and {len(resized) - 1} more tables with it"]
        return resized + others


def fitted(choice: Choice, host: nn.Module, held: Held, *, adapt: bool, option: str) -> dict[str, Any]:
    """The state dict to load and `notes`, lines for people.

    Args:
        host: the timm model (or any module) that the weights are for; it is not changed.
        adapt: a classifier of another size or none, another image size and other channels are bridged.

    Raises:
        CheckpointError: what does not fit, by name, with what file and model look like.
    """
    own = host.state_dict()
    _refuse_odd(choice.raw, held.what)
    dropped = [key for key in choice.raw if key not in choice.tensors and LEFT_OUT.search(key)]  # by the filter
    found = Fitted(dict(choice.tensors), [f"{key} is left out" for key in dropped])
    _resampled(found, choice.raw)
    _classifier(found, own, modules_named(host, "classifier"))
    _channels(found, own, modules_named(host, "first_conv"), host)
    for key in [k for k in found.tensors if k not in own]:
        if LEFT_OUT.search(key):
            del found.tensors[key]
            found.notes.append(f"{key} is left out")
    compare(found, own, held)
    if found.problems or (found.adapted and not adapt):
        raise CheckpointError(misfit(found, choice, host, held, adapt=adapt, option=option))
    convert(found, own, host, held.what)
    return {"state": {**own, **found.tensors}, "notes": [*_grouped(found.notes), *found.done]}


def modules_named(host: nn.Module, key: str) -> tuple[str, ...]:
    """`classifier` or `first_conv` of timm's configuration of a model."""
    cfg = getattr(host, "pretrained_cfg", None) or {}
    found = getattr(host, "_traits", {}).get(key) or cfg.get(key) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _refuse_odd(raw: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors of a kind that is no table of numbers."""
    for key, value in raw.items():
        kinds = {
            "sparse": value.layout is not torch.strided and not value.is_nested,
            "nested": value.is_nested,
            "quantized": value.is_quantized,
            "complex": value.is_complex(),
            "without values (of the meta device)": value.is_meta,
        }
        odd = next((kind for kind, is_so in kinds.items() if is_so), None)
        if odd is not None:
            raise CheckpointError(f"{what}: {key} is {odd}; accepted: dense tensors of numbers")


def _resampled(found: Fitted, raw: Mapping[str, Tensor]) -> None:
    """Note what a filter computed anew: tables whose values are not the file's own."""
    stored = {value.untyped_storage().data_ptr() for value in raw.values()}
    for key, value in found.tensors.items():
        before = raw.get(key)
        if value is before or not _POSITIONS.search(key) or value.untyped_storage().data_ptr() in stored:
            continue
        if (
            before is not None
            and before.numel() == value.numel()
            and torch.equal(before.reshape(-1), value.reshape(-1))
        ):
            continue
        was, now = f"{tuple(before.shape)}" if before is not None else "of another size", tuple(value.shape)
        found.adapted.append((f"{key} is {was}, not {now}", f"{key} resized, {was} to {now}"))


def _classifier(found: Fitted, own: Mapping[str, Tensor], classifiers: tuple[str, ...]) -> None:
    for name in classifiers:
        keys = (f"{name}.weight", f"{name}.bias")
        here, there = own.get(keys[0]), found.tensors.get(keys[0])
        if here is None and there is None:
            continue
        if here is not None and there is not None and (here.ndim == 0 or here.shape[0] == there.shape[0]):
            continue
        for key in keys:
            found.tensors.pop(key, None)
            if key in own:
                found.tensors[key] = own[key]
        classes = None if here is None else here.shape[0]
        found.adapted.append(fresh(name, 0 if there is None else there.shape[0], classes))


def fresh(name: str, there: int | None, here: int | None) -> tuple[str, str]:
    """How a classifier of another size, or none (0 or None), differs, and what is done about it."""
    differs = f"classifier {name} has {there or 'no'} classes in the file, {here or 'none'} in the model"
    if not here:
        return differs, f"classifier {name} ({there} classes) left out: the model has none"
    if not there:
        return differs, f"the file has no classifier {name}: the model's is fresh, {here} classes"
    return differs, f"classifier {name} ({there} classes) left out: the model has {here}, its own is fresh"


def _channels(found: Fitted, own: Mapping[str, Tensor], names: tuple[str, ...], host: nn.Module) -> None:
    for name in names:
        key = f"{name}.weight"
        here, there = own.get(key), found.tensors.get(key)
        if here is None or there is None or here.ndim != 4 or there.ndim != 4 or here.shape[1] == there.shape[1]:
            continue
        module = host.get_submodule(name)
        if not isinstance(module, nn.Conv2d) or module.groups != 1:
            continue
        found.tensors[key] = adapt_input_conv(here.shape[1], there, base_chans=there.shape[1])
        found.adapted.append(
            (
                f"{key} takes {there.shape[1]} channels in the file, {here.shape[1]} in the model",
                f"{key} adapted, {there.shape[1]} to {here.shape[1]} channels",
            )
        )


def compare(found: Fitted, own: Mapping[str, Tensor], held: Held) -> None:
    for key, value in own.items():
        there = found.tensors.get(key)
        shape = tuple(value.shape)
        if there is None:
            kinds = [kind for name, kind in held.values.items() if name == key or name.endswith(f".{key}")]
            found.problems.append(f"{key} is {kinds[0] if kinds else 'missing'}, not {shape}")
        elif tuple(there.shape) != shape:
            found.problems.append(f"{key} is {tuple(there.shape)}, not {shape}")
        elif not _same_kind(there.dtype, value.dtype):
            found.problems.append(f"{key} holds {_dtype(there)}, not {_dtype(value)}")
    found.problems += [f"{key} is not part of the model" for key in found.tensors if key not in own]


def _same_kind(there: torch.dtype, here: torch.dtype) -> bool:
    if here.is_floating_point:
        return there in _FLOATS
    return there == here or (torch.bool not in (there, here) and not there.is_floating_point)


def convert(found: Fitted, own: Mapping[str, Tensor], host: nn.Module, what: str) -> None:
    """To the model's dtypes, reported; refuses weights that are no numbers."""
    others = sorted({_dtype(v) for k, v in found.tensors.items() if v.is_floating_point() and v.dtype != own[k].dtype})
    parameters = dict(host.named_parameters())
    for key, value in found.tensors.items():
        converted = value.to(own[key].dtype)
        if key in parameters or key.endswith(("running_mean", "running_var")):
            wrong = int((~converted.isfinite()).sum())
            if wrong:
                raise CheckpointError(
                    f"{what}: {key} holds {wrong} of {value.numel()} values that are NaN or infinite: the training "
                    "that wrote them diverged, or the file is damaged"
                )
        found.tensors[key] = converted
    if others:
        found.notes.append(f"{', '.join(others)} values are converted to {_dtype(next(iter(parameters.values())))}")


def misfit(
    found: Fitted,
    choice: Choice,
    host: nn.Module,
    held: Held,
    *,
    adapt: bool,
    option: str,
    file: Looks | None = None,
) -> str:
    classifiers = modules_named(host, "classifier")
    file, model = file or looks(choice.raw, classifiers), looks_of(host, classifiers)
    wrong = found.problems + [differs for differs, _ in found.adapted]
    if choice.error:
        wrong = [choice.error]
    more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
    lines = [f"{held.what} does not fit: {'; '.join(wrong[:_SHOWN])}{more}"]
    if found.problems and not set(choice.tensors) & set(host.state_dict()):
        lines.append(f"The file's names: {', '.join([*choice.raw][:_SHOWN])}, …")
    if any(value is not None for value in (file.depth, file.patch, file.width)):
        lines += [f"The file looks like: {file.summary()}", f"The model is: {model.summary()}"]
    if file.classes is not None or found.problems:
        lines += [f"To help: {line}" for line in advice(file, model, host)]
    own = host.state_dict()
    if "norm.weight" in choice.raw and "fc_norm.weight" in own and "norm.weight" not in own:
        lines.append("To help: the file norms before pooling, the model after it: --model-arg fc_norm=false")
    if not found.problems and not adapt and option == "--weights":
        lines.append("To help: let leanvit adapt the weights to the model: --adapt (adapt=True) of train and compress")
    return "\n".join(lines)


def _grouped(notes: list[str]) -> list[str]:
    """`a is left out`, `b is left out`, ... as one line."""
    left = [note.removesuffix(" is left out") for note in notes if note.endswith(" is left out")]
    rest = [note for note in notes if not note.endswith(" is left out")]
    if not left:
        return rest
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    return [f"{', '.join(left[:_SHOWN])}{more} left out", *rest]


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
