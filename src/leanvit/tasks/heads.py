"""Several tasks in one model: outputs are a mapping, one entry a head, each of which has a task of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from leanvit.data import AnyDataset, Batch
from leanvit.errors import BadInput, unknown
from leanvit.tasks.metric import Metric, Rows, metric_of
from leanvit.tasks.registry import make_task, task, task_names
from leanvit.tasks.task import Task


@task("heads")
@dataclass(frozen=True)
class Heads(Task):
    """A task for each head by its name, as the model's outputs name them: `Heads({"class": ..., "angle": ...})`.

    The loss is the sum of the heads' losses, and so is the divergence. The score is that of the first head; the others
    are told beside it, as `angle.top1`.
    """

    tasks: Mapping[str, Any]  # a task, or its JSON, by the name of its head

    words: ClassVar[str] = "of several tasks"

    def __post_init__(self) -> None:
        """Raises `BadInput` for no head, or a value that is no task."""
        if not isinstance(self.tasks, Mapping) or not self.tasks:
            raise BadInput(f"tasks is {self.tasks!r:.80}; accepted: a task by the name of each head")
        made = {name: make_of(one) for name, one in self.tasks.items()}
        for name, one in made.items():
            if not isinstance(name, str) or not name.isidentifier() or not isinstance(one, Task):
                raise BadInput(f"tasks[{name!r}] is a {type(one).__name__}; accepted: a task by a Python name")
            if isinstance(one, Heads):
                raise BadInput(f"head {name!r} is of several tasks itself; accepted: the task of one head")
            if one.gathers:
                raise BadInput(f"head {name!r}: the task {one.name} needs all rows at once, and heads are summed")
        object.__setattr__(self, "tasks", made)

    def __hash__(self) -> int:
        return hash(tuple(self.tasks.items()))

    @property
    def metrics(self) -> tuple[Metric, ...]:  # type: ignore[override]
        return tuple(
            replace(one, name=f"{name}.{one.name}", title=f"{name}: {one.title}")
            for name, of in self.tasks.items()
            for one in of.metrics
        )

    @property
    def judges(self) -> bool:
        return all(one.judges for one in self.tasks.values())

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(field for one in self.tasks.values() for field in one.reads))

    def fitted(self, dataset: AnyDataset) -> Self:
        return type(self)({name: one.fitted(dataset) for name, one in self.tasks.items()})

    def at(self, name: str) -> Task:
        """The task of a head. Raises `BadInput` for one that there is not."""
        if name not in self.tasks:
            raise unknown("head", name, self.tasks)
        found: Task = self.tasks[name]
        return found

    def problems(self, model: Any, dataset: Any) -> Iterator[str]:
        for name, one in self.tasks.items():
            for problem in one.problems(None, dataset):
                yield f"head {name!r}: {problem}"

    def spread(self, outputs: Any) -> int:
        return sum(one.spread(self._of(outputs, name)) for name, one in self.tasks.items())

    def check_distillation(self, kind: str) -> None:
        """Raise `BadInput` for a kind that they do not have together, or that a head does not have."""
        super().check_distillation(kind)
        for one in self.tasks.values():
            one.check_distillation(kind)

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        return _sum([one.loss(self._of(outputs, name), batch) for name, one in self.tasks.items()], batch)

    def terms(self, batch: Batch) -> int | tuple[int, ...] | None:
        """None where all heads' losses are means over images; else how many things each head's is the mean of."""
        counts = [one.terms(batch) for one in self.tasks.values()]
        if len(counts) == 1 or all(one is None for one in counts):
            return counts[0]
        return tuple(len(batch) if one is None else one for one in counts)

    def divergence(self, outputs: Any, taught: Any, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        apart = [
            one.divergence(self._of(outputs, name), self._of(taught, name), batch, temperature=temperature)
            for name, one in self.tasks.items()
        ]
        return _sum(apart, batch)

    def rows(self, outputs: Any, batch: Batch) -> dict[str, Rows]:
        return {name: one.rows(self._of(outputs, name), batch) for name, one in self.tasks.items()}

    def score(self, rows: Any, weights: np.ndarray | None = None, metric: str = "") -> np.ndarray:
        head, own = self._named(metric)
        return self.tasks[head].score(rows[head], weights, own)

    def interval(self, rows: Any, metric: str = "", *, level: float = 0.95) -> Any:
        head, own = self._named(metric)
        return self.tasks[head].interval(rows[head], own, level=level)

    def change(self, before: Any, after: Any, *, level: float = 0.95) -> Any:
        head = next(iter(self.tasks))
        return self.tasks[head].change(before[head], after[head], level=level)

    def answers(self, outputs: Any) -> dict[str, Any]:
        return {name: one.answers(self._of(outputs, name)) for name, one in self.tasks.items()}

    def sized(self, outputs: Any, size: Sequence[int]) -> dict[str, Any]:
        return {name: one.sized(self._of(outputs, name), size) for name, one in self.tasks.items()}

    def agreement(self, one: Any, other: Any, *, level: float = 0.95) -> Any:
        head = next(iter(self.tasks))
        return self.tasks[head].agreement(one[head], other[head], level=level)

    def columns(self, answer: Any, classes: Sequence[str]) -> dict[str, Any]:
        return {
            f"{head}_{name}": value
            for head, one in self.tasks.items()
            for name, value in one.columns(answer[head], one.classes).items()
        }

    def picture(self, answer: Any) -> np.ndarray | None:
        """The map of the first head that has one."""
        pictures = (one.picture(answer[name]) for name, one in self.tasks.items() if answer[name] is not None)
        return next((one for one in pictures if one is not None), None)

    @property
    def map_classes(self) -> tuple[str, ...]:
        drawn = (one for one in self.tasks.values() if type(one).picture is not Task.picture)
        return next((one.map_classes for one in drawn), ())

    def truth(self, batch: Batch) -> dict[str, Any]:
        return {name: one.truth(batch) for name, one in self.tasks.items()}

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "tasks": {name: one.to_json() for name, one in self.tasks.items()}}

    def _named(self, metric: str) -> tuple[str, str]:
        head, _, own = metric_of(self.metrics, metric).name.partition(".")
        return head, own

    def _of(self, outputs: Any, name: str) -> Any:
        if not isinstance(outputs, Mapping) or name not in outputs:
            has = ", ".join(outputs) if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"
            raise BadInput(f"the outputs have no head {name!r} (the model gave {has}); accepted: a mapping of heads")
        return outputs[name]


def make_of(given: Any) -> Any:
    """A task of its JSON; any other value as it is. Raises `BadInput` for a task that is not registered."""
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        return given
    own, module = given["name"], given.get("module", "")
    if module and own not in task_names():
        raise BadInput(
            f"its task {own!r} is not leanvit's, it was registered by the module {module!r}: import that module "
            f"before loading, on the command line with leanvit --import {module!r}"
        )
    return make_task(own, {name: value for name, value in given.items() if name not in ("name", "module")})


def _sum(losses: Sequence[Tensor], batch: Batch) -> Tensor:
    """The sum of the heads' means, each scaled to the share of its things that this batch has of the step."""
    scaled = [scale * loss for scale, loss in zip(batch.scales, losses, strict=True)] if batch.scales else losses
    return sum(scaled[1:], start=scaled[0])


class Head(nn.Module):
    """A runner of one head of a model with several: all of the model runs, one head's outputs come back."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        found: Any = getattr(model, "task", None)
        if not isinstance(found, Heads):
            raise BadInput(f"the model has no heads by name; accepted: one whose task is Heads, for {name!r}")
        self.model, self.head, self.task = model, name, found.at(name)
        self.classes = tuple(self.task.classes)
        self.preprocess = getattr(model, "preprocess", None)

    def forward(self, images: Any, **context: Any) -> Any:
        """(B, C, H, W) -> the outputs of the head."""
        return self.model(images, **context)[self.head]
