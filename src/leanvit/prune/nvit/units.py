"""The prunable units of a model, and where each of them lives in its tensors.

A *unit list* is what can be cut independently: the channels of the residual stream (one list for the whole model) and,
for each block, its heads, its q/k dims, its v dims (each dim in all heads together) and its MLP's hidden units. A
*part* is a piece of a tensor whose axes run along unit lists: whatever the method does to a unit (score it, close it,
cut it out, price it) it does to the parts that have its list as an axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from leanvit.anatomy import OpenModel
from leanvit.anatomy.opened import WIDTH
from leanvit.anatomy.parts.blocks import Mlp, PackedGluMlp
from leanvit.anatomy.parts.masks import GaussianMixtureMask
from leanvit.errors import Refused

KINDS = ("embed", "head", "qk", "v", "mlp")
Dims = Mapping[str, int]  # open units by the name of their list


@dataclass(frozen=True)
class UnitList:
    """Units of one kind that are ranked and cut together; `block` is -1 for the channels of the residual stream."""

    name: str  # "embed", "blocks.3.qk"
    kind: str
    block: int
    size: int


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` of a tensor, seen as `shape`; `axes` names the unit list along each axis ("": none).

    `scored`: the kinds of units whose saliency sums over this part. `site`: the module whose product the part is the
    weight of ("" for biases, norms, tokens). `fixed`: a buffer, which is masked and cut but is no parameter.
    """

    tensor: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    scored: frozenset[str] = frozenset()
    site: str = ""
    start: int = 0
    stop: int | None = None
    fixed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """The part as a view of its tensor."""
        return tensor[self.start : self.stop].view(self.shape)

    def numel(self, dims: Dims) -> int:
        """Elements that are left at the given numbers of open units."""
        return math.prod(dims.get(axis, size) for axis, size in zip(self.axes, self.shape, strict=True))


