"""A model built again with other constructor arguments: plans replayed on the new root, weights moved.

Weights follow other drop rates, another classifier, pooling, image, window and patch size; what became of each is said.
Tables of positions are resized by timm's own functions, or by the architecture's: a class with a method
`resized_table(name, table, was)` says how its tables follow from those of `was`, a model of the old make; None leaves
one to timm's rules.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed, resample_patch_embed, resize_rel_pos_bias_table
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_levit
from torch import Tensor, nn

from leanvit.anatomy import OpenModel
from leanvit.anatomy.composite import Composite
from leanvit.errors import BadInput, LeanvitError, Refused
from leanvit.recipe.composites import compose
from leanvit.recipe.history import create, replay
from leanvit.recipe.plan import Plan
from leanvit.recipe.protocol import Tied
from leanvit.recipe.roots import Root
from leanvit.recipe.store import load
from leanvit.values import as_lists

CLASSES = frozenset({"num_classes"})
POOLING = frozenset({"global_pool", "fc_norm", "use_fc_norm", "pool_include_prefix"})
SIZES = frozenset(
    {
        "img_size",
        "patch_size",
        "window_size",
        "window_sizes",
        "window_ratio",
        "pretrained_window_sizes",
        "always_partition",
        "strict_img_size",
        "dynamic_img_size",
        "dynamic_img_pad",
        "ref_feat_shape",
        "resize_positions",
    }
)
ACCEPTED = (
    "drop rates (drop_path_rate, ...), num_classes, pooling (global_pool, fc_norm), and sizes (img_size, window_size, "
    "patch_size, ...)"
)
_SHOWN = 3


@dataclass
class _Moved:
    """Weights for the new model, and what became of the old ones."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    kept: int = 0
    renamed: dict[str, str] = field(default_factory=dict)  # new name: old name
    resized: dict[str, str] = field(default_factory=dict)  # name: from what to what
    fresh: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def rebuilt(
    model: OpenModel | str | Path,
    model_args: Mapping[str, Any],
    *,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> OpenModel:
    """A model of other constructor arguments with the weights and the plans of this one, which is left as it was.

    Equal shapes are copied. Position tables are resized (absolute ones bicubic, with antialias unless the
    architecture's own code does it otherwise; relative ones as timm does for its checkpoints), patch kernels resampled
    (timm's pseudo-inverse). Another number of classes gives a fresh classifier. Another pooling moves the last norm
    between `norm` and `fc_norm`. Preprocessing follows the image size.

    Args:
        model: an opened model with a history, or the path of a run, or `leanvit/NAME`.
        model_args: constructor arguments by name; those of the root that are not given stay. Of a model of parts
            `PART.ARGUMENT`, of parts that are opened models.
        seed: of what is made anew.
        log: called with a line for each thing that was moved, resized, made anew or left.

    Returns:
        The model in eval mode, its history the new root and the same plans, in the dtype and on the device of the old.

    Raises:
        BadInput: an argument that weights cannot follow (named, with the first thing it changes), or that timm does
            not take.
        Refused: a plan that is tied to what changes, tensors that no rule resizes, or a model without a history.
    """
    if not isinstance(model_args, Mapping):
        raise BadInput(
            f"model_args is {model_args!r}; accepted: constructor arguments by name, like {{'img_size': 48}}"
        )
    if not isinstance(model, OpenModel | str | Path):
        raise BadInput(f"model is a {type(model).__name__}; accepted: what compress or load gives, or a run's path")
    if not isinstance(model, OpenModel):
        model = load(model)
    if model.history is None:
        raise Refused("the model has no history: pass it through compress(model, []) first")
    if isinstance(model, Composite):
        return _rebuilt_parts(model, model_args, seed, log)
    was: Root = model.history.root
    given = {key: as_lists(value) for key, value in model_args.items()}
    changed = {
        key: value for key, value in given.items() if key not in was.kwargs or as_lists(was.kwargs[key]) != value
    }
    if not changed:
        return copy.deepcopy(model).eval()
    root = Root(was.name, {**was.kwargs, **changed})
    old = create(was, device="meta")
    _check_followed(old, root, changed)
    new = create(root, device="meta")
    _check_plans(model.history.plans, old, new, changed)
    lean = _replayed(root, model.history.plans, seed, model)
    moved = _moved(model.state_dict(), lean, old._source[0], new._source[0])
    moved.problems += _filled(moved, lean)
    if moved.problems:
        more = f" (and {len(moved.problems) - _SHOWN} more)" if len(moved.problems) > _SHOWN else ""
        raise Refused(
            f"the weights of {was.name} cannot follow {_text(changed)}: {'; '.join(moved.problems[:_SHOWN])}{more}"
        )
    lean.load_state_dict(moved.tensors, strict=True)
    log(f"rebuilt {was.name} with {_text(changed)}: {moved.kept} tensors as they were")
    for line in _lines(moved, new, old):
        log(line)
    _hand_on(model, lean, old, new, log)
    return lean.eval()


def _rebuilt_parts(model: Composite, model_args: Mapping[str, Any], seed: int, log: Callable[[str], None]) -> OpenModel:
    """Parts rebuilt each by its own arguments, and put together as they were."""
    whole = copy.deepcopy(model)
    whole.main_part.preprocess = model.preprocess  # follows the size of its images
    able = {name: part for name, part in whole.opened_parts.items() if isinstance(part, OpenModel)}
    given: dict[str, dict[str, Any]] = {}
    for key, value in model_args.items():
        name, _, argument = key.partition(".")
        if name not in able or not argument:
            accepted = ", ".join(f"{part}.ARGUMENT" for part in able)
            raise BadInput(f"model argument {key!r}: accepted of this model of parts: {accepted}")
        given.setdefault(name, {})[argument] = value
    changed = {name: rebuilt(able[name], own, seed=seed, log=log) for name, own in given.items()}
    lean = compose(model.wiring, {**whole.parts, **changed})
    lean.classes, lean.task = model.classes, model.task
    return lean.eval()


def _text(changed: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in changed.items())


# --- before any work -----------------------------------------------------------------


def _check_followed(old: OpenModel, root: Root, changed: Mapping[str, Any]) -> None:
    """Refuse, by name, an argument that weights do not follow, with the first thing that it changes."""
    fixed = [key for key in changed if key not in CLASSES | POOLING | SIZES and "drop" not in key]
    if not fixed:
        return
    name, was = fixed[0], old.history.root
    alone = create(Root(root.name, {**was.kwargs, name: changed[name]}), device="meta")  # refuses what timm does
    ours, theirs = old.make(), alone.make()
    key = next((k for k in [*ours, *theirs] if ours.get(k) != theirs.get(k)), "")
    here, there = ours.get(key, "absent"), theirs.get(key, "absent")
    why = f"{key} is {here}, and would be {there}" if key else "what they compute would change"
    raise BadInput(
        f"constructor argument {name} is {changed[name]!r}, which the weights of a run cannot follow: {why}; "
        f"accepted: {ACCEPTED}"
    )


def _check_plans(plans: tuple[Plan, ...], old: OpenModel, new: OpenModel, changed: Mapping[str, Any]) -> None:
    """Refuse plans that hold only for what changes."""
    for plan in plans:
        if not plan.finished:
            raise Refused(f"plan {plan.slug!r} is unfinished: end its compression first")
        m = plan.method()
        unsaid = dict.fromkeys(("grid", "classes"), "the method does not say that it holds for another")
        tied = m.tied_to(dict(plan.structure)) if isinstance(m, Tied) else unsaid
        for what, why in tied.items():
            if what not in _DIFFERS:
                raise Refused(f"plan {plan.slug!r} is tied to {what!r}; known: {', '.join(_DIFFERS)}")
            if differs := _DIFFERS[what](old, new):
                raise Refused(
                    f"plan {plan.slug!r} is tied to {differs}: {why}. Build the model that {plan.slug} was applied to "
                    f"with {_text(changed)}, then apply {plan.slug} to that (leanvit compress)"
                )


def _other_grid(old: OpenModel, new: OpenModel) -> str:
    was, now = old.grid(), new.grid()
    return "" if was == now else f"its grid of {_by(was)} tokens, which becomes {_by(now)}"


def _other_classes(old: OpenModel, new: OpenModel) -> str:
    was, now = old.num_classes, new.num_classes
    return "" if was == now else f"its {was} classes, which become {now}"


_DIFFERS: Mapping[str, Callable[[OpenModel, OpenModel], str]] = {
    "grid": _other_grid,
    "classes": _other_classes,
    "make": lambda old, new: "the model as it is",
}


def _replayed(root: Root, plans: tuple[Plan, ...], seed: int, like: OpenModel) -> OpenModel:
    from leanvit.data import keyed

    try:
        with keyed.global_rng(seed, "rebuilt"):
            lean = replay(root, plans)
    except LeanvitError as error:
        if not plans:
            raise
        raise Refused(f"the plans do not fit {root.name} any more: {error}") from error
    some = next(like.parameters())
    return lean.to(device=some.device, dtype=some.dtype)


# --- the weights ---------------------------------------------------------------------


@torch.no_grad()
def _moved(before: Mapping[str, Tensor], lean: OpenModel, old: Any, new: Any) -> _Moved:
    """The state of the new model. `old`, `new`: timm's dense models of both makes, without values."""
    own = lean.state_dict()
    found = _Moved(renamed=_renamed(before, own))
    free = _free_to_differ(old, new)
    heads = _classifiers(new) if old.num_classes != new.num_classes else ()
    for key, fresh in own.items():
        there = before.get(found.renamed.get(key, key))
        if there is None or key.startswith(heads):
            found.tensors[key] = fresh
            found.fresh.append(key)
            if not key.startswith(free):
                found.problems.append(f"{key} would be made anew")
        elif not there.is_floating_point() and not key.endswith("num_batches_tracked"):
            found.tensors[key] = fresh  # indices of positions, which follow from the make
        else:
            _follow(found, key, there, fresh, old, new)
    taken = {found.renamed.get(key, key) for key in own}
    found.left = [key for key in before if key not in taken]
    found.problems += [f"{key} would be left" for key in found.left if not key.startswith(free)]
    return found


def _filled(found: _Moved, lean: OpenModel) -> list[str]:
    """Sparse parameters that were resized: what is interpolated is zero no more."""
    return [f"{key} holds pruned weights, which resizing would fill" for key in lean.sparse if key in found.resized]


def _follow(found: _Moved, key: str, there: Tensor, fresh: Tensor, old: Any, new: Any) -> None:
    resized = _resized(key, there, fresh, old, new)
    value = there
    if resized is not None:
        value, found.resized[key] = resized
    else:
        found.kept += key not in found.renamed
    if value.shape != fresh.shape:
        found.problems.append(f"{key} is {tuple(there.shape)}, and would be {tuple(fresh.shape)}")
    found.tensors[key] = value.to(fresh.dtype)


def _renamed(before: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """The last norm, before pooling (`norm`) or behind it (`fc_norm`): new name: old name."""
    found = {}
    for here, there in (("norm", "fc_norm"), ("fc_norm", "norm")):
        for part in ("weight", "bias"):
            new, old = f"{here}.{part}", f"{there}.{part}"
            if new in own and new not in before and old in before and old not in own:
                found[new] = old
    return found


def _free_to_differ(old: Any, new: Any) -> tuple[str, ...]:
    """Prefixes of what may be made anew or left: classifiers of another size, and what pools."""
    pooled = getattr(old, "global_pool", "") != getattr(new, "global_pool", "")
    pools = ("attn_pool.", "norm.", "fc_norm.") if pooled else ()
    heads = (*_classifiers(old), *_classifiers(new)) if old.num_classes != new.num_classes else ()
    return (*pools, *heads)


def _classifiers(model: Any) -> tuple[str, ...]:
    names = model.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _resized(key: str, there: Tensor, fresh: Tensor, old: Any, new: Any) -> tuple[Tensor, str] | None:
    """A table or kernel at the new size, and in words what was done; None where there is nothing to resize."""
    if hasattr(new, "resized_table"):
        table = new.resized_table(key, there, old)
        if table is not None:
            return table, f"{_shape(there)} to {_shape(table)}, by the architecture's own rule"
    leaf = key.rpartition(".")[2]
    if key in ("pos_embed", "patch_embed.pos_embed") and there.ndim == 3:
        return _absolute(there, fresh, _grid(old), _grid(new))
    if leaf == "relative_position_bias_table":
        windows = [_attribute(model, key, "window_size") for model in (old, new)]
        return _relative(there, fresh, *windows)
    if leaf == "attention_biases" and there.shape != fresh.shape and _squares(there, fresh):
        table = resize_rel_pos_bias_table_levit(there.T, fresh.T.shape).T.contiguous()
        return table, f"{_shape(there)} to {_shape(fresh)}, bicubic with antialias"
    if key == "patch_embed.proj.weight" and type(new.patch_embed) is PatchEmbed:
        size = fresh.shape[-2:]
        if there.shape[-2:] != size:
            return resample_patch_embed(there, list(size)), f"patches of {_by(there.shape[-2:])} pixels to {_by(size)}"
    return None


def _absolute(there: Tensor, fresh: Tensor, was: Any, now: Any) -> tuple[Tensor, str] | None:
    if was is None or now is None or was == now:
        return None
    prefix = there.shape[1] - math.prod(was)
    if prefix < 0 or fresh.shape[1] - math.prod(now) != prefix:
        return None
    table = resample_abs_pos_embed(there, new_size=list(now), old_size=list(was), num_prefix_tokens=prefix)
    return table, f"a grid of {_by(was)} to {_by(now)}, bicubic with antialias"


def _relative(there: Tensor, fresh: Tensor, was: Any, now: Any) -> tuple[Tensor, str] | None:
    if was is None or now is None or tuple(was) == tuple(now):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"timm\.layers\.interpolate")  # of how timm indexes there
        table = resize_rel_pos_bias_table(there, tuple(now), tuple(fresh.shape), tuple(was))
    return table, f"windows of {_by(was)} to {_by(now)}"


def _grid(model: Any) -> tuple[int, int] | None:
    stem = getattr(model, "patch_embed", None) or getattr(model, "tokens_to_token", None)
    size = getattr(stem, "grid_size", None)
    return None if size is None else (int(size[0]), int(size[1]))


def _attribute(model: nn.Module, key: str, name: str) -> Any:
    """Of the module that holds a tensor; None where this make has no such module."""
    try:
        return getattr(model.get_submodule(key.rpartition(".")[0]), name, None)
    except AttributeError:
        return None


def _squares(*tables: Tensor) -> bool:
    return all(math.isqrt(t.shape[1]) ** 2 == t.shape[1] for t in tables)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _by(size: Any) -> str:
    return f"{size[0]}x{size[1]}"


# --- what is said, and what goes along -----------------------------------------------


def _lines(moved: _Moved, new: OpenModel, old: OpenModel) -> list[str]:
    lines = [f"{there} becomes {here}" for here, there in moved.renamed.items()]
    by_way: dict[str, list[str]] = {}
    for key, way in moved.resized.items():
        by_way.setdefault(way, []).append(key)
    lines += [f"{_few(keys)} resized, {way}" for way, keys in by_way.items()]
    if moved.fresh:
        classes = (
            f" ({new.num_classes} classes, before {old.num_classes})" if new.num_classes != old.num_classes else ""
        )
        lines.append(f"{_few(moved.fresh)} made anew{classes}")
    if moved.left:
        lines.append(f"{_few(moved.left)} left out")
    return lines


def _few(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{', '.join(keys[:_SHOWN])}{more}"


def _hand_on(model: OpenModel, lean: OpenModel, old: OpenModel, new: OpenModel, log: Callable[[str], None]) -> None:
    """Names of classes where they are the same, and preprocessing at the new image size."""
    lean.task = model.task
    lean.classes = model.classes if lean.num_classes == model.num_classes else ()
    lean.preprocess = model.preprocess
    was, now = old.probe_size(), new.probe_size()
    if was != now and model.preprocess is not None:
        lean.preprocess = replace(model.preprocess, input_size=now)
        log(f"images are prepared at {_by(now[1:])}, before at {_by(model.preprocess.input_size[1:])}")
