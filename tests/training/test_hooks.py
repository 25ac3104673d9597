"""Hooks that change the model or the step: temporary modules, gradients, and callbacks with a state of their own."""

import json
import os
import signal

import pytest
import torch
from everything import DROPS, At, Killed, assert_same_weights, changed, kill, run_everything, without_seconds
from experts import Averaging, Experts
from processes import run_on
from safetensors.torch import load_file, save_file
from test_multilabel import several
from tiny_training import make_data, make_model, make_preprocess
from torch import nn

from leanvit.errors import BadInput
from leanvit.training import CrossEntropy, FitConfig, Interrupted, Loss, fit, join_world
from leanvit.training.checkpoint import BEST, STATE, read_position

SHORT = FitConfig(epochs=1, batch_size=24, lr=3e-3)  # 4 steps
PLAIN = set(make_model().state_dict())


def is_plain(model: nn.Module) -> bool:
    return set(model.state_dict()) == PLAIN and not any(isinstance(m, Experts) for m in model.modules())


def short(data, preprocess, *callbacks, config=SHORT, model=None, **kw):
    return fit(model or make_model(), data, preprocess=preprocess, config=config, callbacks=callbacks, **kw)


class Diary:
    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def prepare(self, model):
        self.notes.append(f"prepare {self.name}")

    def start(self, run):
        self.notes.append(f"start {self.name}")

    def before_forward(self, run):
        self.notes.append(f"forward {self.name}")

    def before_step(self, run):
        assert run.step == 0 and all(p.grad is not None for p in run.model.parameters())
        self.notes.append(f"before {self.name}")

    def after_step(self, run):
        self.notes.append(f"after {self.name}")

    def finish(self, run):
        self.notes.append(f"finish {self.name}")

    def close(self, run):
        self.notes.append(f"close {self.name}")

    def deploy(self, model):
        assert not model.training or "finish a" in self.notes
        self.notes.append(f"deploy {self.name}")


def test_hooks_come_in_their_order(data, preprocess):
    notes = []
    short(data, preprocess, Diary("a", notes), Diary("b", notes), config=FitConfig(epochs=1, batch_size=96))
    names = ["prepare", "start", "forward", "before", "after", "finish", "close"]
    assert notes == [*(f"{name} {one}" for name in names for one in "ab"), "deploy b", "deploy a"]


def test_what_is_kept_holds_nothing_temporary(data, preprocess, val_data, tmp_path):
    result = run_everything(data, preprocess, val_data, callbacks=[Averaging()], out=tmp_path, keep="best")
    assert is_plain(result.model) and is_plain(result.ema) and set(load_file(tmp_path / BEST)) == PLAIN
    state = set(load_file(tmp_path / STATE))
    for prefix in ("model", "ema"):
        assert (
            f"{prefix}.blocks.1.mlp.experts.1.fc2.weight" in state and f"{prefix}.blocks.1.mlp.fc2.weight" not in state
        )
    assert "optimizer.model.blocks.1.mlp.experts.1.fc2.weight.exp_avg" in state
    assert torch.equal(load_file(tmp_path / BEST)["head.weight"], result.final.head.weight)
    dense = run_everything(data, preprocess, val_data)
    assert not torch.equal(dense.model.blocks[0].mlp.fc1.weight, result.model.blocks[0].mlp.fc1.weight)


def test_the_best_weights_are_the_average_of_the_experts_then(data, preprocess, val_data, tmp_path):
    seen = []

    class Look:
        def end_epoch(self, run):
            seen.append((run.best_epoch, run.ema.blocks[1].mlp.merged().fc1.weight))

    run_everything(data, preprocess, val_data, callbacks=[Averaging(), Look()], out=tmp_path)
    best = max(epoch for epoch, _ in seen)
    assert torch.equal(load_file(tmp_path / BEST)["blocks.1.mlp.fc1.weight"], seen[best][1])


def test_a_run_with_experts_that_was_killed_ends_with_the_same_bits(data, preprocess, val_data, tmp_path):
    whole = run_everything(data, preprocess, val_data, callbacks=[Averaging()])
    for step in (3, 5, 9):
        out = tmp_path / str(step)
        with pytest.raises(Killed):
            run_everything(data, preprocess, val_data, callbacks=[Averaging(), At(step, kill)], out=out)
        again = run_everything(data, preprocess, val_data, callbacks=[Averaging()], out=out, resume=True)
        assert_same_weights(again.model, whole.model)
        assert_same_weights(again.ema, whole.ema)
        assert without_seconds(again.history) == without_seconds(whole.history)


def interrupt(run):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("stop", "error"), [(interrupt, Interrupted), (kill, Killed)])
def test_a_model_whose_run_ends_early_is_whole_again(data, preprocess, stop, error, tmp_path):
    seen, model = [], make_model(**DROPS)

    class Look:
        def close(self, run):
            seen.append(run.model.blocks[0].mlp.merged().fc1.weight)

    with pytest.raises(error):
        fit(
            model,
            data,
            preprocess=preprocess,
            config=changed(locked=["patch_embed"]),
            callbacks=[Averaging(), At(2, stop), Look()],
            out=tmp_path,
        )
    assert is_plain(model) and torch.equal(model.blocks[0].mlp.fc1.weight, seen[0])
    assert all(p.requires_grad and p.grad is None for p in model.parameters()) and not model.training


