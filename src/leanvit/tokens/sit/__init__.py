"""SiT: self-slimmed vision transformer (Zong et al., ECCV 2022, arXiv 2111.12624).

After each stage of blocks a small module (TSM) turns all patch tokens into fewer ones, each a learned weighted mean of
all: half of them by default, then a quarter and an eighth. Prefix tokens pass. Counts are static, so exported graphs
are plain matrix products. A new module knows nothing: **off the shelf, without training, the model is useless**; give
`compress` a recovery.

The recovery learns by feature recalibration distillation (FRD), with the dense model as teacher: cross-entropy,
`token_weight` times the mean over all blocks of the squared distance between the teacher's patch tokens and the
student's, and `logit_weight` times the divergence of the logits. A reverse module (RTSM) for each slimmed block makes
as many tokens as the teacher has. It belongs to the objective: it is trained along at `lr_scale` times the rate,
resumes with the training, and is in no saved model. Distances are of residual streams as they are, without a norm: deep
blocks weigh more, as published.

Slots stand for no patches: no other token reduction may follow in later blocks (in earlier ones it may), and models
whose attention reads where tokens are (rotary positions, relative biases, windows) are refused. A mean over the patches
is one over the slots. Token maps show for each patch the slot that weighs it most. The TSM takes any number of patches
and gives as many tokens as before; another image size in the distillation is refused.

Departures: the published models slim LV-ViTs late (`sit_small`: after 9, 12 and 14 of 16 blocks,
`backbones/lv_vit.py`); the default here is at the quarters of any plain ViT, which costs half of the MACs. There is
no second, convolutional teacher: its official code does not run.
"""

from leanvit.tokens.sit.distillation import FeatureRecalibration, ReverseSlimming
from leanvit.tokens.sit.method import SiT

__all__ = ["FeatureRecalibration", "ReverseSlimming", "SiT"]
