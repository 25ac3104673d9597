"""Training: one readable loop, objectives, callbacks, and state that a killed run resumes from exactly."""

from leanvit.tasks.objectives import (
    BinaryCrossEntropy,
    BinaryDistillation,
    CrossEntropy,
    Distillation,
    HardDistillation,
    Loss,
    Objective,
    SoftDistillation,
)
from leanvit.tasks.task_loss import TaskLoss
from leanvit.training.assemble import check_run
from leanvit.training.callbacks import JsonlLog, ProgressBar, Run
from leanvit.training.config import FitConfig
from leanvit.training.engine import FitResult, fit
from leanvit.training.presets import load_train_recipe, preset, preset_names
from leanvit.training.recovery import RECOVERY, recover
from leanvit.training.schedule import lr_at
from leanvit.training.signals import Interrupted
from leanvit.training.step import NonFiniteLoss
from leanvit.training.teachers import Distill, as_seen_by
from leanvit.training.tensorboard import TensorBoardLog
from leanvit.training.timm_task import TimmTask
from leanvit.training.train_recipe import TrainRecipe
from leanvit.training.validating import top1_accuracy
from leanvit.training.whole_batch import WholeBatch
from leanvit.training.world import World, join_world

__all__ = [
    "RECOVERY",
    "BinaryCrossEntropy",
    "BinaryDistillation",
    "CrossEntropy",
    "Distill",
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
    "TaskLoss",
    "TensorBoardLog",
    "TimmTask",
    "TrainRecipe",
    "WholeBatch",
    "World",
    "as_seen_by",
    "check_run",
    "fit",
    "join_world",
    "load_train_recipe",
    "lr_at",
    "preset",
    "preset_names",
    "recover",
    "top1_accuracy",
]
