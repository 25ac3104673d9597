"""Layer 0: the vision transformer written once (operations, score pipeline, state, adapters)."""

from leanvit.anatomy.adapters import close_model, open_model
from leanvit.anatomy.arithmetic.ops import TORCH, Ops
from leanvit.anatomy.arithmetic.score import Phases, attend, score_rows
from leanvit.anatomy.families.swin import OpenSwin
from leanvit.anatomy.families.vit import OpenViT
from leanvit.anatomy.model import OpenModel
from leanvit.anatomy.parts.blocks import Attention, Block, Mlp, Step
from leanvit.anatomy.parts.maps import MapSizes
from leanvit.anatomy.state import State

__all__ = [
    "TORCH",
    "Attention",
    "Block",
    "MapSizes",
    "Mlp",
    "OpenModel",
    "OpenSwin",
    "OpenViT",
    "Ops",
    "Phases",
    "State",
    "Step",
    "attend",
    "close_model",
    "open_model",
    "score_rows",
]
