"""The parts of a transformer block, written once against the operations of `arithmetic/ops.py`: attention, MLP, block.

Parts are given, not built: an adapter hands over the children of a timm model under their own names, so state-dict
keys stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.arithmetic.score import NO_PHASES, Phases, Term, attend, score_rows
from leanvit.anatomy.declared import declared
from leanvit.anatomy.parts.head_tables import HeadTable
from leanvit.anatomy.parts.positions import Rotary
from leanvit.anatomy.state import State
from leanvit.errors import BadInput

SLOTS = ("before", "between", "after")  # of a block, in the order in which they run


class Step(nn.Module):
    """Something a method puts into a slot of a block: `(x (B, N, C), state) -> (x, state)`.

    `needs` names what the attention of the block must leave in the state for it (`"cls_attn"`, `"keys"`);
    `reduces`: fewer tokens come out than go in; `restores` that it brings back all that the block took away;
    `blends` says that what comes out are mixtures of all tokens, which stand for no patches: no other method may take
    tokens after it. `source` is the slug of the method that put it there.

    One that reduces says in `State.owner`, where `State.trace` asks for it, which token holds each patch (-1: none).
    `fuses`: some patches' tokens end in a sum that stands for none of them; it then taps `<name>.fused`, (B, P) bool,
    which these are. In feature maps they keep the value of the block before, like patches that were dropped.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    reduces: ClassVar[bool] = False
    restores: ClassVar[bool] = False
    blends: ClassVar[bool] = False
    source: ClassVar[str] = ""
    name: str
    fuses: bool = False


class Heads:
    """How one attention scores: its heads, their widths, its scale, and what acts on the scores. Holds no tensor.

    `rotary` turns q and k by the position of their tokens; `terms` are the score terms of methods. A class says of
    itself by class attributes what `plain` and `prunable` tell; neither is inherited.
    """

    PLAIN: ClassVar[bool] = False
    PRUNABLE: ClassVar[bool] = False
    PLACED: ClassVar[bool] = False  # whether the class itself scores by where tokens are
    windowed: ClassVar[bool] = False  # whether tokens attend among those of a window only

    def __init__(
        self,
        *,
        name: str,
        heads: int,
        qk_dim: int,
        v_dim: int,
        scale: float,
        fused: bool = True,
        scale_on_q: bool = True,
        rotary: Rotary | None = None,
    ) -> None:
        self.name = name
        self.heads, self.qk_dim, self.v_dim, self.scale = heads, qk_dim, v_dim, scale
        self.fused, self.scale_on_q, self.rotary = fused, scale_on_q, rotary
        self.terms: tuple[Term, ...] = ()

    def weigh(
        self, q: Any, k: Any, v: Any, state: State, needs: frozenset[str], dropout: nn.Module | None = None
    ) -> tuple[Any, State]:
        """q, k (B, H, N, qk_dim), v (B, H, N, v_dim) -> (B, H, N, v_dim); leaves what `needs` asks for in the state.

        `keys` are those before the rotation: what a token holds, not where it is.
        """
        ops = state.ops
        if "keys" in needs:
            state = state.with_(keys=k)
        if self.rotary is not None:
            q, k = self.rotary.turn(f"{self.name}.q_rope", q, state), self.rotary.turn(f"{self.name}.k_rope", k, state)
        groups = self.heads // ops.shape(k)[1]  # grouped queries: several heads share their keys and values
        if groups > 1:
            k, v = (ops.rearrange(f"{self.name}.{at}_groups", t, _repeated(groups)) for at, t in (("k", k), ("v", v)))
        phases = self.phases(state)
        out, weights = attend(
            ops,
            self.name,
            q,
            k,
            v,
            scale=self.scale,
            phases=phases,
            fused=self.fused,
            scale_on_q=self.scale_on_q,
            dropout=dropout if isinstance(dropout, nn.Dropout) else None,
        )
        if "cls_attn" in needs:
            first = slice(0, 1)
            if weights is None or ops.rows_apart:
                row = score_rows(q[:, :, first], k, scale=self.scale, phases=phases.rows(first))
            else:
                row = weights[:, :, first]
            state = state.with_(cls_attn=row[:, :, 0, state.num_prefix :].mean(dim=1))  # (B, N - prefix)
        return out, state

    def phases(self, state: State) -> Phases:
        """What acts on the scores of this run: the model's own, then the terms of methods."""
        phases = self.own_phases(state)
        for term in self.terms:
            phases = term(phases, state)
        return phases

    def own_phases(self, state: State) -> Phases:
        """What the model itself supplies to its scores: the bias of positions; windows add their masks."""
        bias = self.position_bias(state)
        return NO_PHASES if bias is None else Phases(model_bias=bias)

    @property
    def plain(self) -> bool:
        """Whether scores are scaled products of the q and k of one linear, and at most a bias of positions besides."""
        return declared(type(self), "PLAIN")

    @property
    def prunable(self) -> bool:
        """Whether the number of heads and the widths of q, k and v can be changed (`anatomy/surgery/widths.py`)."""
        return declared(type(self), "PRUNABLE") and self.rotary is None

    @property
    def reads_positions(self) -> bool:
        """Whether scores depend on where in the grid tokens are, by the model or by a term of a method."""
        terms = any(getattr(term, "positional", False) for term in self.terms)
        return self.PLACED or self.rotary is not None or terms

    def head_tables(self) -> tuple[HeadTable, ...]:
        """What is kept for each head, besides the linears for q, k, v and the output."""
        return ()

    @property
    def maps(self) -> int:
        """Maps of scores: one for each head."""
        return self.heads

    def position_bias(self, state: State) -> Tensor | None:
        """The model's own bias of scores, (1 or B, H, N, N); None where it has none."""
        return None


