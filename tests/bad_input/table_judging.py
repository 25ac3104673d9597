"""What models are judged by: unknown tasks and fields, tasks that model or data do not fit, models of several."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn
from wrong import NAME, Case, Cli, tiny

import leanvit
from leanvit.measure.judged import judge_all
from leanvit.tasks import Classification, Heads, Segmentation

VERBS: dict[str, tuple[str, ...]] = {
    "train": ("train", NAME, "--data", "digits", "--adapt"),
    "compress": ("compress", "run", "--with", "tome:r=1", "--data", "digits", "--out", "new"),
    "measure": ("measure", "run", "--data", "digits"),
    "compare-methods": ("compare-methods", "run", "--data", "digits"),
    "publish": ("publish", "run", "--data", "digits", "--out", "new"),
}

CLI = [
    *(
        Cli(f"task {verb}", (*argv, "--task", "segmentatio"), ("unknown task 'segmentatio'", "did you mean 'segmen"))
        for verb, argv in VERBS.items()
    ),
    *(
        Cli(
            f"task that the model does not fit, {verb}",
            (*argv, "--task", "segmentation"),
            ("segmentation", "needs the field 'mask' of every sample|gives one answer an image"),
        )
        for verb, argv in VERBS.items()
    ),
    Cli(
        "field of a task",
        (*VERBS["measure"], "--task", "segmentation:ignor=3"),
        ("the task segmentation has no field 'ignor'", "did you mean 'ignore'"),
    ),
    Cli(
        "task without =",
        (*VERBS["publish"], "--task", "segmentation:ignore"),
        ("--task segmentation takes field=value",),
    ),
    Cli(
        "task of a dry run",
        ("train", NAME, *tiny(), "--data", "digits", "--adapt", "--dry-run", "--task", "segmentation"),
        ("needs the field 'mask'|gives one answer an image",),
    ),
]


class Says(nn.Module):
    """A runner with a task."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: Tensor) -> Tensor:
        return images


def _compare(*given: Any, **more: Any) -> object:
    return leanvit.compare({f"model {n}": Says(task) for n, task in enumerate(given)}, iter(()), rounds=3, **more)


def _outputs(made: Any) -> object:
    batch = type("B", (), {"images": torch.zeros(2, 1, 4, 4), "keys": ["a", "b"], "fields": {}})()
    return judge_all(Segmentation(), {"lean": lambda images: made}, [batch])


CASES = [
    Case("compare, task", lambda: _compare(None, task=3), ("task is a int", "accepted: a task")),
    Case("compare, text of a task", lambda: _compare(None, task="segmentatio"), ("did you mean .segmentation",)),
    Case(
        "compare, tasks of models",
        lambda: _compare(Classification(), Segmentation()),
        ("by one task", "model 0 is Classification", "model 1 Segmentation", "one by one"),
    ),
    Case(
        "outputs that are text", lambda: _outputs("x"), ("lean: .* first axis is the image, 2 .* returned str", "'a'")
    ),
    Case("outputs of another length", lambda: _outputs([torch.zeros(3, 1)]), ("it returned shape \\(3, 1\\)",)),
    Case(
        "outputs that are not finite",
        lambda: _outputs({"x": torch.tensor([[0.0], [float("nan")]])}),
        ("lean: outputs are not finite for 1 of 2 images: 'b'",),
    ),
    *(
        Case(f"task of {verb}", call, ("task is a int; accepted: a task",))
        for verb, call in (
            ("fit", lambda: leanvit.fit(_tiny(), _digits(), preprocess=_seen(), config=leanvit.FitConfig(), task=3)),
            ("export", lambda: leanvit.export(_tiny(), "new", preprocess=_seen(), task=3)),
            ("predict", lambda: leanvit.predict(_tiny(), "digits", preprocess=_seen(), task=3)),
        )
    ),
    Case("model.at, no heads", lambda: _tiny().at("mask"), ("no heads by name", "'mask'")),
    Case(
        "model.at, another head",
        lambda: _tiny(Heads({"digit": Classification()})).at("digits"),
        ("unknown head 'digits'", "did you mean 'digit'"),
    ),
]


def _tiny(task: Any = None) -> Any:
    kwargs = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 1, "num_classes": 2}
    model = leanvit.open_model(timm.create_model(NAME, **kwargs))
    model.task = task
    return model


def _digits() -> Any:
    return leanvit.open_dataset("digits", "train")


def _seen() -> Any:
    return leanvit.Preprocess.of(_tiny())
