"""What a training says of its cost, and that saying it changes nothing."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "training"))
from tiny_training import make_data, make_model, make_preprocess

from leanvit.training import FitConfig, fit
from leanvit.verbs.progress import QUIET, TIMED, Cost, EpochLines, duration, meter

CONFIG = FitConfig(epochs=2, batch_size=8, accumulate=2)


class EndsAt:
    """As methods that stop a run: they say when."""

    def start(self, run) -> None:
        run.ends_at = 5

    def after_step(self, run) -> None:
        if run.step >= 5:
            run.stop()


def trained(*callbacks: object) -> dict[str, torch.Tensor]:
    fit(model := make_model(), make_data(96), preprocess=make_preprocess(), config=CONFIG, callbacks=callbacks)
    return model.state_dict()


def test_steps_come_first_then_the_time_of_timed_ones() -> None:
    said: list[str] = []
    with_cost, without = trained(Cost(said.append), EpochLines(said.append)), trained()
    assert all(torch.equal(with_cost[name], without[name]) for name in without)
    assert said[0] == "training: 2 epochs, 12 steps of 16 images"
    assert said[1].startswith("training: about ") and "s a step, validation not counted" in said[1]
    assert "left" in said[2] and said[2].startswith("epoch 1 of 2") and "left" not in said[3]


def test_one_that_ends_earlier_says_where() -> None:
    said: list[str] = []
    trained(EndsAt(), Cost(said.append))
    assert said[0] == "training: 1 epoch, 5 steps of 16 images" and TIMED < 5 and len(said) == 2 - (TIMED + 1 == 5)


@pytest.mark.parametrize(("seconds", "text"), [(4, "4.0 s"), (90, "1.5 min"), (9000, "2.5 h"), (200000, "2.3 days")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counted_work_says_now_and_then_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off a terminal: a line every half minute, the time left by the mean of what is done; nothing of short work."""
    clock, said = [0.0], list[str]()
    monkeypatch.setattr("leanvit.verbs.progress.time.perf_counter", lambda: clock[0])
    with meter(said.append)("calibrating", 40) as done:
        for number in range(1, 41):
            clock[0] += QUIET / 10
            done(number)
    assert said == [
        "calibrating: 10 of 40 done, about 1.5 min left",
        "calibrating: 20 of 40 done, about 1.0 min left",
        "calibrating: 30 of 40 done, about 30.0 s left",
    ]


def test_counted_work_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    said: list[str] = []
    with meter(said.append)("choosing", 3) as done:
        done(3)
    assert "choosing" in shown.getvalue() and "3/3" in shown.getvalue() and not said
