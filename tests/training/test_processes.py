"""Two gloo processes against one: the same run up to rounding, and errors that reach both."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from everything import DROPS, EVERYTHING, At, changed
from processes import run_on
from safetensors.torch import load_file, save_file
from test_multilabel import several
from tiny_training import make_data, make_model, make_preprocess
from torch import nn

from leanvit.data import UnreadableImage
from leanvit.data.loading import share_rows
from leanvit.errors import LeanvitError
from leanvit.training import CrossEntropy, FitConfig, Loss, Objective, fit, join_world


class Steps:
    """Keeps what callbacks are told of every step."""

    def __init__(self):
        self.rows = []
        self.gradients = {}

    def after_step(self, run):
        self.rows.append({**run.losses, "lr": run.lr, "grad_factor": run.grad_factor})
        if run.step == 1:
            self.gradients = {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}


class Twice(Objective):
    """Two forwards of the model, a parameter of its own, and a head that is used at odd steps only."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.rare = nn.Linear(4, 4)
        self.base = CrossEntropy()

    def forward(self, model, batch, step, context):
        logits, mirrored = model(batch.images), model(batch.images.flip(-1))
        logits = logits + self.rare(logits) if step % 2 else logits
        other = (logits - mirrored).square().mean()
        return Loss(self.base.of(self.scale * logits, batch.targets) + other, {"other": other.detach()})


@dataclass(frozen=True)
class Holed:
    """Images of which some cannot be read."""

    images: Any
    holes: tuple[int, ...]

    def __getitem__(self, row: int):
        if row in self.holes:
            raise UnreadableImage.of(f"train/{row}", "cannot be read")
        return self.images[row]


def holed(on_bad: str, holes: tuple[int, ...]):
    data = make_data(96)
    return replace(data, images=Holed(data.images, holes), on_bad=on_bad)


def save(out: Path, name: str, result: Any, steps: Steps) -> None:
    """What a run gave, to files; by the first process."""
    if not join_world().first:
        return
    rows = {"steps": steps.rows, "history": result.history, "best": result.best_score}
    (out / f"{name}.json").write_text(json.dumps(rows))
    save_file({n: t.clone() for n, t in result.final.state_dict().items()}, out / f"{name}.final")
    save_file({n: t.clone() for n, t in result.model.state_dict().items()}, out / f"{name}.model")


def attempt(out: Path, name: str, work: Any) -> None:
    """The error that every process met, to a file each."""
    try:
        work()
        said = "no error"
    except LeanvitError as error:
        said = f"{type(error).__name__}: {error}"
    (out / f"{name}-{join_world().rank}.txt").write_text(said)


def scenarios(out: Path) -> None:
    data, val, preprocess = make_data(96), make_data(61, split="val"), make_preprocess()

    def run(name: str, *, model=None, data=data, validate=val, callbacks=(), **kw):
        steps = Steps()
        result = fit(
            model or make_model(**DROPS),
            data,
            preprocess=preprocess,
            validate=validate,
            callbacks=[steps, *callbacks],
            **kw,
        )
        save(out, name, result, steps)

    plain = FitConfig(epochs=1, batch_size=24, lr=3e-3)
    run("everything", config=EVERYTHING)
    run("fsdp2", config=changed(parallel="fsdp2"))
    run("patches", config=plain, model=make_model(patch_drop_rate=0.5))
    run("twice", config=replace(plain, accumulate=2, ema_decay=0.5), model=make_model(), objective=Twice())
    run("twice fsdp2", config=replace(plain, clip_grad=0.5, parallel="fsdp2"), model=make_model(), objective=Twice())
    run("bad", config=plain, data=holed("skip", tuple(range(30))))  # shares differ in size
    labels = FitConfig(epochs=1, batch_size=20, lr=3e-3)
    run("labels", config=labels, model=make_model(), data=several(40), validate=several(33, split="val"))
    run("fp16", config=replace(plain, amp="fp16", epochs=2, ema_decay=0.5), model=make_model())
    alone = At(3, lambda run: run.stop() if run.world.rank == run.world.size - 1 else None)
    run("stopped", config=replace(plain, epochs=3), model=make_model(), callbacks=[alone])
    attempt(out, "unreadable", lambda: run("none", config=plain, data=holed("error", (3,))))


def only_together(out: Path) -> None:
    """What needs two processes to go wrong."""
    data, preprocess = make_data(96), make_preprocess()

    def run(config, model=None, objective=None, **kw):
        return fit(model or make_model(), data, preprocess=preprocess, config=config, objective=objective, **kw)

    class Exploding(CrossEntropy):
        def forward(self, model, batch, step, context):
            total = super().forward(model, batch, step, context).total
            return Loss(total * (float("nan") if step == 2 and join_world().rank == 1 else 1.0))

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_model()
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

        def forward(self, x):
            y = self.net(x)[:, None]
            return y[:, 0] + self.attention(y, y, y)[0][:, 0]

    class Failing:
        def after_step(self, run):
            if run.world.rank == 1:
                raise LeanvitError("a callback of the second process failed")

    attempt(out, "nan", lambda: run(FitConfig(batch_size=24), objective=Exploding()))
    attempt(out, "draws", lambda: run(FitConfig(batch_size=24), model=Attending()))
    attempt(out, "callback", lambda: run(FitConfig(batch_size=24), callbacks=[Failing()]))
    attempt(out, "odd", lambda: run(FitConfig(batch_size=15)))
    attempt(out, "pairs", lambda: run(FitConfig(batch_size=22, mixup=0.2)))
    full = out / "read-only"
    if join_world().first:
        full.write_text("a file where the folder should be")
    attempt(out, "folder", lambda: run(FitConfig(batch_size=24), out=full))


