"""A validation whose score is no figure: it is left out of the history, told, and never the best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny_training import make_model
from torch import Tensor
from torch.nn import functional as F

from leanvit.data import Batch
from leanvit.tasks import Metric, Task, registry, task
from leanvit.training import FitConfig, fit


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Task]]:
    """A task whose score is no figure in the first two epochs."""
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    figures = iter((float("nan"), float("inf"), 3.0))

    @task("odd")
    class Odd(Task):
        needs: ClassVar[tuple[str, ...]] = ("label",)
        metrics: ClassVar[tuple[Metric, ...]] = (Metric("r", "r", better="lower", unit=""), Metric("one", "one"))

        def loss(self, outputs: Any, batch: Batch) -> Tensor:
            return F.cross_entropy(outputs, batch["label"])

        def rows(self, outputs: Any, batch: Batch) -> np.ndarray:
            return np.ones((len(batch.keys), 1))

        def score(self, rows: Any, weights: np.ndarray | None = None, metric: str = "") -> np.ndarray:
            return np.ones(1) if metric == "one" else np.array([next(figures)])

    yield Odd


def test_it_is_left_out_and_told_and_never_the_best(odd, data, val_data, preprocess, tmp_path):
    config, given = FitConfig(epochs=3, batch_size=16), {"preprocess": preprocess, "validate": val_data}
    with pytest.warns(UserWarning, match=r"validation of epoch [12]: r is (nan|inf), which is no figure") as told:
        result = fit(make_model(), data, config=config, task=odd(), out=tmp_path, keep="best", **given)
    assert len([one for one in told if "no figure" in str(one.message)]) == 2
    assert [row.get("r") for row in result.history] == [None, None, 3.0] and all(
        row["one"] == 1 for row in result.history
    )
    assert result.score == result.best_score == 3.0 and result.best_epoch == 3
    assert "nan" not in (tmp_path / "train.jsonl").read_text().lower()
    assert torch.isfinite(next(result.final.parameters())).all()