@dataclass(frozen=True)
class Layout:
    """Unit lists in the order in which they are ranked, and the parts that they reach."""

    lists: tuple[UnitList, ...]
    parts: tuple[Part, ...]
    depth: int = 0  # blocks of the model

    @property
    def total(self) -> int:
        return sum(units.size for units in self.lists)

    def spans(self) -> Iterator[tuple[UnitList, slice]]:
        """Each list with its place in a flat vector over all units."""
        at = 0
        for units in self.lists:
            yield units, slice(at, at + units.size)
            at += units.size

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector (total,) as views by list."""
        return {units.name: flat[span] for units, span in self.spans()}

    def dims(self) -> dict[str, int]:
        """All units open."""
        return {units.name: units.size for units in self.lists}


def layout(model: OpenModel, kinds: Iterable[str] | None = None, *, sizes: Dims | None = None) -> Layout:
    """The units of a model.

    Args:
        kinds: which of `KINDS` may be cut; None: all that the model allows.
        sizes: of lists by name, where they were others before the model was cut: the layout is that of then.

    Raises:
        Refused: the model is built of blocks whose widths cannot be cut, or a kind that was named cannot.
    """
    _check(model)
    why_not = _embed_refusal(model)
    if kinds is not None and "embed" in kinds and why_not:
        raise Refused(f"nvit cannot cut embedding channels of this model: {why_not}. Name other kinds")
    wanted = set(KINDS if kinds is None else kinds) - ({"embed"} if why_not else set())
    lists = [] if why_not else [UnitList("embed", "embed", -1, int(model.embed_dim))]  # type: ignore[arg-type]
    lists += [units for i, block in enumerate(model.blocks) for units in _lists_of(i, block)]
    lists = [replace(units, size=(sizes or {}).get(units.name, units.size)) for units in lists]
    now = {units.name: units.size for units in lists}
    parts = [] if why_not else _around(model)
    for block in model.blocks:
        parts += _parts_of(block, now, embed="" if why_not else "embed")
    kept = tuple(units for units in lists if units.kind in wanted)
    names = {units.name for units in kept}
    return Layout(kept, tuple(_named(part, now, names) for part in parts), len(model.blocks))


def _named(part: Part, sizes: Dims, names: set[str]) -> Part:
    """A part at the sizes of its lists; axes along lists that stay whole carry no name."""
    shape = tuple(sizes.get(axis, size) for axis, size in zip(part.axes, part.shape, strict=True))
    return replace(part, shape=shape, axes=tuple(axis if axis in names else "" for axis in part.axes))


# --- what can be cut -------------------------------------------------------------------


def _check(model: OpenModel) -> None:
    if not len(model.blocks):
        raise Refused(f"nvit cuts plain vision transformers and Swins, not the family {model.family!r}")
    for block in model.blocks:
        if not block.prunable:
            raise Refused(f"nvit cannot cut {block.name}, a {type(block).__name__}: it knows attention followed by MLP")
        attn, mlp = block.attn, block.mlp
        if not attn.prunable:
            turned = " with rotary positions" if attn.rotary is not None else ""
            raise Refused(
                f"nvit cannot cut {block.name}.attn, a {type(attn).__name__}{turned}: it knows one linear for q, k, v"
            )
        if not isinstance(mlp, Mlp):
            raise Refused(f"nvit cannot cut {block.name}.mlp, a {type(mlp).__name__}: it knows two linears")


def _embed_refusal(model: OpenModel) -> str:
    """Why the channels of the residual stream cannot be cut; "" where they can."""
    if WIDTH in model.kept_traits:
        return "the model around this part reads their width"
    if why_not := model.width_refusal():
        return why_not
    if any(True for step in model.steps() for _ in step.parameters()):
        return "a step in its blocks holds weights of the stream's width"
    return ""


def _lists_of(i: int, block: Any) -> list[UnitList]:
    at, attn = block.name, block.attn
    sizes = {"head": attn.heads, "qk": attn.qk_dim, "v": attn.v_dim, "mlp": block.mlp.fc2.in_features}
    return [UnitList(f"{at}.{kind}", kind, i, size) for kind, size in sizes.items()]


# --- where units live ------------------------------------------------------------------


def _around(model: Any) -> list[Part]:
    """Embedding, tokens, norms and heads: the residual stream outside the blocks."""
    parts = _stem(model)
    for key in (*model.token_names, "pos_embed"):
        table = getattr(model, key)
        if table is not None:
            fixed = not isinstance(table, nn.Parameter)
            parts.append(Part(key, tuple(table.shape), ("", "", "embed"), fixed=fixed))
    for key in ("norm_pre", "norm", "fc_norm"):
        parts += _vectors(key, getattr(model, key), ("embed",), (model.embed_dim,))
    for key in ("head", "head_dist"):
        head = model._modules.get(key)
        if isinstance(head, nn.Linear):
            parts.append(Part(f"{key}.weight", tuple(head.weight.shape), ("", "embed"), site=key))
    return parts


def _stem(model: Any) -> list[Part]:
    """What makes the stream: the patch convolution, or another projection, and its norm."""
    site = model.STEM_PROJECTION
    projection = model.get_submodule(site)
    shape = tuple(projection.weight.shape)
    stream = frozenset({"embed"})
    parts = [Part(f"{site}.weight", shape, ("embed", *[""] * (len(shape) - 1)), stream, site)]
    if projection.bias is not None:
        parts.append(Part(f"{site}.bias", shape[:1], ("embed",), stream))
    norm = model.STEM_NORM
    return parts + (_vectors(norm, model.get_submodule(norm), ("embed",), shape[:1]) if norm else [])


def _parts_of(block: Any, sizes: Dims, *, embed: str) -> list[Part]:
    at = block.name
    parts = _attention(block.attn, at, sizes, embed) + _mlp(block.mlp, f"{at}.mlp", embed)
    width = (block.attn.proj.out_features,)
    for key in ("norm1", "norm2", "ls1", "ls2"):
        parts += _vectors(f"{at}.{key}", getattr(block, key), (embed,), width)
    return parts


def _attention(attn: Any, at: str, sizes: Dims, embed: str) -> list[Part]:
    name, head = f"{at}.attn", f"{at}.head"
    h, qk, v = sizes[head], sizes[f"{at}.qk"], sizes[f"{at}.v"]
    thirds = (  # rows of `qkv`: where they start, width per head, list, kinds scored. K is not scored for its own dims
        (0, qk, f"{at}.qk", {"qk", "head", "embed"}),
        (h * qk, qk, f"{at}.qk", {"head", "embed"}),
        (2 * h * qk, v, f"{at}.v", {"v", "head", "embed"}),
    )
    parts = []
    for start, width, own, scored in thirds:
        where: dict[str, Any] = {"scored": frozenset(scored), "start": start, "stop": start + h * width}
        shape = (h, width, attn.qkv.in_features)
        parts.append(Part(f"{name}.qkv.weight", shape, (head, own, embed), site=f"{name}.qkv", **where))
        if attn.qkv.bias is not None:
            parts.append(Part(f"{name}.qkv.bias", shape[:2], (head, own), **where))
    parts += _projection(attn, name, head, f"{at}.v", embed)
    for key in ("q_norm", "k_norm"):
        parts += _vectors(f"{name}.{key}", getattr(attn, key), (f"{at}.qk",), (qk,))
    parts += _vectors(f"{name}.norm", attn.norm, (head, f"{at}.v"), (h, v))
    return parts + _tables(attn, name, at) + _mask(attn, name, head)


def _mask(attn: Any, name: str, head: str) -> list[Part]:
    """The Gaussians of each head, where a mask multiplies the scores."""
    mask = attn._modules.get("mask")
    if not isinstance(mask, GaussianMixtureMask):
        return []
    return [Part(f"{name}.mask.{key}", tuple(p.shape), ("", head, "", "")) for key, p in mask.named_parameters()]


def _projection(attn: Any, name: str, head: str, v: str, embed: str) -> list[Part]:
    """The way out of the attention, and its gate where it has one."""
    wide = (attn.heads, attn.v_dim)
    stream = frozenset({"embed"})
    out = attn.proj.out_features
    parts = [Part(f"{name}.proj.weight", (out, *wide), (embed, head, v), stream, f"{name}.proj")]
    if attn.proj.bias is not None:
        parts.append(Part(f"{name}.proj.bias", (out,), (embed,), stream))
    if attn.gate is not None:
        shape = (*wide, attn.gate.in_features)
        parts.append(Part(f"{name}.gate.weight", shape, (head, v, embed), site=f"{name}.gate"))
        if attn.gate.bias is not None:
            parts.append(Part(f"{name}.gate.bias", wide, (head, v)))
    return parts


def _tables(attn: Any, name: str, at: str) -> list[Part]:
    """What an attention keeps for each head besides its linears; what runs along a width is scored as q, k, v are."""
    parts = []
    for table in attn.head_tables():
        scored = frozenset({"qk", "v", "head"}) if {"qk", "v"} & {*table.axes} else frozenset()
        axes = tuple(axis and f"{at}.{axis}" for axis in table.axes)
        site = f"{name}.{table.site}" if table.site else ""
        parts.append(Part(f"{name}.{table.name}", table.shape, axes, scored, site))
    return parts


def _mlp(mlp: Any, name: str, embed: str) -> list[Part]:
    own, hidden = name, mlp.fc2.in_features
    gates = 2 if isinstance(mlp, PackedGluMlp) else 1  # value and gate of a unit, one above the other
    parts = []
    for key in ("fc1", "fc1_g", "fc1_x"):
        fc1 = mlp._modules.get(key)
        if fc1 is None:
            continue
        shape, axes = (gates, hidden, fc1.in_features), ("", own, embed)
        parts.append(Part(f"{name}.{key}.weight", shape, axes, frozenset({"mlp", "embed"}), f"{name}.{key}"))
        if fc1.bias is not None:
            parts.append(Part(f"{name}.{key}.bias", shape[:2], axes[:2], frozenset({"mlp"})))
    stream = frozenset({"embed"})
    parts.append(Part(f"{name}.fc2.weight", tuple(mlp.fc2.weight.shape), (embed, own), stream, f"{name}.fc2"))
    if mlp.fc2.bias is not None:
        parts.append(Part(f"{name}.fc2.bias", (mlp.fc2.out_features,), (embed,), stream))
    return parts + _vectors(f"{name}.norm", mlp.norm, (own,), (hidden,))


def _vectors(name: str, module: nn.Module, axes: tuple[str, ...], shape: tuple[int, ...]) -> list[Part]:
    """Weight, bias or gamma of a norm or a layer scale."""
    return [Part(f"{name}.{key}", shape, axes) for key, _ in module.named_parameters(recurse=False)]