def test_a_preparation_that_fails_leaves_nothing(data, preprocess):
    class Failing:
        def prepare(self, model):
            raise BadInput("this model has no such parts")

        def deploy(self, model):
            raise AssertionError("it put nothing in")

    model = make_model()
    with pytest.raises(BadInput, match="no such parts"):
        short(data, preprocess, Averaging(), Failing(), model=model)
    assert is_plain(model)

    class Unbound(CrossEntropy):
        def bind(self, model, preprocess):
            assert not is_plain(model), "the objective meets the model as it will train"
            raise BadInput("not with this model")

    with pytest.raises(BadInput, match="not with this model"):
        short(data, preprocess, Averaging(), model=model, objective=Unbound())
    assert is_plain(model)


def test_prepare_without_deploy_is_refused(data, preprocess):
    class Half:
        def prepare(self, model):
            raise AssertionError

    with pytest.raises(BadInput, match=r"Half object.* has prepare\(model\), but no deploy\(model\)"):
        short(data, preprocess, Half())


def test_prepare_draws_by_the_seed(data, preprocess):
    state = torch.get_rng_state()
    one, two, other = Averaging(), Averaging(), Averaging()
    for callback, seed in ((one, 0), (two, 0), (other, 1)):
        short(data, preprocess, callback, config=FitConfig(epochs=1, batch_size=96, seed=seed))
        torch.rand(1)
    assert one.drawn == two.drawn != other.drawn
    torch.set_rng_state(state)


# --- gradients -----------------------------------------------------------------------------------------------------


class Halved:
    """Halves the head's gradient; with `wrong` it makes it infinite."""

    def __init__(self, wrong: bool = False):
        self.seen, self.wrong = [], wrong

    def before_step(self, run):
        head = run.model.head.weight
        self.seen.append((run.losses["grad_norm"], head.grad.norm().item()))
        head.grad.mul_(float("inf") if self.wrong else 0.5)


def test_gradients_are_changed_before_they_are_clipped(data, preprocess):
    halved, rows = Halved(), []

    class Look:
        def after_step(self, run):
            clipped = torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()]).item()
            rows.append((run.losses["grad_norm"], run.grad_factor, run.model.head.weight.grad.norm().item(), clipped))

    short(data, preprocess, halved, Look(), config=FitConfig(epochs=1, batch_size=48, clip_grad=0.1))
    for (before, head), (after, factor, changed_head, clipped) in zip(halved.seen, rows, strict=True):
        assert before**2 - after**2 == pytest.approx(0.75 * head**2, rel=1e-3)
        assert changed_head == pytest.approx(0.5 * head * factor) and clipped == pytest.approx(0.1, rel=1e-4)


def test_a_gradient_that_a_callback_breaks_stops_the_run(data, preprocess):
    with pytest.raises(Exception, match="grad_norm is inf at step 0 of epoch 0; the step was not taken"):
        short(data, preprocess, Halved(wrong=True))


def test_a_step_that_overflows_is_not_met(data, preprocess):
    class Steep(CrossEntropy):
        def forward(self, model, batch, step, context):
            loss = super().forward(model, batch, step, context)
            return Loss(loss.total * (1e3 if step == 1 else 1.0))

    steps = []

    class Note:
        def before_step(self, run):
            steps.append(run.step)

    short(data, preprocess, Note(), config=FitConfig(epochs=1, batch_size=24, amp="fp16"), objective=Steep())
    assert steps == [0, 2, 3]


def test_averages_are_of_the_weights_that_after_step_leaves(data, preprocess):
    class Constant:
        @torch.no_grad()
        def after_step(self, run):
            run.model.head.bias.fill_(run.step)

    config = FitConfig(epochs=1, batch_size=48, ema_decay=0.5, ema_warmup=False)  # 2 steps; the first is copied
    result = short(data, preprocess, Constant(), config=config)
    assert result.ema.head.bias.tolist() == [1.5] * 4 and result.model.head.bias.tolist() == [2.0] * 4


# --- state ---------------------------------------------------------------------------------------------------------


class Sums(nn.Module):
    """Adds up the losses, weighed by a number of its own: what it holds steers the next step."""

    total: torch.Tensor

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.register_buffer("total", torch.zeros(()))

    @torch.no_grad()
    def after_step(self, run):
        self.total += self.weight * run.losses["loss"]
        run.model.head.bias += 1e-3 * self.total


