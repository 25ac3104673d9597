import io
import json

import pytest
import torch
from rich.console import Console
from tiny_training import make_model

from leanvit.errors import BadInput
from leanvit.training import FitConfig, JsonlLog, ProgressBar, fit


class Diary:
    """Notes every hook, with what a callback may rely on at that point."""

    def __init__(self):
        self.notes = []

    def start(self, run):
        self.notes.append(("start", run.step))

    def before_forward(self, run):
        self.notes.append(("before_forward", run.step, run.micro, run.epoch))

    def after_step(self, run):
        assert run.losses["loss"] > 0 and run.lr > 0
        self.notes.append(("after_step", run.step))

    def end_epoch(self, run):
        assert run.history[-1]["epoch"] == run.epoch
        self.notes.append(("end_epoch", run.epoch))

    def finish(self, run):
        self.notes.append(("finish", run.step))

    def close(self, run):
        self.notes.append(("close", run.step))


def test_hooks_come_in_order(data, preprocess):
    diary = Diary()
    config = FitConfig(epochs=2, batch_size=24, accumulate=2)
    fit(make_model(), data, preprocess=preprocess, config=config, callbacks=[diary])
    assert diary.notes == [
        ("start", 0),
        *[("before_forward", 0, 0, 0), ("before_forward", 0, 1, 0), ("after_step", 1)],
        *[("before_forward", 1, 0, 0), ("before_forward", 1, 1, 0), ("after_step", 2)],
        ("end_epoch", 0),
        *[("before_forward", 2, 0, 1), ("before_forward", 2, 1, 1), ("after_step", 3)],
        *[("before_forward", 3, 0, 1), ("before_forward", 3, 1, 1), ("after_step", 4)],
        ("end_epoch", 1),
        ("finish", 4),
        ("close", 4),
    ]


def test_close_comes_after_an_error_too(data, preprocess):
    class Failing(Diary):
        def after_step(self, run):
            raise RuntimeError("callback failed")

    failing = Failing()
    with pytest.raises(RuntimeError, match="callback failed"):
        fit(make_model(), data, preprocess=preprocess, config=FitConfig(batch_size=24), callbacks=[failing])
    assert failing.notes[-1] == ("close", 1)
    assert not any(note[0] == "finish" for note in failing.notes)


@pytest.mark.parametrize(
    ("callback", "text"), [(Diary, "the class Diary: give an instance"), (object(), "none of the methods.*after_step")]
)
def test_a_callback_that_would_never_be_called_is_refused(data, preprocess, callback, text):
    with pytest.raises(BadInput, match=text):
        fit(make_model(), data, preprocess=preprocess, config=FitConfig(), callbacks=[callback])


def test_log_holds_recipe_steps_and_epochs(data, val_data, preprocess, tmp_path):
    config = FitConfig(epochs=2, batch_size=24, lr=0.002)
    log = JsonlLog(tmp_path / "deep" / "log.jsonl", every=2)
    result = fit(make_model(), data, preprocess=preprocess, config=config, callbacks=[log], validate=val_data)
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in rows] == [
        *[("start", 0), ("step", 2), ("step", 4), ("epoch", 4), ("step", 6), ("step", 8), ("epoch", 8)]
    ]
    assert rows[0]["lr"] == 0.002 and rows[0]["total_steps"] == 8
    assert {"loss", "grad_norm", "lr", "epoch"} <= rows[1].keys()
    assert rows[3] == {"event": "epoch", **result.history[0]}
    assert rows[3]["top1"] == result.history[0]["top1"]


def test_log_interval_is_checked(tmp_path):
    with pytest.raises(BadInput, match="every is 0"):
        JsonlLog(tmp_path / "log.jsonl", every=0)


def test_progress_bar_shows_steps_loss_and_accuracy(data, val_data, preprocess):
    screen = io.StringIO()
    bar = ProgressBar(Console(file=screen, force_terminal=True, width=120))
    config = FitConfig(epochs=2, batch_size=24)
    fit(make_model(), data, preprocess=preprocess, config=config, callbacks=[bar], validate=val_data)
    shown = screen.getvalue()
    assert "epoch 2/2" in shown and "loss 1." in shown and "8/8" in shown and "top-1" in shown
    assert shown.rstrip("\n").endswith(("\x1b[?25h", "\x1b[2K"))  # the cursor is back, the bar is gone


class Stopping(Diary):
    def after_step(self, run):
        super().after_step(run)
        if run.step == 3:
            run.stop()


def test_a_callback_ends_the_run_and_a_resume_knows(data, val_data, preprocess, tmp_path):
    config = FitConfig(epochs=5, batch_size=48)  # 2 steps an epoch

    def trained(diary, **kw):
        given = {"preprocess": preprocess, "config": config, "validate": val_data, "out": tmp_path}
        return fit(make_model(), data, **given, callbacks=[diary], **kw), diary.notes

    result, notes = trained(Stopping())
    assert notes[-4:] == [("after_step", 3), ("end_epoch", 1), ("finish", 3), ("close", 3)]
    assert result.steps == 3 and [row["step"] for row in result.history] == [2, 3]
    assert result.last_score == result.history[1]["top1"]
    again, notes = trained(Stopping(), resume=True)
    assert notes == [("start", 3), ("finish", 3), ("close", 3)]
    assert again.steps == 3 and torch.equal(again.model.head.weight, result.model.head.weight)
    trained(Stopping())  # it is finished: a new run may take its folder


def test_gradients_are_there_after_the_step(data, preprocess):
    seen = []

    class Look:
        def after_step(self, run):
            norm = torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()])
            seen.append((norm.item(), run.losses["grad_norm"], run.grad_factor))

    def trained(**kw):
        seen.clear()
        config = FitConfig(epochs=1, batch_size=48, **kw)
        fit(make_model(), data, preprocess=preprocess, config=config, callbacks=[Look()])
        return list(seen)

    for norm, before, factor in trained(clip_grad=0.1):
        assert before > 0.1 and norm == pytest.approx(0.1, rel=1e-4) and factor * before == pytest.approx(norm)
    assert all(norm == pytest.approx(before) and factor == 1.0 for norm, before, factor in trained())
    for norm, before, factor in trained(amp="fp16"):
        assert norm == pytest.approx(before) and factor == 1.0 and norm < 10  # unscaled: the scale is 65536
