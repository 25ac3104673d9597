"""Vision transformers with rotary positions or relative biases: what they have besides the plain family."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from leanvit.anatomy.families.vit import OpenViT
from leanvit.anatomy.state import State


class OpenEva(OpenViT):
    """timm's `Eva`: EVA, EVA-02, ROPE-ViT, DINOv3, perception encoders. `rope` makes the table of positions."""

    family = "eva"
    POOL_READS_PREFIX = True
    JOINS_ALONE = False
    rope: Any
    patch_drop: Any

    def embed(self, images: Any, state: State) -> tuple[Any, State]:
        if self.rope is not None:
            cached = not self.dynamic_img_size and hasattr(self.rope, "feat_shape")
            table = self.rope.get_embed() if cached else self.rope.get_embed(shape=state.grid)
            state = state.with_(rope=table, positional=True)
        return super().embed(images, state)

    @property
    def reads_positions(self) -> bool:
        return self.rope is not None or super().reads_positions

    def _dropped(self, x: Any, state: State, *, placed: bool) -> tuple[Any, State]:
        return super()._dropped(x, state, placed=True)

    def no_weight_decay(self) -> set[str]:
        own = self.rope.no_weight_decay() if hasattr(self.rope, "no_weight_decay") else set()
        return {"pos_embed", "cls_token", "reg_token", *(f"rope.{name}" for name in own)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return super().group_matcher(coarse) | {"stem": r"^cls_token|reg_token|pos_embed|patch_embed|norm_pre"}

    def make(self) -> dict[str, Any]:
        made = super().make()
        plain = (bool, int, float, str, tuple, list)
        for key, value in vars(self.rope).items() if self.rope is not None else ():
            if not key.startswith("_") and key != "training" and isinstance(value, plain):
                made[f"rope.{key}"] = tuple(value) if isinstance(value, list) else value
        for block in self.blocks:
            made |= {f"{attn.name}.rotary": attn.rotary for attn in block.attentions()}
        return made


class OpenRelViT(OpenViT):
    """timm's `VisionTransformerRelPos` and `Beit`: biases of relative positions, of each attention or shared by all."""

    family = "vit_relpos"
    JOINS_ALONE = False
    POOLS: ClassVar[tuple[str, ...]] = ("", "avg", "token")
    shared_rel_pos: Any  # of VisionTransformerRelPos
    rel_pos_bias: Any  # of Beit

    @property
    def reads_positions(self) -> bool:
        return True

    def embed(self, images: Any, state: State) -> tuple[Any, State]:
        return super().embed(images, state.with_(positional=True, position_bias=self._shared_bias()))

    def _shared_bias(self) -> Tensor | None:
        if self._modules.get("shared_rel_pos") is not None:
            shared: Tensor = self.shared_rel_pos.get_bias()  # (1, H, N, N)
            return shared
        if self._modules.get("rel_pos_bias") is None:
            return None
        bias: Tensor = self.rel_pos_bias()  # (H, N, N): left so, a fourth dimension would choose another fused kernel
        return bias

    def _dropped(self, x: Any, state: State, *, placed: bool) -> tuple[Any, State]:
        return super()._dropped(x, state, placed=True)

    def no_weight_decay(self) -> set[str]:
        tables = {name for name, _ in self.named_parameters() if "relative_position_bias_table" in name}
        return {"pos_embed", "cls_token"} | (tables if "rel_pos_bias" in self._modules else set())  # Beit's rule only

    def sites(self) -> dict[str, nn.Module]:
        """Without the small MLP that makes a bias (`RelPosMlp`): no image goes through it."""
        return {site: module for site, module in super().sites().items() if "rel_pos." not in site}
