"""STViT-R on Swin: the third stage computes on a few semantic tokens, and gives image tokens back (arXiv 2303.08685).

"Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023. In each dumbbell unit of six blocks,
windows of 7x7 image tokens are pooled to 3x3 semantic tokens, which become cluster centres by attention to the image
tokens around; two blocks run on them alone; then the image tokens are recovered by attention to them. All four maps
come out at their usual sizes, so the model serves detection and segmentation.

`stvit_r_swin_tiny`, `stvit_r_swin_small` and `stvit_r_swin_base` are the official STViT-R-Swin-T, -S and -B. Their
checkpoints (github.com/changsn/STViT-R, MIT) load by `checkpoint_filter_fn`; there are none here. The official flags
for 4x4 semantic tokens and for other layer scales never reach the model, so its published figures are of 3x3, and so
are ours. Semantic blocks have layer scale, Swin's have none. With `shortcut=False`, as published, the first semantic
block replaces the pooled tokens by 1e-5 of an attention: at the start of a training nearly nothing.

Windows of keys are spread evenly over the map, which fits 224 and 448 pixels at windows of 7; other sizes are refused.
`padded=True` is the form of the authors' detection repository for images of any size: windows are padded, keys are
those of windows around (2x2, 3x3, and 9x9 windows of semantic tokens), the shortcut is on and there are no global
centres. Two departures there: the official mask covers only the corner of the padding, and everything where nothing is
padded; here it covers exactly the padding. And projections are computed once for each token, not for each window.

The same idea on a plain ViT is a method: `stvit` (`leanvit.tokens.stvit.method`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Ge, Le
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from leanvit.errors import BadInput, is_whole
from leanvit.knobs import Count, Counts, Index, check, check_each
from leanvit.models.sizes import checked_size
from leanvit.models.stages import Stage, Staged, check_lengths, check_pool
from leanvit.tokens.stvit.parts import ConvStem, PatchMerging, SwinBlock, init_weights
from leanvit.tokens.stvit.unit import UNIT, SemanticStage

PATCH = 4  # the stem's stride


class STViTR(Staged):
    """STViT-R with Swin's stages around: (B, in_chans, H, W) -> (B, num_classes).

    Args:
        img_size: side or (H, W) that it is built for. It takes others where their geometry allows.
        embed_dim: channels of the first stage; each next one has twice as many.
        depths, num_heads: blocks and heads of each stage; the semantic stage has six blocks a unit.
        units: dumbbell units; None: as many as the semantic stage's depth gives. Else it has 6 x units blocks.
        semantic_stage: which stage holds them, counted from 0.
        window_size: side of windows. samples: side of the semantic tokens of each, at most `window_size`.
        key_margin: how much larger the windows of keys are a side.
        use_global, shortcut, conv_pos, relative_pos, padded: see `SemanticStage`.
        drop_path_rate: of the last block, rising from 0 at the first.

    Raises:
        BadInput: a value outside its range, or sizes that do not fit one another; names the argument.
    """

    OPENS = "leanvit.anatomy.adapters.hybrid"

    LEVELS = "layers"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        units: int | None = None,
        semantic_stage: int = 2,
        samples: int = 3,
        key_margin: int = 3,
        use_global: bool = False,
        shortcut: bool = False,
        conv_pos: bool = False,
        relative_pos: bool = False,
        padded: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_pool(global_pool)
        depths = _checked_depths(depths, num_heads, units, semantic_stage)
        _check_widths(embed_dim, num_heads)
        _check_tokens(window_size, samples, key_margin)
        _check_padded(padded, use_global=use_global, relative_pos=relative_pos)
        self.img_size, self.window_size, self.padded = checked_size(img_size), window_size, padded
        self.in_chans, self.num_classes, self.global_pool = in_chans, num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim * 2 ** (len(depths) - 1)
        self.reduction = PATCH * 2 ** (len(depths) - 1)
        self._check_size(*self.img_size)
        self.patch_embed = ConvStem(in_chans, embed_dim)
        rates: Any = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        self.layers = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = []
        for i, depth in enumerate(depths):
            dim = embed_dim * 2**i
            merging = PatchMerging(dim // 2, dim) if i else None
            drop_paths = [next(rates) for _ in range(depth)]
            hidden = int(dim * mlp_ratio)
            if i == semantic_stage:
                height, width = (-(-side // (PATCH * 2**i)) for side in self.img_size)
                stage: nn.Module = SemanticStage(
                    merging,
                    dim,
                    num_heads[i],
                    hidden,
                    drop_paths,
                    grid=(height, width),
                    window=window_size,
                    samples=samples,
                    key_margin=key_margin,
                    use_global=use_global,
                    shortcut=shortcut,
                    conv_pos=conv_pos,
                    relative_pos=relative_pos,
                    padded=padded,
                )
            else:
                shifts = [0 if j % 2 == 0 else window_size // 2 for j in range(depth)]
                blocks = [
                    SwinBlock(dim, num_heads[i], window_size, shift, hidden, rate)
                    for shift, rate in zip(shifts, drop_paths, strict=True)
                ]
                stage = Stage(merging, blocks)
            self.layers.append(stage)
            self.feature_info.append({"num_chs": dim, "reduction": PATCH * 2**i, "module": f"layers.{i}"})
        self.norm = nn.LayerNorm(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_weights)

    def stemmed(self, x: Tensor) -> Tensor:
        """Raises `BadInput` for a size that only the padded form takes."""
        out: Tensor = self.patch_embed(self.sized(x))
        return out

    def accepts(self) -> tuple[int, tuple[int, int] | None, str]:
        text = f"; accepted: sides divisible by {self.reduction}, or any with padded=True"
        return 1 if self.padded else self.reduction, None, text

    def no_weight_decay(self) -> set[str]:
        """Tables of relative positions (biases, norms and layer scales are left out by their shape)."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise learning rates: by stage (`coarse`) or by block."""
        fine = [
            (r"^layers\.(\d+)\.(?:downsample|centres)", (0,)),
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else fine}

    def _check_size(self, height: Any, width: Any) -> None:
        multiple, _, accepted = self.accepts()
        if height % multiple or width % multiple:
            raise BadInput(f"images are {height}x{width}{accepted}")