@dataclass(frozen=True)
class Both:
    one: Path
    two: Path

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads((folder / f"{name}.json").read_text()) for folder in (self.one, self.two)]

    def weights(self, name: str) -> list[dict[str, torch.Tensor]]:
        return [load_file(folder / name) for folder in (self.one, self.two)]

    def errors(self, name: str) -> list[str]:
        return [(self.two / f"{name}-{rank}.txt").read_text() for rank in (0, 1)]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Both:
    found = Both(*(tmp_path_factory.mktemp(name) for name in ("one", "two")))
    assert run_on(2, everything_of_two, found.two) == [0, 0]
    scenarios(found.one)
    return found


def everything_of_two(out: Path) -> None:
    scenarios(out)
    only_together(out)


def assert_close(one: Any, two: Any, tolerance: float = 1e-5) -> None:
    """Plain data of numbers, but for the seconds."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one.keys() - {"seconds"}:
            assert_close(one[name], two[name], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_close(a, b, tolerance)
    else:
        assert two == pytest.approx(one, abs=tolerance)


@pytest.mark.parametrize("name", ["everything", "patches", "twice", "bad", "labels", "stopped"])
def test_two_processes_train_as_one(both, name):
    one, two = both.rows(name)
    assert_close(one, two)
    for kind in ("final", "model"):
        mine, other = both.weights(f"{name}.{kind}")
        for key, tensor in mine.items():
            torch.testing.assert_close(other[key], tensor, atol=2e-4, rtol=0, msg=key)


def test_validation_is_the_same_number(both):
    one, two = ([row["top1"] for row in rows["history"]] for rows in both.rows("everything"))
    assert one == two and len(one) == 3 and all(round(score * 61) == pytest.approx(score * 61) for score in one)


@pytest.mark.parametrize(("name", "of"), [("fsdp2", "everything"), ("twice fsdp2", "twice fsdp2")])
def test_fsdp2_trains_as_one_process_and_as_ddp(both, name, of):
    """One process takes no notice of `parallel`."""
    sharded = both.rows(name)[1]
    for rows in both.rows(of)[: 1 if of == name else 2]:
        assert_close(rows, sharded)
    for folder in (both.one, both.two)[: 1 if of == name else 2]:
        for kind in ("final", "model"):
            mine, other = load_file(folder / f"{of}.{kind}"), load_file(both.two / f"{name}.{kind}")
            for key, tensor in mine.items():
                torch.testing.assert_close(other[key], tensor, atol=2e-4, rtol=0, msg=key)


def test_fp16_follows_float32(both):
    one, two = both.rows("fp16")
    assert [row["skipped"] for row in one["history"]] == [row["skipped"] for row in two["history"]]
    assert_close(one["history"], two["history"], 5e-3)


def test_a_callback_of_one_process_stops_all(both):
    one, two = both.rows("stopped")
    assert len(one["steps"]) == len(two["steps"]) == 3 and len(two["history"]) == 1
    assert two["history"][0]["step"] == 3 and "top1" in two["history"][0]


def test_an_image_that_one_process_cannot_read_stops_all(both):
    first, second = both.errors("unreadable")
    assert {first.partition(":")[0], second.partition(":")[0]} <= {"UnreadableImage", "BadInput"}
    assert "train/3" in first and "train/3" in second


def test_a_loss_that_is_not_finite_names_the_images_of_all(both):
    first, second = both.errors("nan")
    assert first == second and first.startswith("NonFiniteLoss: loss is nan") and "at step 2" in first
    assert first.count("train/") == 24


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("draws", "Refused: aten.* depend on the number of processes"),
        ("callback", "LeanvitError: a callback of the second process failed"),
        ("odd", "batch_size=15 is not accepted with 2 processes.*: give a multiple of 2"),
        ("pairs", "batch_size=22 .* in pairs as they are mixed: give a multiple of 4"),
        ("folder", "BadInput: out=.* is a file: give a folder"),
    ],
)
def test_all_processes_end_with_the_same_error(both, name, text):
    import re

    for said in both.errors(name):
        assert re.search(text, said), said


@pytest.mark.parametrize(("count", "of"), [(12, 1), (12, 2), (12, 3), (13, 2), (5, 4), (2, 4)])
def test_shares_are_the_batch_and_keep_mixing_pairs(count, of):
    shares = [share_rows(count, number, of) for number in range(of)]
    assert sorted(np.concatenate(shares)) == list(range(count))
    assert all((np.diff(share) > 0).all() for share in shares)
    if count % (2 * of) == 0:
        assert all((share + share[::-1] == count - 1).all() for share in shares)
