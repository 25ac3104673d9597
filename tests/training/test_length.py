"""Length in samples and warm-up in steps: schedules, the last part of an epoch, resume, and what is written."""

import io
import json
import math

import pytest
from everything import At, Killed, assert_same_weights, kill, without_seconds
from rich.console import Console
from safetensors.torch import load_file
from tiny_training import make_model

from leanvit import verbs
from leanvit.errors import BadInput
from leanvit.recipe.recovering import Recovery
from leanvit.training import RECOVERY, FitConfig, ProgressBar, check_run, fit, lr_at
from leanvit.training.checkpoint import STATE, read_position
from leanvit.training.config import _LATER
from leanvit.training.schedule import total_steps
from leanvit.training.train_recipe import merged
from leanvit.verbs.progress import progress

# 4 steps an epoch of the 96 images: 10 steps, which are 2 epochs and a half
CONFIG = FitConfig(samples=250, batch_size=24, lr=0.01, min_lr=0.0, warmup_steps=2, ema_decay=0.9, save_every=3)


def trained(data, preprocess, *callbacks, config=CONFIG, **kw):
    return fit(make_model(drop_path_rate=0.2), data, preprocess=preprocess, config=config, callbacks=callbacks, **kw)


def test_a_run_ends_at_its_exact_step(data, preprocess, val_data, tmp_path):
    rates = []

    class Look:
        def after_step(self, run):
            rates.append(run.lr)
            assert (run.total_steps, run.epochs, run.last_step) == (10, 3, 10)

    result = trained(data, preprocess, Look(), validate=val_data, out=tmp_path)
    assert result.steps == 10 and [row["step"] for row in result.history] == [4, 8, 10]
    assert [row["epoch"] for row in result.history] == [0, 1, 2] and all("top1" in row for row in result.history)
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])
    assert rates[2:] == pytest.approx([0.005 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert rows[0]["total_steps"] == 10 and rows[0]["samples"] == 250 and rows[0]["epochs"] is None
    progressed = read_position(tmp_path / STATE).progress
    assert progressed["step"] == progressed["total_steps"] == 10
    again = trained(data, preprocess, validate=val_data, out=tmp_path, resume=True)
    assert again.steps == 10 and len(again.history) == 3
    trained(data, preprocess, out=tmp_path)  # it is finished: a new run may take its folder


def test_the_steps_are_those_of_a_longer_run(data, preprocess):
    """Where the rate does not depend on the length, 10 steps are the first 10 of 12."""
    short = FitConfig(samples=240, batch_size=24, schedule="constant")
    long = FitConfig(epochs=3, batch_size=24, schedule="constant")
    kept = {}

    class Keep:
        def after_step(self, run):
            if run.step == 10:
                kept.update({name: tensor.clone() for name, tensor in run.model.state_dict().items()})

    trained(data, preprocess, Keep(), config=long)
    ended = trained(data, preprocess, config=short).model.state_dict()
    assert all((ended[name] == tensor).all() for name, tensor in kept.items())


@pytest.mark.parametrize("step", [2, 7, 9, 10])
def test_a_killed_run_ends_with_the_same_bits(data, preprocess, val_data, tmp_path, step):
    whole = trained(data, preprocess, validate=val_data)
    with pytest.raises(Killed):
        trained(data, preprocess, At(step, kill), validate=val_data, out=tmp_path)
    again = trained(data, preprocess, validate=val_data, out=tmp_path, resume=True)
    assert_same_weights(again.ema, whole.ema)
    assert without_seconds(again.history) == without_seconds(whole.history)


def test_another_length_is_another_run(data, preprocess, tmp_path):
    with pytest.raises(Killed):
        trained(data, preprocess, At(5, kill), out=tmp_path)
    config = FitConfig(epochs=3, batch_size=24, lr=0.01, min_lr=0.0, warmup_epochs=0.5, ema_decay=0.9)
    with pytest.raises(BadInput, match=r"epochs was None and is now 3.*samples was 250 and is now None"):
        trained(data, preprocess, config=config, out=tmp_path, resume=True)


def test_fields_that_are_not_set_are_not_written(data, preprocess, tmp_path):
    trained(data, preprocess, config=FitConfig(epochs=1, batch_size=48), out=tmp_path)
    start = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    about = read_position(tmp_path / STATE).about
    for written in (start, about, FitConfig().to_json()):
        assert not set(_LATER) & written.keys() and written["epochs"] in (1, 10)
    assert set(_LATER) <= FitConfig().to_json(every=True).keys()
    assert load_file(tmp_path / STATE)
    with pytest.raises(BadInput, match=r"eps was None and is now 1e-06"):
        trained(data, preprocess, config=FitConfig(epochs=1, batch_size=48, eps=1e-6), out=tmp_path, resume=True)


def test_every_field_survives_json():
    config = FitConfig(
        samples=5000, warmup_steps=3, eps=1e-6, clip_grad=0.01, clip_mode="agc", layer_decay=0.7, layer_groups="mae",
        locked=("blocks.0",),
    )  # fmt: skip
    data = json.loads(json.dumps(config.to_json()))
    assert FitConfig(**data) == config and set(_LATER) <= data.keys()
    assert FitConfig(**FitConfig(epochs=7).to_json(every=True)) == FitConfig(epochs=7)


def test_progress_and_cost_follow(data, preprocess):
    screen, said = io.StringIO(), []
    bar = ProgressBar(Console(file=screen, force_terminal=True, width=120))
    trained(data, preprocess, bar, *progress(said.append))
    assert "epoch 3/3" in screen.getvalue() and "10/10" in screen.getvalue()
    assert said[0] == "training: 3 epochs, 10 steps of 24 images"
    assert [line for line in said if line.startswith("epoch 3 of 3")]


def test_the_program_trains_so_many_images(tmp_path):
    small = {"model_args": {"depth": 1, "embed_dim": 12, "num_heads": 1}, "adapt": True, "limit": 60}
    settings = {"samples": 120, "batch_size": 24, "warmup_steps": 2, "locked": ["patch_embed"]}
    planned = verbs.dry_run("vit_tiny_patch16_224", "digits", settings=settings, seconds=0.0, **small)
    assert (planned.steps, planned.epochs, planned.steps_per_epoch) == (5, 3, 2)
    assert dict(planned._rows())["steps"] == "5, an epoch has 2"
    assert planned.parameters - planned.trained_parameters == 2 * 12  # of the patch embedding: 1x1 grey, and a bias
    found = verbs.train("vit_tiny_patch16_224", "digits", settings=settings, out=tmp_path / "run", **small)
    assert found.epochs == 3 and found.to_json()["epochs"] == 3
    info = json.loads((tmp_path / "run/leanvit.json").read_text())["info"]
    assert info["training"]["samples"] == 120 and info["training"]["epochs"] is None


def test_schedules_follow_the_length():
    cooled = FitConfig(samples=1000, batch_size=10, lr=1.0, min_lr=0.1, cooldown_epochs=2.5)  # 100 steps
    assert total_steps(cooled, 8) == 100
    rates = [lr_at(step, cooled, steps_per_epoch=8) for step in range(100)]
    assert rates[80:] == [0.1] * 20 and rates[40] == pytest.approx(0.55) and rates[79] > 0.1
    whole = FitConfig(samples=960, batch_size=10, lr=1.0, warmup_epochs=1)
    epochs = FitConfig(epochs=12, lr=1.0, warmup_epochs=1)
    for per_epoch in (False, True):
        one, other = ({**c.to_json(), "lr_per_epoch": per_epoch} for c in (whole, epochs))
        for step in range(96):
            mine, same = (lr_at(step, FitConfig(**c), steps_per_epoch=8) for c in (one, other))
            assert mine == pytest.approx(same)
    half = FitConfig(samples=100, batch_size=10, lr=1.0, min_lr=0.0, lr_per_epoch=True)  # 10 steps of 4: 2.5 epochs
    assert [lr_at(step, half, steps_per_epoch=4) for step in (0, 3, 4, 9)] == pytest.approx(
        [1.0, 1.0, 0.5 * (1 + math.cos(math.pi / 2.5)), 0.5 * (1 + math.cos(2 * math.pi / 2.5))]
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"samples": 20}, "samples is 20; accepted: 24 or more, which are the images of one step"),
        ({"samples": 40, "accumulate": 2}, "samples is 40; accepted: 48 or more"),
        ({"samples": 96, "warmup_steps": 4}, "warmup_steps is 4; accepted: below 4, the steps"),
        ({"epochs": 1, "warmup_steps": 5}, "warmup_steps is 5; accepted: below 4, the steps"),
        ({"samples": 96, "warmup_epochs": 2}, "warmup_epochs is 2; accepted: below 1, the epochs .* samples=96"),
        ({"samples": 96, "cooldown_epochs": 1.0}, "cooldown_epochs is 1.0; accepted: below 1, .* samples=96"),
    ],
)
def test_a_length_that_the_data_does_not_fit_is_refused(data, preprocess, settings, says):
    config = FitConfig(**{"batch_size": 24, **settings})
    with pytest.raises(BadInput, match=says):
        check_run(make_model(), data, preprocess=preprocess, config=config)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epochs": 3, "samples": 100}, "samples is 100, and epochs, which is given too, 3: give one"),
        ({"epochs": 10, "samples": 100}, "samples is 100, and epochs, which is given too, 10: give one"),
        ({"warmup_epochs": 1, "warmup_steps": 5}, "warmup_steps is 5, and warmup_epochs, which is given too, 1"),
        ({"warmup_steps": 5, "lr_per_epoch": True}, "lr_per_epoch is True: give warmup_epochs instead"),
        ({"epochs": None}, "epochs is None; accepted"),
    ],
)
def test_two_lengths_are_refused(settings, says):
    with pytest.raises(BadInput, match=says):
        FitConfig(**settings)


def test_what_is_given_replaces_the_recipes_other_way():
    recipe = {"epochs": 300, "warmup_epochs": 20, "lr": 1e-3}
    assert merged(recipe, {"samples": 5000, "warmup_steps": 7}) == {"samples": 5000, "warmup_steps": 7, "lr": 1e-3}
    assert merged({"samples": 5000}, {"epochs": 2}) == {"epochs": 2}
    with pytest.raises(BadInput, match="samples is 5, and epochs"):
        FitConfig(**merged({}, {"samples": 5, "epochs": 2}))
    assert RECOVERY.warmup_epochs == 0.25
    recovery = Recovery(settings={"warmup_steps": 5, "eps": 1e-6}).config(seed=0)
    assert (recovery.warmup_steps, recovery.warmup_epochs, recovery.eps) == (5, 0.0, 1e-6)
    with pytest.raises(BadInput, match="recovery has no setting 'samples': a recovery is so many epochs long"):
        Recovery(settings={"samples": 5})
    assert FitConfig(samples=8).length_text == "8 images"
    assert FitConfig(epochs=1).length_text == "1 epoch"
