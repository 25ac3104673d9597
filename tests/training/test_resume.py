"""Stopping and resuming: the run that was interrupted ends as the one that was not."""

import os
import signal

import pytest
import torch
from everything import EVERYTHING, At, Killed, assert_same_weights, kill, run_everything, without_seconds
from processes import run_on
from test_loop import Overflowing
from tiny_training import make_data, make_model, make_preprocess
from torch import nn

from leanvit.training import CrossEntropy, FitConfig, Interrupted, Loss, fit
from leanvit.training.validating import validated


@pytest.fixture(scope="module")
def whole(data, val_data, preprocess):
    """The run of EVERYTHING that nothing interrupts."""
    return run_everything(data, preprocess, val_data)


@pytest.mark.parametrize("step", [1, 3, 4, 7, 12])
def test_killed_and_resumed_is_bit_identical(data, val_data, preprocess, whole, tmp_path, step):
    with pytest.raises(Killed):
        run_everything(data, preprocess, val_data, out=tmp_path, callbacks=[At(step, kill)])
    resumed = run_everything(data, preprocess, val_data, out=tmp_path, resume=True)
    assert_same_weights(resumed.model, whole.model)
    assert_same_weights(resumed.ema, whole.ema)
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    assert resumed.best_score == whole.best_score
    assert resumed.best_weights == tmp_path / "training" / "best.safetensors" and resumed.best_weights.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_very_step(data, val_data, preprocess, whole, tmp_path, number):
    stop = At(7, lambda run: os.kill(os.getpid(), number))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"after step 7 of 12; the state is saved in .*resume=True.*--resume"):
        run_everything(data, preprocess, val_data, out=tmp_path, callbacks=[stop])
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))

    first = []
    resumed = run_everything(
        data, preprocess, val_data, out=tmp_path, resume=True, callbacks=[At(8, lambda run: first.append(run.step))]
    )
    assert first == [8] and resumed.steps == 12
    assert_same_weights(resumed.model, whole.model)
    assert_same_weights(resumed.ema, whole.ema)


def test_a_signal_during_validation_does_not_lose_the_epoch(data, val_data, preprocess, whole, tmp_path, monkeypatch):
    from leanvit.training import engine

    def interrupted(run, validate, *, stop):
        if run.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return validated(run, validate, stop=stop)

    monkeypatch.setattr(engine, "validated", interrupted)
    with pytest.raises(Interrupted, match="after step 8 of 12"):
        run_everything(data, preprocess, val_data, out=tmp_path)
    monkeypatch.undo()
    resumed = run_everything(data, preprocess, val_data, out=tmp_path, resume=True)
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    assert_same_weights(resumed.ema, whole.ema)


def test_a_signal_after_the_last_step_is_not_swallowed(data, preprocess, tmp_path):
    class AtTheEnd:
        def end_epoch(self, run):
            if run.epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after step 12 of 12"):
        run_everything(data, preprocess, out=tmp_path, callbacks=[AtTheEnd()])


def test_a_second_signal_interrupts_at_once(data, preprocess, tmp_path):
    def twice(run):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as error:
        run_everything(data, preprocess, out=tmp_path, callbacks=[At(3, twice)])
    assert not isinstance(error.value, Interrupted)


def test_interrupted_without_out_says_that_nothing_was_saved(data, preprocess):
    with pytest.raises(Interrupted, match="after step 2 of 12; nothing was saved"):
        run_everything(data, preprocess, callbacks=[At(2, lambda run: os.kill(os.getpid(), signal.SIGINT))])


def die_everything(out):
    die = At(7, lambda run: os.kill(os.getpid(), signal.SIGKILL))
    run_everything(make_data(96), make_preprocess(), make_data(64, split="val"), out=out, callbacks=[die])


def test_sigkill_and_resume_is_bit_identical(data, val_data, preprocess, whole, tmp_path):
    """As the machine does it: the process dies without a word, at a step that was not saved."""
    assert run_on(1, die_everything, tmp_path) == [-signal.SIGKILL]
    resumed = run_everything(data, preprocess, val_data, out=tmp_path, resume=True)
    assert_same_weights(resumed.model, whole.model)
    assert_same_weights(resumed.ema, whole.ema)


def test_objective_state_is_resumed(data, preprocess, tmp_path):
    class Centred(CrossEntropy):
        """Adds a running centre of the logits, kept in a buffer, and a learned bias."""

        def __init__(self):
            super().__init__()
            self.register_buffer("centre", torch.zeros(4))
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, model, batch, step, context):
            logits = model(batch.images, **context)
            self.centre = 0.9 * self.centre + 0.1 * logits.detach().mean(0)
            return Loss(self.of(logits - self.centre + self.bias, batch.targets))

    config = FitConfig(epochs=2, batch_size=24, lr=1e-2, save_every=1)

    def trained(**kwargs):
        objective = Centred()
        fit(make_model(), data, preprocess=preprocess, config=config, objective=objective, **kwargs)
        return objective

    uninterrupted = trained()
    with pytest.raises(Killed):
        trained(out=tmp_path, callbacks=[At(3, kill)])
    resumed = trained(out=tmp_path, resume=True)
    assert torch.equal(resumed.centre, uninterrupted.centre) and resumed.centre.abs().sum() > 0
    assert torch.equal(resumed.bias, uninterrupted.bias) and resumed.bias.abs().sum() > 0


def test_resuming_a_finished_run_changes_nothing(data, val_data, preprocess, whole, tmp_path):
    run_everything(data, preprocess, val_data, out=tmp_path)
    again = run_everything(data, preprocess, val_data, out=tmp_path, resume=True)
    assert again.steps == 12
    assert_same_weights(again.model, whole.model)
    assert again.best_score == whole.best_score


def test_the_log_of_a_resumed_run_has_no_doubles(data, val_data, preprocess, tmp_path):
    import json

    with pytest.raises(Killed):
        run_everything(data, preprocess, val_data, out=tmp_path, callbacks=[At(11, kill)])
    with (tmp_path / "train.jsonl").open("a") as log:
        log.write('{"event": "step", "step": 11, "lo')  # half a line
    run_everything(data, preprocess, val_data, out=tmp_path, resume=True)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in rows] == [
        *[("start", 0), ("epoch", 4), ("epoch", 8), ("step", 10), ("start", 10), ("epoch", 12)]
    ]


def test_workers_may_change_on_resume_and_change_nothing(data, val_data, preprocess, whole, tmp_path):
    with pytest.raises(Killed):
        run_everything(data, preprocess, val_data, out=tmp_path, callbacks=[At(10, kill)])
    config = FitConfig(**{**EVERYTHING.to_json(), "workers": 1, "save_every": None})
    resumed = run_everything(data, preprocess, val_data, out=tmp_path, resume=True, config=config)
    assert_same_weights(resumed.model, whole.model)


def test_the_loss_scale_is_resumed(data, preprocess, tmp_path):
    """fp16 with overflows before and after the kill."""
    config = FitConfig(epochs=2, batch_size=24, amp="fp16", ema_decay=0.5, save_every=1)

    def trained(**kw):
        return fit(make_model(), data, preprocess=preprocess, config=config, objective=Overflowing(1, 4), **kw)

    uninterrupted = trained()
    with pytest.raises(Killed):
        trained(out=tmp_path, callbacks=[At(4, kill)])
    resumed = trained(out=tmp_path, resume=True)
    assert_same_weights(resumed.model, uninterrupted.model)
    assert_same_weights(resumed.ema, uninterrupted.ema)
    assert without_seconds(resumed.history) == without_seconds(uninterrupted.history)
    assert [row["skipped"] for row in resumed.history] == [1, 1]
