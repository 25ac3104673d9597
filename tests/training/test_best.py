"""Which epoch's weights a run ends with, and what it refuses before its first step."""

from dataclasses import replace

import pytest
import torch
from everything import At, Killed, assert_same_weights, kill
from test_processes import holed
from tiny_training import make_model
from torch import nn

from leanvit.errors import BadInput, CheckpointError
from leanvit.training import FitConfig, check_run, fit, top1_accuracy

CONFIG = FitConfig(epochs=6, batch_size=16, lr=1e-2, save_every=4)  # 6 steps an epoch
BEST = "training/best.safetensors"


def spoil(run):
    """At the very end the model answers one class."""
    nn.init.zeros_(run.model.head.weight)


def trained(data, preprocess, val_data, out, *, callbacks=(), **given):
    config = replace(CONFIG, ema_decay=given.pop("ema_decay", None))
    callbacks = [*callbacks, At(36, spoil)]
    given = {"preprocess": preprocess, "validate": val_data, "out": out, "callbacks": callbacks, **given}
    return fit(make_model(), data, config=config, **given)


def test_the_last_epoch_is_kept_unless_the_best_is_asked_for(data, val_data, preprocess, tmp_path):
    last = trained(data, preprocess, val_data, tmp_path / "last")
    best = trained(data, preprocess, val_data, tmp_path / "best", keep="best")
    assert (last.epoch, best.epoch, last.best_epoch) == (6, best.best_epoch, best.best_epoch) and best.epoch < 6
    assert last.score == last.last_score == 0.25 < best.score == best.best_score == best.history[best.epoch - 1]["top1"]
    assert best.score == top1_accuracy(best.final, val_data, preprocess=preprocess)
    assert not best.final.training


def test_a_killed_run_keeps_the_same_bits_and_an_ended_one_may_ask_for_the_best(data, val_data, preprocess, tmp_path):
    whole = trained(data, preprocess, val_data, tmp_path / "whole", keep="best", ema_decay=0.5)
    with pytest.raises(Killed):
        trained(data, preprocess, val_data, tmp_path / "killed", callbacks=[At(33, kill)], ema_decay=0.5)
    for resumed in ("best", "best"):  # the second time it has ended already
        again = trained(data, preprocess, val_data, tmp_path / "killed", resume=True, keep=resumed, ema_decay=0.5)
        assert again.epoch == whole.epoch and again.score == whole.score
        assert_same_weights(again.final, whole.final)


def test_damaged_weights_of_the_best_epoch_are_refused(data, val_data, preprocess, tmp_path):
    trained(data, preprocess, val_data, tmp_path)
    (tmp_path / BEST).write_bytes((tmp_path / BEST).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        trained(data, preprocess, val_data, tmp_path, resume=True, keep="best")


def test_weights_of_the_best_epoch_that_are_gone_and_changed_validation_data_are_named(
    data, val_data, preprocess, tmp_path
):
    trained(data, preprocess, val_data, tmp_path)
    with pytest.raises(BadInput, match=r"validation data\.images was \d+ and is now \d+"):
        trained(data, preprocess, val_data.take(range(len(val_data) - 1)), tmp_path, resume=True, keep="best")
    (tmp_path / BEST).unlink()
    with pytest.raises(CheckpointError, match=r"best\.safetensors is gone.*keep='last'"):
        trained(data, preprocess, val_data, tmp_path, resume=True, keep="best")


@pytest.mark.parametrize(("given", "says"), [({"keep": "first"}, "last or best"), ({"keep": "best"}, "validate=")])
def test_what_to_keep_is_checked_first(data, preprocess, given, says):
    with pytest.raises(BadInput, match=says):
        fit(make_model(), data, preprocess=preprocess, config=CONFIG, **given)


class Normed(nn.Module):
    """A convolution, and a batch norm over its map or over its mean."""

    def __init__(self, over: str) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm2d(4) if over == "map" else nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.conv(x)
        over_map = isinstance(self.norm, nn.BatchNorm2d)
        return self.head(self.norm(x).mean((2, 3)) if over_map else self.norm(x.mean((2, 3))))


@pytest.mark.parametrize(
    ("over", "batch", "mode", "refused"),
    [
        ("mean", 1, "train", True),
        ("mean", 2, "train", False),
        ("mean", 1, "eval", False),
        ("map", 1, "train", False),
    ],
)
def test_batch_norm_over_one_value_is_refused_before_the_first_step(data, preprocess, over, batch, mode, refused):
    model, config = Normed(over), FitConfig(epochs=1, batch_size=batch, train_mode=mode)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if refused:
        with pytest.raises(BadInput, match=r"batch_size=1 gives the batch norm 'norm'.*--batch-size 2"):
            check_run(model, data, preprocess=preprocess, config=config)
    else:
        check_run(model, data, preprocess=preprocess, config=config)
        fit(model, data.take(range(4)), preprocess=preprocess, config=config)
        return
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_a_batch_of_which_one_image_is_left_is_taken(preprocess, mixup):
    data = holed("skip", (0, 1, 2)).take(range(4))  # one step of four images, three of which cannot be read
    result = fit(
        Normed("mean"), data, preprocess=preprocess, config=FitConfig(epochs=1, batch_size=4, mixup=mixup, lr=1e-3)
    )
    assert result.steps == 1 and len(data.bad) == 3
