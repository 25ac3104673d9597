"""STViT: image tokens become a few semantic tokens, on which the rest of the model runs (arXiv 2303.08685).

"Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023. After the first blocks (4 of 12),
windows of the grid are max-pooled to a few tokens each (2x2 of every 7x7: 16 of 196), and two generation blocks turn
these into cluster centres: first the pooled tokens attend to the image tokens, then, with a learned global centre added
to each, to one another and to the image tokens. All later blocks have the semantic tokens alone, and the classifier
reads their mean. DeiT-Tiny / -Small / -Base without class token then take 0.522 / 1.907 / 7.263 GMACs, 58 % less.

**A reconstruction.** The code of STViT on DeiT was never released. Made here from paper and the authors' answers, and
not verified: windows of 7x7 with 2x2 tokens each, no window for the keys, where the global centres enter, and that the
class token ends. The generation blocks are the model's own blocks: their linear of q, k and v is cut in two, their
other weights stay. So a trained model is compressed, and its accuracy comes back with training, a recovery by
distillation. From scratch: compress a fresh model, then train that run (recipe `stvit_deit_small`).

Departures: prefix tokens (class, distillation, registers) are keys like image tokens, and end with the generation;
both heads of a distilled model read the mean. `prefix=keep` lets them go on beside the semantic tokens, with the head
as it was. Semantic tokens have no place in the grid, so models whose later blocks read positions are refused, and so
are maps of features after the generation. The form that recovers image tokens is an architecture: `stvit_r_swin_tiny`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenModel, State
from leanvit.anatomy.blocks import Attention, Block, apply_norm, layer_scale
from leanvit.anatomy.cross import CrossAttention
from leanvit.anatomy.semantic import adaptive_max, owners
from leanvit.anatomy.t2t import OpenT2TViT
from leanvit.anatomy.vit import OpenViT
from leanvit.anatomy.windows import Windows
from leanvit.data import keyed
from leanvit.errors import BadInput, Refused, is_whole, unknown
from leanvit.recipe.equal_macs import nearest_setting
from leanvit.recipe.method import Structure, method

PREFIX = ("drop", "keep")
GENERATIONS = 2  # blocks
_IMAGE = "stvit"  # key of the image tokens between the two, in `State.extra`
_PARTS = ("norm1", "norm2", "mlp", "ls1", "ls2", "drop_path1", "drop_path2")


class Generation(Block):
    """A block whose queries are semantic tokens and whose keys are those and image tokens (section 3.1)."""

    source: ClassVar[str] = "stvit"
    attn: CrossAttention

    @property
    def reduces_tokens(self) -> bool:
        return True

    def met(self, tokens: Any, keys: Any, state: State, *, shortcut: bool = True) -> tuple[Any, State]:
        """Semantic tokens (B, S, C) after they attended to `keys` (B, M, C), one norm for both."""
        ops, at = state.ops, self.name
        branch, tokens = ops.clone(f"{at}.clone1", tokens)
        branch = apply_norm(ops, f"{at}.norm1", self.norm1, branch)
        keys = apply_norm(ops, f"{at}.norm1_keys", self.norm1, keys)
        branch, state = self.attn.across(branch, keys, state)
        branch = layer_scale(ops, f"{at}.ls1", self.ls1, branch, self._parameters.get("gamma_1"))
        if not shortcut:
            return branch, state
        return ops.add(f"{at}.add1", tokens, ops.drop(self.drop_path1, branch)), state


class PooledGeneration(Generation):
    """The first: windows of image tokens are max-pooled, and what is pooled attends to the image tokens."""

    def __init__(self, *, window: tuple[int, int], samples: int, prefix: str, shortcut: bool, **parts: Any) -> None:
        super().__init__(**parts)
        self.window, self.samples, self.shortcut = window, samples, shortcut
        self.drops_prefix = prefix == "drop"

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        ops, at, first = state.ops, self.name, state.num_prefix
        self._check(ops.shape(x)[1], state)
        windows, semantic = _cuts(state.grid, self.window, self.samples)
        image = ops.rearrange(f"{at}.image", x, lambda t: t[:, first:])
        cut = ops.rearrange(f"{at}.partition", image, windows.partition)
        pooled = ops.pick(f"{at}.pool", cut, lambda t: adaptive_max(t.unflatten(1, self.window), self.samples))
        tokens = ops.rearrange(f"{at}.reverse", pooled, semantic.reverse)
        state = self._tracked(state, ops.shape(x)[0], tokens)
        if self.drops_prefix:
            image = x
        elif first:
            tokens = ops.cat(f"{at}.prefix", [ops.rearrange(f"{at}.front", x, lambda t: t[:, :first]), tokens])
        tokens, state = self.met(tokens, x, state, shortcut=self.shortcut)
        return tokens, state.with_(extra={**state.extra, _IMAGE: image})

    def _check(self, tokens: int, state: State) -> None:
        if tokens != state.num_prefix + state.num_patches:
            raise Refused(
                f"{self.name} pools windows of the full grid of {state.grid[0]}x{state.grid[1]} tokens; "
                f"{tokens - state.num_prefix} are left"
            )
        if any(side % size for side, size in zip(state.grid, self.window, strict=True)):
            raise BadInput(
                f"images have {state.grid[0]}x{state.grid[1]} patches, which windows of {self.window[0]}x"
                f"{self.window[1]} ({self.name}) do not divide"
            )

    def _tracked(self, state: State, batch: int, tokens: Any) -> State:
        """The state after the image tokens gave way: a patch belongs to the token whose cell it is in."""
        prefix = 0 if self.drops_prefix else state.num_prefix
        if state.trace:
            own = owners(state.grid, self.window, self.samples, device=tokens.device) + prefix
            state = state.with_(owner=own.expand(batch, -1)).tapped(f"{self.name}.owner", own)
        return state.with_(num_prefix=prefix, places=None, size=None)


class CentredGeneration(Generation):
    """The second: semantic tokens, each with its global centre, attend to semantic and image tokens."""

    def __init__(self, *, tokens: int, use_global: bool, **parts: Any) -> None:
        """`tokens`: semantic tokens of the grid that the model is built for."""
        super().__init__(**parts)
        like = self.attn.proj.weight
        centres = nn.Parameter(like.new_zeros(1, tokens, like.shape[0])) if use_global else None
        self.register_parameter("centres", centres)

    def attended(self, x: Any, state: State, needs: frozenset[str]) -> tuple[Any, State]:
        ops, at = state.ops, self.name
        if _IMAGE not in state.extra:
            raise BadInput(f"{self.name} needs the image tokens that the block before it leaves in the state")
        keys = ops.cat(f"{at}.keys", [x, state.extra[_IMAGE]])
        x, state = self.met(self._centred(x, state), keys, state)
        return x, state.with_(extra={key: value for key, value in state.extra.items() if key != _IMAGE})

    def _centred(self, x: Any, state: State) -> Any:
        if self.centres is None:
            return x
        ops, at, first = state.ops, self.name, state.num_prefix
        tokens = ops.shape(x)[1] - first
        if tokens != self.centres.shape[1]:
            raise BadInput(
                f"{self.name} has {self.centres.shape[1]} global centres, the image gives {tokens} semantic tokens: "
                "give images of the model's own size, or use_global=false"
            )
        centres = ops.param(f"{at}.centres", self.centres, x)
        if not first:
            return ops.add(f"{at}.centre", x, centres)
        front = ops.rearrange(f"{at}.front", x, lambda t: t[:, :first])
        rest = ops.rearrange(f"{at}.rest", x, lambda t: t[:, first:])
        return ops.cat(f"{at}.centred", [front, ops.add(f"{at}.centre", rest, centres)])


@method("stvit")
@dataclass(frozen=True)
class STViT:
    """Knobs of the method. The defaults are the paper's, as far as they are known."""

    after: int | None = None  # blocks before the generation; None: a third of the depth; the whole depth: no generation
    samples: int = 2  # semantic tokens a side of each window
    window: int | None = None  # side of a window of patches; None: half of the grid, or the whole of an odd one
    use_global: bool = True  # a learned centre for each semantic token
    shortcut: bool = True  # pooled tokens stay in the first generation's sum; false: its attention alone
    prefix: str = "drop"  # class, distillation and register tokens: they end, or "keep" beside the semantic tokens
    seed: int = 0  # of the centres' initial values

    requires: ClassVar[frozenset[str]] = frozenset({"float", "full_grid", "token_blocks"})
    destroys: ClassVar[frozenset[str]] = frozenset({"class_token", "full_grid", "token_blocks"})
    dials: ClassVar[tuple[str, ...]] = ("after", "window", "samples")

    def __post_init__(self) -> None:
        for name, least in (("after", 0), ("window", 1)):
            value = getattr(self, name)
            if value is not None and not is_whole(value, least=least):
                raise BadInput(f"{name} is {value!r}; accepted: a whole number, {least} or more, or none")
        for name, least in (("samples", 1), ("seed", 0)):
            if not is_whole(getattr(self, name), least=least):
                raise BadInput(f"{name} is {getattr(self, name)!r}; accepted: a whole number, {least} or more")
        for name in ("use_global", "shortcut"):
            if not isinstance(getattr(self, name), bool):
                raise BadInput(f"{name} is {getattr(self, name)!r}; accepted: true or false")
        if self.prefix not in PREFIX:
            raise unknown("prefix", str(self.prefix), PREFIX)
        if self.window is not None and self.samples > self.window:
            raise BadInput(f"samples is {self.samples!r}; accepted: 1 to {self.window}, the side of a window")

    def learn(self, model: OpenModel, data: object = None) -> Structure:
        """Where and how: {"after": int, "window": [rows, columns], "samples": int}.

        Raises:
            BadInput: a number that does not fit the model. Refused: a model that it cannot work on (the reason named).
        """
        depth = len(model.blocks)
        after = depth // 3 if self.after is None else self.after
        if after != depth and after > depth - GENERATIONS:
            raise BadInput(
                f"after is {after}; accepted: 0 to {depth - GENERATIONS}, which leaves {GENERATIONS} of {depth} blocks "
                f"for the generation, or {depth} for none"
            )
        _check_model(model, after)
        grid = _grid(model)
        window = [self.window or (side if side % 2 else side // 2) for side in grid]
        structure = {"after": after, "window": window, "samples": self.samples}
        _check_windows(grid, structure)
        return structure

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Put the generation blocks in the place of the model's own, with empty linears for q and for k and v."""
        after, depth = structure["after"], len(model.blocks)
        if not is_whole(after, least=0, most=depth) or after == depth - 1:
            raise BadInput(f"the plan generates after {after!r} blocks; accepted: 0 to {depth - GENERATIONS}, {depth}")
        if after == depth:
            return
        _check_model(model, after)
        grid = _grid(model)
        rows, columns = _check_windows(grid, structure)
        window, samples = (rows, columns), structure["samples"]
        first, second = (_parts(model.blocks[after + i]) for i in range(GENERATIONS))
        pooled = PooledGeneration(window=window, samples=samples, prefix=self.prefix, shortcut=self.shortcut, **first)
        tokens = (grid[0] // rows) * (grid[1] // columns) * samples**2
        centred = CentredGeneration(tokens=tokens, use_global=self.use_global, **second)
        for i, block in enumerate((pooled, centred)):
            model.blocks[after + i] = block.train(model.training)
        if self.prefix == "drop" and model.global_pool == "token":
            model.global_pool = "avg"

    def fold(self, model: OpenModel, structure: Structure, before: Mapping[str, Tensor]) -> None:
        """The weights of q and of k and v from the linear that gave all three; the centres drawn by the seed."""
        for block in model.blocks:
            if isinstance(block, Generation):
                block.attn.take(before)
            if isinstance(block, CentredGeneration) and block.centres is not None:
                drawn = torch.randn(block.centres.shape, generator=keyed.generator(self.seed, "stvit", block.name))
                block.centres.copy_(0.02 * drawn)

    @classmethod
    def at_macs(cls, model: OpenModel, share: float, knobs: Mapping[str, Any]) -> STViT:
        """With the place of the generation, and the number of semantic tokens, that leave this share of the MACs."""
        made, depth, grid = cls(**knobs), len(model.blocks), _grid(model)
        found: dict[int, STViT] = {}  # tokens that blocks get, in sum -> the setting
        for after in range(depth - GENERATIONS, -1, -1):
            for window in sorted({side for side in range(1, min(grid) + 1) if not any(n % side for n in grid)}):
                for samples in range(1, window + 1):
                    kept = (grid[0] // window) * (grid[1] // window) * samples**2
                    if kept * 2 <= grid[0] * grid[1]:  # else the generation costs more than it saves
                        tokens = after * grid[0] * grid[1] + (depth - after) * kept
                        found.setdefault(tokens, replace(made, after=after, window=window, samples=samples))
        return nearest_setting(model, [found[tokens] for tokens in sorted(found, reverse=True)], share)

    def achieved(self, model: OpenModel) -> dict[str, Any]:
        """{"patch_tokens": patch or semantic tokens in each block's MLP, counted in a run of the model}."""
        return {"patch_tokens": model.patch_tokens()}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Blocks in whose MLP other than the planned number of semantic tokens are, counted in a run of the model."""
        grid, (rows, columns), samples = _grid(model), structure["window"], structure["samples"]
        planned = (grid[0] // rows) * (grid[1] // columns) * samples**2
        counts = list(enumerate(model.patch_tokens()))[structure["after"] :]
        return [f"block {i}: asked {planned} semantic tokens, has {n}" for i, n in counts if n != planned]


def _cuts(grid: tuple[int, int], window: tuple[int, int], samples: int) -> tuple[Windows, Windows]:
    """How the grid of patches and that of semantic tokens are cut into the same windows."""
    windows = Windows(grid, window)
    down, across = windows.counts
    return windows, Windows((down * samples, across * samples), (samples, samples))


def _parts(block: Block) -> dict[str, Any]:
    """The children of a block for one in its place, with an attention of its heads across tokens."""
    gammas = {key: p for key, p in block._parameters.items() if key.startswith("gamma")}
    parts = {key: getattr(block, key) for key in _PARTS}
    return {"name": block.name, "attn": CrossAttention.like(block.attn), "gammas": gammas, **parts}


def _grid(model: OpenModel) -> tuple[int, int]:
    _, height, width = model.probe_size()
    grid: tuple[int, int] = model._grid(height, width)  # type: ignore[operator]
    return grid


# --- checks ----------------------------------------------------------------------


def _check_model(model: OpenModel, after: int) -> None:
    """Raise `Refused`, naming why, unless semantic tokens can run through the blocks from `after` on."""
    if type(model) not in (OpenViT, OpenT2TViT):
        raise Refused(
            f"stvit needs a plain vision transformer, this model is {type(model).__name__} (its blocks read where "
            "tokens are, or its stages merge patches); of Swin there are stvit_r_swin_tiny, _small and _base"
        )
    drop = getattr(model, "patch_drop", None)
    if getattr(drop, "prob", 0):
        raise Refused(f"patch_drop leaves out patches in training ({drop.prob}): stvit pools windows of the full grid")  # type: ignore[union-attr]
    for i, block in enumerate(model.blocks[after:]):
        if i < GENERATIONS and (type(block) is not Block or type(block.attn) is not Attention):
            kind = type(block).__name__ if type(block) is not Block else type(block.attn).__name__
            raise Refused(f"{block.name} is a {kind}: stvit generates in pre-norm blocks with plain attention")
        if i < GENERATIONS and list(block.steps()):
            raise Refused(f"{block.name} holds steps of another method: stvit puts a block of its own in its place")
        if i < GENERATIONS and block.attn.terms:
            raise Refused(f"{block.attn.name} holds score terms of another method: stvit gives it other keys")
        for attn in block.attentions():
            if attn.rotary is not None or any(getattr(term, "positional", False) for term in attn.terms):
                raise Refused(f"{attn.name} scores by where tokens are; semantic tokens have no place")


def _check_windows(grid: tuple[int, int], structure: Structure) -> tuple[int, int]:
    """The window (rows, columns) of a plan. Raises `BadInput` where it does not fit the grid."""
    window, samples = structure["window"], structure["samples"]
    if not isinstance(window, list | tuple) or len(window) != 2 or not all(is_whole(n, least=1) for n in window):
        raise BadInput(f"window is {window!r}; accepted: [rows, columns]")
    if any(side % size for side, size in zip(grid, window, strict=True)):
        raise BadInput(
            f"window is {window[0]}x{window[1]}; accepted: sides that divide the grid of {grid[0]}x{grid[1]} patches"
        )
    if not is_whole(samples, least=1, most=min(window)):
        raise BadInput(f"samples is {samples!r}; accepted: 1 to {min(window)}, the side of a window")
    return window[0], window[1]