def test_callbacks_that_are_modules_are_saved_and_restored(data, preprocess, tmp_path):
    mine = Sums(1.0), Sums(2.0)
    whole = run_everything(data, preprocess, callbacks=mine)
    with pytest.raises(Killed):
        run_everything(data, preprocess, callbacks=[Sums(1.0), At(7, kill), Sums(2.0)], out=tmp_path)
    tensors = load_file(tmp_path / STATE)
    assert tensors["callback.Sums.weight"] == 1 and tensors["callback.Sums#2.weight"] == 2
    assert tensors["callback.Sums#2.total"] == 2 * tensors["callback.Sums.total"] > 0
    assert not any(name.startswith("optimizer.callback") for name in tensors)
    restored = Sums(5.0), Sums(6.0)
    again = run_everything(data, preprocess, callbacks=restored, out=tmp_path, resume=True)
    assert_same_weights(again.model, whole.model)
    for one, other in zip(restored, mine, strict=True):
        assert torch.equal(one.total, other.total) and torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("given", [[], [Sums()], [Sums(), Sums(), Sums()], [Averaging(), Sums()]])
def test_a_run_with_other_states_is_not_resumed(data, preprocess, tmp_path, given):
    short(data, preprocess, Sums(), Sums(), out=tmp_path)
    names = {0: "None", 1: r"\['Sums'\]", 2: r"\['Averaging', 'Sums'\]", 3: r"\['Sums', 'Sums#2', 'Sums#3'\]"}[
        len(given)
    ]
    with pytest.raises(BadInput, match=rf"saved callbacks was \['Sums', 'Sums#2'\] and is now {names}"):
        short(data, preprocess, *given, out=tmp_path, resume=True)


def test_a_state_without_callbacks_is_as_it_was(data, preprocess, tmp_path):
    """An objective that is a callback as well (NViT's) is saved once, as the objective."""

    class Both(CrossEntropy):
        def __init__(self):
            super().__init__()
            self.part = Sums()
            self.register_buffer("steps", torch.zeros(()))

        def after_step(self, run):
            self.steps += 1

    both = Both()
    short(data, preprocess, both, both.part, objective=both, out=tmp_path)
    tensors = load_file(tmp_path / STATE)
    assert tensors["objective.steps"] == 4 and not any(name.startswith("callback") for name in tensors)
    assert "saved callbacks" not in read_position(tmp_path / STATE).about
    assert short(data, preprocess, both, both.part, objective=both, out=tmp_path, resume=True).steps == 4


# --- processes -----------------------------------------------------------------------------------------------------


def of_two(out) -> None:
    data, val = make_data(96), make_data(61, split="val")
    for parallel in ("ddp", "fsdp2"):
        config = changed(
            epochs=1, parallel=parallel, locked=["blocks.0.norm1", "patch_embed"], clip_mode="value", clip_grad=0.01
        )
        folder, halved = out / parallel, Halved()
        result = run_everything(
            data, make_preprocess(), val, config=config, callbacks=[Averaging(), halved], out=folder
        )
        given = {"config": config, "out": folder / "stopped"}
        with pytest.raises(Interrupted):
            run_everything(data, make_preprocess(), val, callbacks=[Averaging(), Halved(), At(2, interrupt)], **given)
        again = run_everything(data, make_preprocess(), val, callbacks=[Averaging(), Halved()], resume=True, **given)
        assert_same_weights(again.model, result.model)
        assert is_plain(result.model) and is_plain(result.ema)
        assert all(p.requires_grad for m in (result.model, result.ema) for p in m.parameters())
        if join_world().first:
            for name in ("model", "final"):
                save_file({n: t.clone() for n, t in getattr(result, name).state_dict().items()}, folder / name)
            (folder / "norms").write_text(json.dumps(halved.seen[0][0]))


@pytest.mark.e2e
def test_two_processes_train_experts_as_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_on(2, of_two, two) == [0, 0]
    of_two(one)
    for parallel in ("ddp", "fsdp2"):
        assert set(load_file(two / parallel / BEST)) == PLAIN
        for name in ("model", "final", BEST):
            mine, other = load_file(one / "ddp" / name), load_file(two / parallel / name)
            assert mine.keys() == other.keys()
            for key, tensor in mine.items():
                torch.testing.assert_close(other[key], tensor, atol=2e-4, rtol=0, msg=key)
        norms = [json.loads((folder / "norms").read_text()) for folder in (one / "ddp", two / parallel)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4), "gradients are complete over the processes"
        start = make_model(**DROPS).state_dict()
        trained = load_file(two / parallel / "model")
        assert torch.equal(trained["patch_embed.proj.weight"], start["patch_embed.proj.weight"])
        assert not torch.equal(trained["blocks.0.norm2.weight"], start["blocks.0.norm2.weight"])


def test_multi_label_data_gets_best_weights_without_experts(preprocess, tmp_path):
    config = FitConfig(epochs=1, batch_size=20)
    given = {"config": config, "validate": several(20, split="val"), "out": tmp_path}
    result = short(several(40), preprocess, Averaging(), **given)
    assert is_plain(result.model) and set(load_file(tmp_path / BEST)) == PLAIN