class Attention(Heads, nn.Module):
    """Multi-head self-attention whose number of heads and whose q/k and v widths are its own.

    `qkv` gives [q (heads x qk_dim), k (heads x qk_dim), v (heads x v_dim)]. `scale` is stored: it does not follow
    the width when the attention is pruned.
    """

    PLAIN = True
    PRUNABLE = True
    qkv: Any
    proj: Any
    gate: Any
    mask: Any  # a score term with parameters, where the attention holds one

    def __init__(
        self,
        *,
        name: str,
        proj: nn.Module,
        heads: int,
        qk_dim: int,
        v_dim: int,
        scale: float,
        qkv: nn.Module | None = None,
        fused: bool = True,
        scale_on_q: bool = True,
        rotary: Rotary | None = None,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        norm: nn.Module | None = None,
        gate: nn.Module | None = None,
        attn_drop: nn.Module | None = None,
        proj_drop: nn.Module | None = None,
    ) -> None:
        nn.Module.__init__(self)
        Heads.__init__(
            self,
            name=name,
            heads=heads,
            qk_dim=qk_dim,
            v_dim=v_dim,
            scale=scale,
            fused=fused,
            scale_on_q=scale_on_q,
            rotary=rotary,
        )
        if qkv is not None:
            self.qkv = qkv
        self.q_norm = q_norm or nn.Identity()
        self.k_norm = k_norm or nn.Identity()
        self.attn_drop = attn_drop or nn.Identity()
        self.norm = norm or nn.Identity()
        self.gate = gate
        self.proj = proj
        self.proj_drop = proj_drop or nn.Identity()

    def forward(self, x: Any, state: State, needs: frozenset[str] = frozenset()) -> tuple[Any, State]:
        """(B, N, C) -> (B, N, C); leaves what `needs` asks for in the state."""
        gate = self.gate_of(x, state.ops)
        return self.joined(gate, *self.project(x, state.ops), state, needs)

    def gate_of(self, x: Any, ops: Ops) -> Any:
        """What multiplies the output before its projection, (B, N, heads v_dim); None where nothing does."""
        if self.gate is None:
            return None
        return ops.sigmoid(f"{self.name}.gate_act", ops.linear(f"{self.name}.gate", self.gate, x))

    def joined(self, gate: Any, q: Any, k: Any, v: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        """q, k and v as `project` gives them -> (B, N, C)."""
        ops, at = state.ops, self.name
        q, k = apply_norm(ops, f"{at}.q_norm", self.q_norm, q), apply_norm(ops, f"{at}.k_norm", self.k_norm, k)
        out, state = self.weigh(q, k, v, state, needs, self.attn_drop)
        x = ops.rearrange(f"{at}.merge", out, merge_heads)  # (B, H, N, d) -> (B, N, H d)
        x = apply_norm(ops, f"{at}.norm", self.norm, x)
        if gate is not None:
            x = ops.mul(f"{at}.gated", x, gate)
        x = ops.linear(f"{at}.proj", self.proj, x)
        return ops.drop(self.proj_drop, x), state

    def hold(self, mask: nn.Module) -> None:
        """Take a score term that has parameters (`anatomy/parts/masks.py`) in, as the child `mask`."""
        self.mask = mask
        self.terms = (*self.terms, cast(Term, mask))

    def refit(self) -> None:
        """Give what is kept for each head the shapes of new heads and widths (`anatomy/surgery/widths.py`)."""
        if "mask" in self._modules:
            self.mask.refit(self.heads)

    def project(self, x: Any, ops: Ops) -> tuple[Any, Any, Any]:
        """(B, N, C) -> q, k, v as `split_heads` gives them."""
        return self.split_heads(ops, ops.linear(f"{self.name}.qkv", self.qkv, x))

    def split_heads(self, ops: Ops, qkv: Any) -> tuple[Any, Any, Any]:
        """(B, N, heads (2 qk_dim + v_dim)) -> q, k (B, heads, N, qk_dim) and v (B, heads, N, v_dim)."""
        qk = self.heads * self.qk_dim
        cuts = ((0, qk, self.qk_dim), (qk, 2 * qk, self.qk_dim), (2 * qk, None, self.v_dim))
        q, k, v = (
            ops.rearrange(f"{self.name}.{letter}", qkv, head_cut(start, stop, self.heads, width))
            for letter, (start, stop, width) in zip("qkv", cuts, strict=True)
        )
        return q, k, v


def head_cut(start: int, stop: int | None, heads: int, width: int) -> Callable[[Tensor], Tensor]:
    """Channels `start` to `stop` as heads: (B, N, C) -> (B, heads, N, width)."""

    def cut(t: Tensor) -> Tensor:
        return t[..., start:stop].unflatten(-1, (heads, width)).transpose(1, 2)

    return cut


def _repeated(groups: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t.repeat_interleave(groups, dim=1)


def merge_heads(t: Tensor) -> Tensor:
    return t.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two linears with an activation between: `(x (B, N, C), state) -> (x, state)`."""

    fc1: Any
    fc1_g: Any
    fc1_x: Any
    act: nn.Module
    drop1: nn.Module
    norm: nn.Module
    fc2: Any
    drop2: nn.Module

    def __init__(self, *, name: str, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.name = name
        for key, part in parts.items():  # fc1, act, drop1, norm, fc2, drop2
            self.add_module(key, part)

    def forward(self, x: Any, state: State) -> tuple[Any, State]:
        x = self.hidden(x, state)
        ops, at = state.ops, self.name
        x = ops.drop(self.drop1, x)
        x = apply_norm(ops, f"{at}.norm", self.norm, x)
        x = ops.linear(f"{at}.fc2", self.fc2, x)
        return ops.drop(self.drop2, x), state

    def hidden(self, x: Any, state: State) -> Any:
        ops, at = state.ops, self.name
        return ops.act(f"{at}.act", self.act, ops.linear(f"{at}.fc1", self.fc1, x))


class PackedGluMlp(Mlp):
    """Gated MLP whose first linear gives value and gate in one tensor (timm's `GluMlp`, `SwiGLUPacked`)."""

    def __init__(self, *, name: str, parts: dict[str, nn.Module], gate_last: bool) -> None:
        super().__init__(name=name, parts=parts)
        self.gate_last = gate_last

    def hidden(self, x: Any, state: State) -> Any:
        ops, at = state.ops, self.name
        both = ops.linear(f"{at}.fc1", self.fc1, x)
        first = ops.rearrange(f"{at}.first", both, lambda t: t.chunk(2, dim=-1)[0])
        second = ops.rearrange(f"{at}.second", both, lambda t: t.chunk(2, dim=-1)[1])
        if self.gate_last:
            return ops.mul(f"{at}.gated", first, ops.act(f"{at}.act", self.act, second))
        return ops.mul(f"{at}.gated", ops.act(f"{at}.act", self.act, first), second)


class SplitGluMlp(Mlp):
    """Gated MLP with two first linears, `fc1_g` and `fc1_x` (timm's `SwiGLU`)."""

    def hidden(self, x: Any, state: State) -> Any:
        ops, at = state.ops, self.name
        gate = ops.act(f"{at}.act", self.act, ops.linear(f"{at}.fc1_g", self.fc1_g, x))
        return ops.mul(f"{at}.gated", gate, ops.linear(f"{at}.fc1_x", self.fc1_x, x))


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each on a residual branch, and three slots for steps.

    Layer scale is a module (`ls1`, `ls2`) or a parameter of the block (`gammas`: gamma_1, gamma_2). `branch_scale` is a
    constant on both branches (LV-ViT's). A class declares `plain` and `prunable` itself; neither is inherited.
    """

    PLAIN: ClassVar[bool] = True
    PRUNABLE: ClassVar[bool] = True
    source: ClassVar[str] = ""  # slug of the method that put this block in another one's place
    drops_prefix: bool = False  # whether class, distillation and register tokens end here
    attn: Any
    branch_scale: float = 1.0

    def __init__(
        self,
        *,
        name: str,
        norm1: nn.Module,
        attn: Attention,
        norm2: nn.Module,
        mlp: nn.Module,
        ls1: nn.Module | None = None,
        ls2: nn.Module | None = None,
        drop_path1: nn.Module | None = None,
        drop_path2: nn.Module | None = None,
        gammas: Mapping[str, nn.Parameter | None] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.norm1, self.attn = norm1, attn
        self.ls1, self.drop_path1 = ls1 or nn.Identity(), drop_path1 or nn.Identity()
        self.norm2, self.mlp = norm2, mlp
        self.ls2, self.drop_path2 = ls2 or nn.Identity(), drop_path2 or nn.Identity()
        for key, gamma in (gammas or {}).items():
            self.register_parameter(key, gamma)
        self.add_slots()

    def add_slots(self) -> None:
        self.before, self.between, self.after = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

    def forward(self, x: Any, state: State | None = None) -> tuple[Any, State]:
        if state is None:
            raise BadInput(f"{self.name} was called without a state: use model.run(x, state) or model(images)")
        needs = self.needs
        x, state = take(self.before, x, state)
        x, state = self.attended(x, state, needs)
        x, state = take(self.between, x, state)
        if needs:
            state = state.with_(cls_attn=None, keys=None, windows=None)
        x, state = self.transformed(x, state)
        x, state = take(self.after, x, state)
        return x, state.tapped(self.name, x)

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        """The tokens after the residual sum of attention."""
        ops, at = state.ops, self.name
        branch, shortcut = ops.clone(f"{at}.clone1", x)
        branch = apply_norm(ops, f"{at}.norm1", self.norm1, branch)
        branch, state = self.attn(branch, state, needs)
        branch = layer_scale(ops, f"{at}.ls1", self.ls1, branch, self._parameters.get("gamma_1"))
        branch = self._scaled(ops, f"{at}.branch1", branch)
        return ops.add(f"{at}.add1", shortcut, ops.drop(self.drop_path1, branch)), state

    def transformed(self, x: Any, state: State) -> tuple[Any, State]:
        """The tokens after the residual sum of the MLP."""
        ops, at = state.ops, self.name
        branch, shortcut = ops.clone(f"{at}.clone2", x)
        branch = apply_norm(ops, f"{at}.norm2", self.norm2, branch)
        branch, state = self.mlp(branch, state.counted(ops.shape(branch)[1]))
        branch = layer_scale(ops, f"{at}.ls2", self.ls2, branch, self._parameters.get("gamma_2"))
        branch = self._scaled(ops, f"{at}.branch2", branch)
        return ops.add(f"{at}.add2", shortcut, ops.drop(self.drop_path2, branch)), state

    def _scaled(self, ops: Ops, site: str, branch: Any) -> Any:
        return branch if self.branch_scale == 1 else ops.scale(site, branch, self.branch_scale)

    def attentions(self) -> list[Any]:
        """What scores the tokens of this block: one `Heads`, several where attentions run in parallel."""
        return [self.attn]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(step.needs for step in self.steps()))

    @property
    def reduces_tokens(self) -> bool:
        """Whether fewer tokens leave the block than enter it."""
        steps = list(self.steps())
        return any(step.reduces for step in steps) and not any(step.restores for step in steps)

    def steps(self) -> Iterable[Step]:
        for slot in SLOTS:
            yield from cast("Iterable[Step]", getattr(self, slot))

    @property
    def plain(self) -> bool:
        """Whether it is attention, then MLP, each behind its norm on a residual branch of weight 1."""
        return declared(type(self), "PLAIN") and self.branch_scale == 1

    @property
    def prunable(self) -> bool:
        """Whether it is attention, then MLP, wherever their norms are: each can be made narrower by itself."""
        return declared(type(self), "PRUNABLE")


class PostNormBlock(Block):
    """Transformer block whose norms come after attention and MLP, before the residual sums."""

    PRUNABLE = True

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        ops, at = state.ops, self.name
        branch, shortcut = ops.clone(f"{at}.clone1", x)
        branch, state = self.attn(branch, state, needs)
        branch = apply_norm(ops, f"{at}.norm1", self.norm1, branch)
        return ops.add(f"{at}.add1", shortcut, ops.drop(self.drop_path1, branch)), state

    def transformed(self, x: Any, state: State) -> tuple[Any, State]:
        ops, at = state.ops, self.name
        branch, shortcut = ops.clone(f"{at}.clone2", x)
        branch, state = self.mlp(branch, state.counted(ops.shape(branch)[1]))
        branch = apply_norm(ops, f"{at}.norm2", self.norm2, branch)
        return ops.add(f"{at}.add2", shortcut, ops.drop(self.drop_path2, branch)), state


def take(slot: nn.ModuleList, x: Any, state: State) -> tuple[Any, State]:
    for step in slot:
        x, state = step(x, state)
    return x, state


def apply_norm(ops: Ops, site: str, module: nn.Module, x: Any) -> Any:
    return x if isinstance(module, nn.Identity) else ops.norm(site, module, x)


def layer_scale(ops: Ops, site: str, module: nn.Module, x: Any, gamma: Tensor | None = None) -> Any:
    """`x` times the layer scale, which is a module's `gamma` or a parameter of the block; an identity is skipped."""
    if gamma is None:
        gamma = None if isinstance(module, nn.Identity) else cast(Tensor, module.gamma)
    return x if gamma is None else ops.mul(site, x, gamma)