# --- checks ---------------------------------------------------------------------------------------


def _checked_depths(depths: Any, num_heads: Any, units: Any, stage: Any) -> tuple[int, ...]:
    """The depths, with that of the semantic stage from `units` where it is given."""
    check_each(Counts, depths=depths, num_heads=num_heads)
    check_lengths(depths=depths, num_heads=num_heads)
    check("semantic_stage", stage, Annotated[int, Ge(0), Le(len(depths) - 1)])
    check("units", units, Count | None)
    if units is not None:
        return (*depths[:stage], UNIT * units, *depths[stage + 1 :])
    if depths[stage] % UNIT:
        raise BadInput(
            f"depths[{stage}] is {depths[stage]}; accepted for the semantic stage: a multiple of {UNIT}, the blocks of "
            "a dumbbell unit"
        )
    return tuple(depths)


def _check_widths(embed_dim: Any, num_heads: Sequence[int]) -> None:
    if not is_whole(embed_dim, least=2) or embed_dim % 2:
        raise BadInput(f"embed_dim is {embed_dim!r}; accepted: an even whole number, 2 or more")
    for i, heads in enumerate(num_heads):
        if embed_dim * 2**i % heads:
            raise BadInput(f"num_heads[{i}] is {heads}, which does not divide the stage's {embed_dim * 2**i} channels")


def _check_tokens(window: Any, samples: Any, margin: Any) -> None:
    check("window_size", window, Annotated[int, Ge(2)])
    check("samples", samples, Annotated[int, Ge(1), Le(window)])
    check("key_margin", margin, Index)


def _check_padded(padded: Any, **tied: Any) -> None:
    check_each(bool, padded=padded, **tied)
    for name, value in tied.items():
        if padded and value:
            raise BadInput(f"{name}=True belongs to one size of the map, padded=True takes any: give one of the two")
