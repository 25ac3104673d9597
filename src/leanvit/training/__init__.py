"""Training: one readable loop, objectives, callbacks, and state that a killed run resumes from exactly."""

from leanvit.training.assemble import check_run
from leanvit.training.callbacks import JsonlLog, ProgressBar, Run
from leanvit.training.config import FitConfig
from leanvit.training.engine import FitResult, NonFiniteLoss, fit
from leanvit.training.objectives import (
    BinaryCrossEntropy,
    BinaryDistillation,
    CrossEntropy,
    Distillation,
    HardDistillation,
    Loss,
    Objective,
    SoftDistillation,
)
from leanvit.training.recovery import RECOVERY, recover
from leanvit.training.schedule import lr_at
from leanvit.training.signals import Interrupted
from leanvit.training.timm_task import TimmTask
from leanvit.training.validating import top1_accuracy
from leanvit.training.world import World, join_world

__all__ = [
    "RECOVERY",
    "BinaryCrossEntropy",
    "BinaryDistillation",
    "CrossEntropy",
    "Distillation",
    "FitConfig",
    "FitResult",
    "HardDistillation",
    "Interrupted",
    "JsonlLog",
    "Loss",
    "NonFiniteLoss",
    "Objective",
    "ProgressBar",
    "Run",
    "SoftDistillation",
    "TimmTask",
    "World",
    "check_run",
    "fit",
    "join_world",
    "lr_at",
    "recover",
    "top1_accuracy",
]
