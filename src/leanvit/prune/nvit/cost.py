"""What a model costs at given numbers of open units, without building it: parameters, MACs, seconds from a table.

Parameters and MACs are closed forms over the parts of the layout, exact on the shrunk module (`leanvit.measure.count`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenModel, Ops
from leanvit.errors import Refused
from leanvit.measure import count
from leanvit.prune.nvit.units import Dims, Layout, layout

# Below these widths a unit gains no time (arXiv 2110.04869, official code): its lists are thin enough for the hardware.
FLOORS = {"embed": 0, "head": 2, "qk": 8, "v": 8, "mlp": 16}


class Table(Protocol):
    """Seconds of a runtime by widths (`leanvit.measure.latency_table`)."""

    def model_seconds(self, blocks: Any, embed: int) -> float: ...

    def covers(self, *, tokens: int, embed: int, heads: int, qk: int, v: int, mlp: int) -> bool: ...


class Figure(Protocol):
    """One figure of a model as a function of its open units."""

    def total(self, dims: Dims) -> float: ...


@dataclass(frozen=True)
class Parameters:
    """Elements of all parameters."""

    units: Layout
    rest: int  # of tensors that no part describes

    @staticmethod
    def of(model: OpenModel) -> Parameters:
        units = layout(model)
        everything = sum(p.numel() for p in model.parameters())
        return Parameters(units, everything - sum(part.numel({}) for part in units.parts if not part.fixed))

    def total(self, dims: Dims) -> float:
        return self.rest + sum(part.numel(dims) for part in self.units.parts if not part.fixed)


@dataclass(frozen=True)
class Traffic:
    """What one image sends through the model: rows of each product by site, and (rows, sequence) of each attention."""

    rows: Mapping[str, int]
    attention: Mapping[str, tuple[int, int]]  # by the name of the block

    def tokens(self, block: str) -> int:
        """Tokens that enter the attention of a block."""
        return self.attention[block][0]


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image, token reduction that is in the model included."""

    units: Layout
    traffic: Traffic
    widths: Mapping[str, int]  # of all lists as they are now
    rest: int  # of what no part describes (products in steps of methods, patch mergings), at the present widths

    @staticmethod
    def of(model: OpenModel) -> Macs:
        units, seen = layout(model), traffic(model)
        found = Macs(units, seen, units.dims(), 0)
        return Macs(units, seen, units.dims(), count(model, model.input_size()).macs - int(found.total({})))

    def total(self, dims: Dims) -> float:
        now = {**self.widths, **dims}
        products = sum(p.numel(now) * self.traffic.rows.get(p.site, 0) for p in self.units.parts if p.site)
        scores = 0
        for block, (rows, sequence) in self.traffic.attention.items():
            scores += rows * sequence * now[f"{block}.head"] * (now[f"{block}.qk"] + now[f"{block}.v"])
        return self.rest + products + scores


@dataclass(frozen=True)
class Seconds:
    """Predicted seconds of a batch: a table's entries summed over the blocks, and what it knows of the rest."""

    table: Table
    blocks: tuple[tuple[str, int, int], ...]  # (name, tokens in its MLP, tokens that enter its attention)
    widths: Mapping[str, int]  # of all lists as they are now

    @staticmethod
    def of(model: OpenModel, table: Table) -> Seconds:
        """Raises `Refused` for a model whose width changes along the way: a table has one."""
        units, seen = layout(model), traffic(model)
        if model.hierarchical:
            raise Refused("a latency table describes models of one width; give nvit a target in MACs or parameters")
        rows = [(block.name, seen.rows[f"{block.name}.mlp.fc2"], seen.tokens(block.name)) for block in model.blocks]
        return Seconds(table, tuple(rows), {"embed": int(model.embed_dim), **units.dims()})  # type: ignore[arg-type]

    def total(self, dims: Dims) -> float:
        now = {**self.widths, **dims}
        return self.table.model_seconds([self._row(*block, now) for block in self.blocks], now["embed"])

    def least(self, units: Layout) -> dict[str, int]:
        """The fewest units of each list that the table covers, the other lists being as they are.

        Raises `BadInput` where it does not cover the model as it is.
        """
        self.total({})
        return {u.name: _first(u.size, partial(self._covers, u.name)) for u in units.lists}

    def _covers(self, name: str, width: int) -> bool:
        now = {**self.widths, name: width}
        return all(self.table.covers(embed=now["embed"], **self._row(*block, now)) for block in self.blocks)

    def _row(self, block: str, tokens: int, entering: int, now: Dims) -> dict[str, int]:
        names = {"heads": "head", "qk": "qk", "v": "v", "mlp": "mlp"}
        row = {key: now[f"{block}.{kind}"] for key, kind in names.items()} | {"tokens": tokens}
        return row if entering == tokens else {**row, "attn_tokens": entering}


def _first(most: int, covered: Callable[[int], bool]) -> int:
    """The smallest number from which on up to `most` all are covered (a table covers a range)."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if covered(middle) else (middle, high)
    return high


def gains(units: Layout, figure: Figure, dims: Dims, dense: float, kept: Dims | None = None) -> Tensor:
    """(total,) float64: what one unit less of each unit's list saves at the present dims, relative to the dense model.

    Relative, so that `eta` means the same for MACs, parameters and seconds. 0 at and below `FLOORS`,
    and at the widths that lists keep in any case (`kept`).
    """
    now = figure.total(dims)
    out = []
    for u in units.lists:
        open_units = dims[u.name]
        gain = 0.0
        if open_units > max(1, FLOORS[u.kind], (kept or {}).get(u.name, 1)):
            gain = (now - figure.total({**dims, u.name: open_units - 1})) / dense
        out.append(torch.full((u.size,), gain, dtype=torch.float64))
    return torch.cat(out)


class _Watch(Ops):
    """Runs what the default set runs, and notes the rows of each product."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.inputs: dict[str, tuple[int, ...]] = {}

    def conv(self, site: str, module: nn.Module, x: Any) -> Any:
        out = super().conv(site, module, x)
        self._note(site, x, out[0, 0].numel())
        return out

    def linear(self, site: str, module: nn.Module, x: Any, bias: Tensor | None = None) -> Any:
        self._note(site, x, x.shape[:-1].numel())
        return super().linear(site, module, x, bias)

    def _note(self, site: str, x: Tensor, rows: int) -> None:
        self.rows[site] = self.rows.get(site, 0) + rows
        self.inputs[site] = tuple(x.shape)


@torch.no_grad()
def traffic(model: OpenModel) -> Traffic:
    """Run one image of the model's own size and watch what enters its linears and convolutions."""
    like, watch, training = next(model.parameters()), _Watch(), model.training
    model.eval()
    model(torch.zeros(1, *model.input_size(), device=like.device, dtype=like.dtype), ops=watch)
    model.train(training)
    entered = {block.name: watch.inputs[f"{block.name}.attn.qkv"] for block in model.blocks}
    return Traffic(watch.rows, {name: (shape[0] * shape[1], shape[1]) for name, shape in entered.items()})


def widths_of(model: OpenModel) -> list[dict[str, int]]:
    """Widths of each block as they are, counted on its modules."""
    return [
        {
            "embed": block.attn.proj.out_features,
            "heads": block.attn.heads,
            "qk": block.attn.qk_dim,
            "v": block.attn.v_dim,
            "mlp": block.mlp.fc2.in_features,
        }
        for block in model.blocks
    ]
