"""What a transformer block of given widths takes on one machine in one runtime: a table of measured times.

The latency term of structural pruning (NViT, arXiv 2110.04869, section 3.3) asks for the time of a block at widths
that were never built. The paper tabulates five dimensions at once; on a CPU that is thousands of graphs. Here a block
is the sum of its two halves, and the attention half is split once more along what its arithmetic is linear in:

    seconds = A(tokens, embed, heads, qk, v) + M(tokens, embed, mlp)
    A       = ½ (D(tokens, embed, heads, qk) + D(tokens, embed, heads, v)) + U(tokens, heads, qk + v)

D is the attention half with equal widths of q·k and v. U is zero where they are equal, else what the runtime's other
kernel costs or saves there: runtimes fuse attention of equal and of unequal widths differently. Each part is
interpolated linearly in every dimension, which is exact for the multiply-accumulates (U keeps its outermost values
beyond its nodes). `leanvit.deploy.measure_table` makes
tables, `leanvit.deploy.check_table` holds them against whole models.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen
from pydantic import ValidationError

from leanvit.errors import BadInput, CheckpointError, is_number
from leanvit.files import Sealed, Strict, read_sealed, sealed_text, strict_message, write_atomic
from leanvit.knobs import RISING, Count, Words, check

KIND = "leanvit-latency-table"
FORMAT = 1
Ascending = Annotated[tuple[Count, ...], MinLen(1), RISING, Words("ascending whole numbers, 1 or more")]


@dataclass(frozen=True)
class BlockShape:
    """The widths of one block: what its time depends on, beside the embedding width, which all blocks share."""

    tokens: int  # sequence length in its MLP
    heads: int
    qk: int  # of one head
    v: int  # of one head
    mlp: int  # hidden units
    attn_tokens: int | None = None  # sequence length in its attention, where a step between the two takes tokens


@dataclass(frozen=True)
class Grid:
    """Seconds on a rectangular grid, linear in each dimension between its nodes.

    `axes` maps a dimension to its nodes, ascending; `values` are those of all combinations, the last dimension fastest.
    """

    axes: dict[str, tuple[int, ...]]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, nodes in self.axes.items():
            check(f"nodes of {name}", nodes, Ascending)
        if len(self.values) != math.prod(self.shape) or not all(is_number(v) for v in self.values):
            raise BadInput(f"a grid of {self.shape} takes {math.prod(self.shape)} finite values")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(nodes) for nodes in self.axes.values())

    @cached_property
    def _array(self) -> np.ndarray:
        return np.array(self.values).reshape(self.shape)

    def at(self, **point: int) -> float:
        """Seconds at a point, all dimensions given. Raises `BadInput` outside the grid, naming the dimension."""
        values: Any = self._array
        for name, nodes in self.axes.items():
            low, share = _cell(name, nodes, point[name])
            values = values[low] if share == 0 else (1 - share) * values[low] + share * values[low + 1]
        return float(values)


def _cell(name: str, nodes: tuple[int, ...], value: int) -> tuple[int, float]:
    """The node at or below a value, and how far it is on the way to the next one."""
    if not is_number(value, least=nodes[0], most=nodes[-1]):
        accepted = f"{nodes[0]} to {nodes[-1]}" if len(nodes) > 1 else f"{nodes[0]} only"
        raise BadInput(f"{name} is {value!r}, which the latency table does not cover; accepted: {accepted}")
    low = min(bisect_right(nodes, value), len(nodes)) - 1
    return low, 0.0 if value == nodes[low] else (value - nodes[low]) / (nodes[low + 1] - nodes[low])


@dataclass(frozen=True)
class LatencyTable:
    """Measured seconds of transformer blocks, of one runtime on one machine at one batch.

    `provenance` says where the figures come from: `environment` (machine, versions), date (UTC), rounds, spread (median
    over the entries of their relative interquartile range), entries, seconds that measuring took. `check`, if the
    table was held against whole models: see `leanvit.deploy.check_table`.
    """

    runtime: str  # torch, openvino, openvino-int8, ...
    precision: str  # of the products with weights: f32, bf16, int8
    batch: int  # images a call
    threads: int | None  # that the runtime was given; None: its own choice
    model: str  # what it was made for
    equal: Grid  # D: the attention half, widths of q·k and v alike
    wider_qk: Grid  # U where q·k is wider than v
    wider_v: Grid  # U where v is wider
    mlp: Grid  # M
    fixed: Grid  # everything outside the blocks: embedding, head, the call itself
    steps_s: float = 0.0  # what the token steps of the model cost, where it has some
    provenance: dict[str, Any] = field(default_factory=dict)
    check: dict[str, Any] | None = None

    def seconds(
        self, *, tokens: int, embed: int, heads: int, qk: int, v: int, mlp: int, attn_tokens: int | None = None
    ) -> float:
        """Seconds that one block takes for the table's batch, its norms and residual sums included.

        Args:
            tokens: sequence length, prefix tokens included. `attn_tokens`: that of its attention, where it differs.
            embed: width of the residual stream.
            heads, qk, v: number of heads, and the widths of one head.
            mlp: hidden units.

        Raises:
            BadInput: a dimension outside the table, named with the range that it covers.
        """
        attention = {"tokens": tokens if attn_tokens is None else attn_tokens, "heads": heads}
        alike = sum(
            self.equal.at(**attention, embed=embed, **_width(name, self.equal, width))
            for name, width in (("qk", qk), ("v", v))
        )
        other = 0.0 if qk == v else _unequal(self.wider_qk if qk > v else self.wider_v, qk + v, attention)
        return max(alike / 2 + other, 0.0) + self.mlp.at(tokens=tokens, embed=embed, mlp=mlp)

    def model_seconds(self, blocks: Iterable[BlockShape | Mapping[str, Any]], embed: int) -> float:
        """Seconds of a whole model for one call: its blocks, and what is outside them."""
        shapes = [asdict(block) if isinstance(block, BlockShape) else dict(block) for block in blocks]
        return sum(self.seconds(embed=embed, **shape) for shape in shapes) + self.fixed.at(embed=embed) + self.steps_s

    def covers(self, *, tokens: int, embed: int, heads: int, qk: int, v: int, mlp: int, **more: int | None) -> bool:
        """Whether `seconds` answers for these widths."""
        try:
            self.seconds(tokens=tokens, embed=embed, heads=heads, qk=qk, v=v, mlp=mlp, **more)
        except BadInput:
            return False
        return True

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all that predictions follow from: what a plan stores to say which table it was made with."""
        payload = {key: value for key, value in self.to_json().items() if key not in ("provenance", "check")}
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_json` is its inverse."""
        return json.loads(json.dumps(_plain(self)))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LatencyTable:
        """Raises `CheckpointError` for keys or values that are not those of a table."""
        try:
            return _table(_Content.model_validate(dict(content)))
        except ValidationError as error:
            raise CheckpointError(f"latency table: {strict_message(error, _Content)}") from error

    def save(self, path: str | Path) -> None:
        """Write the table, sealed, whole or not at all."""
        content = {"kind": KIND, "format": FORMAT, "table": self.to_json()}
        write_atomic(Path(path), sealed_text(content))

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Raises `BadInput` if there is no file, `CheckpointError` if it is damaged, changed, foreign, or newer."""
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"there is no latency table at {path}; measure one with `leanvit latencies MODEL`")
        file = read_sealed(path, _File, kind=KIND, newest=FORMAT, changed="Measure the table again")
        try:
            return _table(file.table)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error


def _width(name: str, grid: Grid, width: int) -> dict[str, int]:
    _cell(name, grid.axes["width"], width)  # an error names q·k or v, not the axis that they share
    return {"width": width}


def _unequal(grid: Grid, total: int, attention: dict[str, int]) -> float:
    nodes = grid.axes["total"]
    return grid.at(**attention, total=min(max(total, nodes[0]), nodes[-1]))


def _plain(table: LatencyTable) -> dict[str, Any]:
    values = {f.name: getattr(table, f.name) for f in fields(table)}
    return {key: _plain_grid(value) if isinstance(value, Grid) else value for key, value in values.items()}


def _plain_grid(grid: Grid) -> dict[str, Any]:
    return {"axes": {name: list(nodes) for name, nodes in grid.axes.items()}, "values": list(grid.values)}


class _Grid(Strict):
    axes: dict[str, list[int]]
    values: list[float]


class _Content(Strict):
    runtime: str
    precision: str
    batch: int
    threads: int | None
    model: str
    equal: _Grid
    wider_qk: _Grid
    wider_v: _Grid
    mlp: _Grid
    fixed: _Grid
    steps_s: float
    provenance: dict[str, Any]
    check: dict[str, Any] | None


class _File(Sealed):
    table: _Content


_AXES = {
    "equal": ("tokens", "embed", "heads", "width"),
    "wider_qk": ("tokens", "heads", "total"),
    "wider_v": ("tokens", "heads", "total"),
    "mlp": ("tokens", "embed", "mlp"),
    "fixed": ("embed",),
}


def _table(content: _Content) -> LatencyTable:
    payload = dict(content)
    for name, axes in _AXES.items():
        if tuple(payload[name].axes) != axes:
            raise CheckpointError(f"latency table: {name} has the axes {list(payload[name].axes)}, not {list(axes)}")
        try:
            nodes = {axis: tuple(values) for axis, values in payload[name].axes.items()}
            payload[name] = Grid(nodes, tuple(payload[name].values))
        except BadInput as error:
            raise CheckpointError(f"latency table: {name}: {error}") from error
    return LatencyTable(**payload)
