"""Floor 0: the vision transformer written once (operations, score pipeline, state, adapters)."""

from leanvit.anatomy.adapters import close_model, open_model
from leanvit.anatomy.blocks import Attention, Block, Mlp, Step
from leanvit.anatomy.model import OpenModel
from leanvit.anatomy.ops import TORCH, Ops
from leanvit.anatomy.score import Phases, attend, score_rows
from leanvit.anatomy.state import State
from leanvit.anatomy.swin import OpenSwin
from leanvit.anatomy.vit import OpenViT

__all__ = [
    "TORCH",
    "Attention",
    "Block",
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
