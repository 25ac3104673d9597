"""T2T-ViT opened: a plain vision transformer behind a tokens-to-token module (arXiv 2101.11986)."""

from __future__ import annotations

from typing import Any

from torch import nn

from leanvit.anatomy.adapters import plain_vit
from leanvit.anatomy.adapters.parts import check_untouched, only
from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.families.vit import OpenViT
from leanvit.anatomy.parts.blocks import apply_norm
from leanvit.anatomy.state import State
from leanvit.anatomy.traced.rules import runs_whole
from leanvit.backbones.t2t_vit.model import T2TViT
from leanvit.backbones.t2t_vit.tokenizer import PerformerCell, TokensToToken, TransformerCell
from leanvit.errors import Refused

SUPPORTED = "T2T-ViT of leanvit (t2t_vit_*)"

_CHILDREN = {"tokens_to_token", "pos_drop", "blocks", "norm", "fc_norm", "head_drop", "head"}
_STEM = {"soft_split0", "soft_split1", "soft_split2", "attention1", "attention2", "project"}
_CELLS: dict[type, set[str]] = {  # class: children
    PerformerCell: {"norm1", "kqv", "proj", "proj_drop", "norm2", "mlp"},
    TransformerCell: {"norm1", "attn", "norm2", "mlp"},
}

close_family = plain_vit.close_family


class OpenT2TViT(OpenViT):
    """T2T-ViT: three soft splits, a cell of attention behind the first two, then the blocks of the plain family.

    What says `RUNS_WHOLE` runs as it is, in float, whatever the op set: cells with random features, and the softmax
    attention over thousands of tokens. The other steps of softmax cells run through the op set.
    """

    family = "t2t_vit"
    STEM = "tokens_to_token"
    tokens_to_token: Any

    @property
    def patch_embed(self) -> Any:
        return self.tokens_to_token

    def embed(self, images: Any, state: State) -> tuple[Any, State]:
        ops, t2t, at = state.ops, self.tokens_to_token, self.STEM
        x = ops.rearrange(f"{at}.soft_split0", images, lambda t: t2t.soft_split0(t).transpose(1, 2))
        for i, (stride, split) in enumerate(((4, t2t.soft_split1), (8, t2t.soft_split2)), start=1):
            x = _cell(ops, f"{at}.attention{i}", getattr(t2t, f"attention{i}"), x)
            x = ops.rearrange(f"{at}.soft_split{i}", x, _resplit(split, t2t.grid(stride)))
        return self._with_positions(ops.linear(f"{at}.project", t2t.project, x), state)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return super().group_matcher(coarse) | {"stem": r"^cls_token|tokens_to_token"}

    def sites(self) -> dict[str, nn.Module]:
        """Without the linears inside of cells that are one float step."""
        t2t = self.tokens_to_token
        whole = tuple(f"{self.STEM}.{name}." for name, part in t2t.named_children() if runs_whole(part))
        return {site: module for site, module in super().sites().items() if not site.startswith(whole or ("\0",))}

    def make(self) -> dict[str, Any]:
        t2t = self.tokens_to_token
        cells = {f"{self.STEM}.attention{i}": getattr(t2t, f"attention{i}").extra_repr() for i in (1, 2)}
        return super().make() | cells

    def input_size(self) -> tuple[int, int, int]:
        t2t = self.tokens_to_token
        return (t2t.in_chans, *t2t.img_size)

    def probe_size(self) -> tuple[int, int, int]:
        return self.input_size()


def _resplit(split: nn.Module, grid: tuple[int, int]) -> Any:
    """Tokens in rows to a map, and to overlapping windows of it, a token each."""
    return lambda t: split(t.transpose(1, 2).unflatten(2, grid)).transpose(1, 2)


def _cell(ops: Ops, at: str, cell: Any, x: Any) -> Any:
    """Attention whose skip comes from the values, and an MLP: (B, N, dim) -> (B, N, width)."""
    if runs_whole(cell):
        return cell(x)
    x = apply_norm(ops, f"{at}.norm1", cell.norm1, x)
    qkv, width = ops.linear(f"{at}.attn.qkv", cell.attn.qkv, x), cell.attn.proj.in_features
    values = ops.rearrange(f"{at}.attn.v", qkv, lambda t: t[..., 2 * width :])
    y = ops.linear(f"{at}.attn.proj", cell.attn.proj, cell.attn.mean(qkv))
    x = ops.add(f"{at}.add1", values, y)
    branch = apply_norm(ops, f"{at}.norm2", cell.norm2, x)
    branch = ops.act(f"{at}.mlp.act", cell.mlp.act, ops.linear(f"{at}.mlp.fc1", cell.mlp.fc1, branch))
    return ops.add(f"{at}.add2", x, ops.linear(f"{at}.mlp.fc2", cell.mlp.fc2, branch))


def understands(model: nn.Module) -> bool:
    return type(model) is T2TViT


def open_family(model: Any) -> OpenT2TViT:
    """Build the opened model around the children of a T2T-ViT. Raises `Refused`, naming what is not understood."""
    _check(model)
    extras = {"pos_drop": model.pos_drop, "patch_drop": nn.Identity(), "norm_pre": nn.Identity()}
    opened: OpenT2TViT = plain_vit.open_as(OpenT2TViT, model, extras=extras)
    return opened


def _check(model: Any) -> None:
    only("the model", dict(model.named_children()), _CHILDREN)
    only("the model", dict(model.named_parameters(recurse=False)), {"cls_token"})
    stem = model.tokens_to_token
    if type(stem) is not TokensToToken:
        raise Refused(f"tokens_to_token is a {type(stem).__name__}; supported: TokensToToken")
    only("tokens_to_token", dict(stem.named_children()), _STEM)
    if model.ends_alone or not isinstance(stem.project, nn.Linear):
        raise Refused("the model was fused for deployment: open it as it was before fuse()")
    for key in ("attention1", "attention2"):
        cell = getattr(stem, key)
        if type(cell) not in _CELLS:
            known = ", ".join(kind.__name__ for kind in _CELLS)
            raise Refused(f"tokens_to_token.{key} is a {type(cell).__name__}; supported: {known}")
        only(f"tokens_to_token.{key}", dict(cell.named_children()), _CELLS[type(cell)])
    check_untouched(model)
