"""The loop: what it learns, what it draws, what it refuses."""

import random

import numpy as np
import pytest
import torch
from everything import DROPS, EVERYTHING, At, assert_same_weights, run_everything
from tiny_training import make_data, make_model, make_preprocess
from torch import nn
from torch.nn import functional as F

from leanvit.errors import BadInput
from leanvit.training import (
    CrossEntropy,
    FitConfig,
    Loss,
    NonFiniteLoss,
    Objective,
    SoftDistillation,
    fit,
    top1_accuracy,
)


@pytest.fixture(scope="module")
def whole(data, val_data, preprocess):
    """The run of EVERYTHING that nothing interrupts."""
    return run_everything(data, preprocess, val_data)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_it_learns(val_data, preprocess):
    config = FitConfig(epochs=8, batch_size=16, lr=1e-2, warmup_epochs=1, ema_decay=0.9)
    model = make_model()
    before = top1_accuracy(model, val_data, preprocess=preprocess)
    result = fit(model, make_data(256), preprocess=preprocess, config=config, validate=val_data)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert before < 0.5 and result.last_score > 0.9  # chance is 0.25
    assert result.last_score == top1_accuracy(result.final, val_data, preprocess=preprocess)
    assert result.best_score == max(row["top1"] for row in result.history)
    assert result.model is model and result.steps == 8 * 16 and not model.training and not result.ema.training


def test_two_half_batches_are_one_batch(data, preprocess):
    def trained(**sizes):
        gradients = {}

        def keep(run):
            gradients.update({name: p.grad.clone() for name, p in run.model.named_parameters()})

        config = FitConfig(epochs=1, lr=1e-3, **sizes)
        result = fit(make_model(), data, preprocess=preprocess, config=config, callbacks=[At(1, keep)])
        return result, gradients

    (whole_batch, of_whole), (halves, of_halves) = trained(batch_size=24), trained(batch_size=12, accumulate=2)
    assert whole_batch.steps == halves.steps == 4
    assert halves.history[0]["loss"] == pytest.approx(whole_batch.history[0]["loss"], abs=1e-6)
    # gradients, not weights: Adam blows up the rounding of those that are zero in theory (the bias of the keys)
    for name, gradient in of_whole.items():
        torch.testing.assert_close(of_halves[name], gradient, atol=1e-6, rtol=0, msg=name)


def test_one_step_is_adamw_on_the_clipped_gradient(data, preprocess):
    """The loop against the formula, decay left off where the model and the shape of a parameter say so."""
    config = FitConfig(epochs=1, batch_size=96, lr=1e-2, weight_decay=0.5, clip_grad=0.1)
    model, expected = make_model(), make_model()
    fit(model, data, preprocess=preprocess, config=config)

    transform = preprocess.eval_transform()
    images = torch.stack([transform(sample.image) for sample in data])
    F.cross_entropy(expected.train()(images), torch.tensor(data.targets)).backward()
    norm = sum(p.grad.square().sum() for p in expected.parameters()).sqrt()
    assert norm > 0.1
    for (name, p), (_, got) in zip(expected.named_parameters(), model.named_parameters(), strict=True):
        gradient = p.grad * 0.1 / (norm + 1e-6)
        decayed = p.ndim > 1 and name not in ("pos_embed", "cls_token")
        want = p * (1 - 0.01 * 0.5 * decayed) - 0.01 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
        unsure = gradient.abs() < 1e-6  # there the last bit of the gradient decides the step
        torch.testing.assert_close(got[~unsure], want[~unsure], atol=2e-5, rtol=0, msg=name)


def test_ema_is_the_closed_form(data, preprocess):
    seen = []

    class Keep:
        def after_step(self, run):
            seen.append(run.model.head.weight.detach().clone())

    config = FitConfig(epochs=1, batch_size=24, ema_decay=0.8, ema_warmup=False)
    result = fit(make_model(), data, preprocess=preprocess, config=config, callbacks=[Keep()])
    w1, w2, w3, w4 = seen  # the average starts as the weights after the first step
    want = 0.8**3 * w1 + 0.2 * (0.8**2 * w2 + 0.8 * w3 + w4)
    torch.testing.assert_close(result.ema.head.weight, want, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("factor", ["lr_scale", "peak_scale"])
def test_objectives_train_their_own_parameters(data, preprocess, factor):
    class Scaled(Objective):
        """Cross-entropy at a learned temperature, which has a learning rate of its own."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def param_groups(self, weight_decay):
            return [{"params": [self.scale], "weight_decay": 0.0, factor: 10.0}]

        def forward(self, model, batch, step, context):
            return Loss(F.cross_entropy(self.scale * model(batch.images, **context), batch.targets))

    objective = Scaled()
    config = FitConfig(epochs=1, batch_size=96, lr=1e-3)
    fit(make_model(), data, preprocess=preprocess, config=config, objective=objective)
    assert abs(objective.scale.item() - 1) == pytest.approx(1e-2, rel=1e-3)  # Adam's first step is the rate itself


def test_context_set_before_a_forward_reaches_the_model(data, preprocess):
    seen = []

    class Contextual(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_model()

        def forward(self, images, **context):
            seen.append(dict(context))
            return self.net(images)

    class Schedule:
        def before_forward(self, run):
            if run.step >= 2:
                run.context["keep_rate"] = 1 - 0.1 * run.step

    fit(
        Contextual(),
        data,
        preprocess=preprocess,
        config=FitConfig(epochs=1, batch_size=24),
        callbacks=[Schedule()],
    )
    assert seen == [{}, {}, {"keep_rate": 0.8}, {"keep_rate": 0.7}]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_train_mode(data, preprocess, mode):
    modes = []
    look = At(1, lambda run: modes.append(run.model.training))
    config = FitConfig(epochs=1, batch_size=24, train_mode=mode)
    fit(make_model(drop_path_rate=0.5), data, preprocess=preprocess, config=config, callbacks=[look])
    assert modes == [mode == "train"]


def test_a_distilled_network_trains_both_heads(data, preprocess):
    from timm.models.deit import VisionTransformerDistilled

    shape = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 4, "embed_dim": 16, "depth": 1}
    student = VisionTransformerDistilled(**shape, num_heads=2)
    before = student.head_dist.weight.detach().clone()
    objective = SoftDistillation(make_model(), teacher_preprocess=preprocess)
    config = FitConfig(epochs=1, batch_size=24)
    fit(student, data, preprocess=preprocess, config=config, objective=objective)
    assert not torch.equal(student.head_dist.weight, before)
    assert student(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


def test_bf16_keeps_float32_weights(data, preprocess):
    config = FitConfig(epochs=1, batch_size=24, amp="bf16")
    full = fit(make_model(), data, preprocess=preprocess, config=FitConfig(epochs=1, batch_size=24))
    half = fit(make_model(), data, preprocess=preprocess, config=config, validate=data)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert half.history[0]["loss"] != full.history[0]["loss"]
    assert half.history[0]["loss"] == pytest.approx(full.history[0]["loss"], rel=0.02)


class Steep(CrossEntropy):
    def forward(self, model, batch, step, context):
        total = super().forward(model, batch, step, context).total
        return Loss(total + (total - total.detach()).sqrt())  # adds 0 to the value, infinity to the gradient


class Overflowing(CrossEntropy):
    """Its gradient overflows float32 at some steps, if it is multiplied by a loss scale of 2 ** 15 or more."""

    def __init__(self, *steps):
        super().__init__()
        self.steps = steps

    def forward(self, model, batch, step, context):
        total = super().forward(model, batch, step, context).total
        steep = 1e34 if step in self.steps else 0.0
        return Loss(total + steep * (total - total.detach()))


def test_fp16_leaves_out_a_step_that_overflows(data, val_data, preprocess):
    """step 1 of 4: the schedule goes on, weights and averages stay, callbacks hear of the others only"""
    heard, weights = [], []

    class Look:
        def before_forward(self, run):
            weights.append((run.model.head.weight.detach().clone(), run.ema.head.weight.clone()))

        def after_step(self, run):
            heard.append((run.step, run.scaler.get_scale()))

    config = FitConfig(epochs=1, batch_size=24, amp="fp16", ema_decay=0.5)
    given = {"preprocess": preprocess, "config": config, "validate": val_data}
    result = fit(make_model(), data, objective=Overflowing(1), callbacks=[Look()], **given)
    assert heard == [(1, 65536.0), (3, 32768.0), (4, 32768.0)] and result.steps == 4
    assert torch.equal(weights[1][0], weights[2][0]) and torch.equal(weights[1][1], weights[2][1])
    assert not torch.equal(weights[0][0], weights[1][0])
    (row,) = result.history
    assert row["skipped"] == 1 and np.isfinite(row["grad_norm"]) and np.isfinite(row["loss"])


def test_fp16_gradients_that_overflow_at_every_scale_are_refused(data, preprocess):
    config = FitConfig(epochs=9, batch_size=24, amp="fp16")
    with pytest.raises(NonFiniteLoss, match=r"grad_norm is .* at step 17 of"):  # 65536 was halved 17 times
        fit(make_model(), data, preprocess=preprocess, config=config, objective=Steep())


def test_compiled_training_is_the_same_and_leaves_no_trace(data, preprocess, monkeypatch):
    used = []

    def compile_eagerly(self):  # the machinery, without the minute of code generation
        used.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    plain, compiled = (
        fit(make_model(), data, preprocess=preprocess, config=FitConfig(epochs=1, batch_size=48, compile=chosen))
        for chosen in (False, True)
    )
    assert used == ["VisionTransformer"] and compiled.model._compiled_call_impl is None
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    torch.testing.assert_close(compiled.model.head.weight, plain.model.head.weight, atol=1e-4, rtol=0)


# -- randomness -------------------------------------------------------------------------------------------------------


def test_global_randomness_is_neither_used_nor_changed(data, preprocess, whole):
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    model = make_model(**DROPS)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    result = fit(model, data, preprocess=preprocess, config=EVERYTHING)
    assert draws() == expected
    assert_same_weights(result.model, whole.model)


class Recorder(CrossEntropy):
    """Keeps the batches that reach the objective."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, model, batch, step, context):
        self.seen.append(batch)
        return super().forward(model, batch, step, context)


def test_each_epoch_has_its_own_order_of_all_images(data, preprocess):
    recorder = Recorder()
    fit(make_model(), data, preprocess=preprocess, config=FitConfig(epochs=2, batch_size=24), objective=recorder)
    first, second = ([key for batch in part for key in batch.keys] for part in (recorder.seen[:4], recorder.seen[4:]))
    assert sorted(first) == sorted(second) == sorted(data.keys)
    assert first != second


def test_mixing_is_drawn_by_step(data, preprocess):
    def seen(**mixing):
        recorder = Recorder()
        config = FitConfig(epochs=1, batch_size=24, **mixing)
        fit(make_model(), data, preprocess=preprocess, config=config, objective=recorder)
        return recorder.seen

    plain, mixed = seen(), seen(mixup=1.0)
    assert plain[0].targets.dtype == torch.int64
    shares = set()
    for one, two in zip(plain, mixed, strict=True):
        assert one.keys == two.keys and two.targets.shape == (24, 4)
        pair = next(i for i in range(12) if one.targets[i] != one.targets[23 - i])
        share = two.targets[pair, one.targets[pair]].item()  # of the first image; the partner has the rest
        expected = share * one.images + (1 - share) * one.images.flip(0)
        torch.testing.assert_close(two.images, expected, atol=1e-5, rtol=0)
        shares.add(round(share, 6))
    assert len(shares) == 4


def test_the_seed_matters(data, preprocess, whole):
    other = run_everything(data, preprocess, config=FitConfig(**{**EVERYTHING.to_json(), "seed": 1}))
    assert not torch.equal(other.model.head.weight, whole.model.head.weight)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_non_finite_loss_names_step_and_images_and_takes_no_step(data, preprocess):
    class Exploding(CrossEntropy):
        def forward(self, model, batch, step, context):
            loss = super().forward(model, batch, step, context)
            return Loss(loss.total * (float("nan") if step == 2 else 1.0))

    kept = {}
    keep = At(2, lambda run: kept.update({k: v.clone() for k, v in run.model.state_dict().items()}))
    model = make_model()
    with pytest.raises(NonFiniteLoss, match=r"loss is nan.* at step 2 of epoch 0.*train/\d+, train/\d+") as error:
        fit(
            model,
            data,
            preprocess=preprocess,
            config=FitConfig(batch_size=24),
            objective=Exploding(),
            callbacks=[keep],
        )
    assert len(set(error.value.keys)) == 24 and error.value.step == 2
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


def test_an_infinite_gradient_is_refused_too(data, preprocess):
    with pytest.raises(NonFiniteLoss, match="grad_norm is"):
        fit(make_model(), data, preprocess=preprocess, config=FitConfig(batch_size=24), objective=Steep())


def refused(data, preprocess, text, *, model=None, config=None, **kwargs):
    steps = []
    with pytest.raises(BadInput, match=text):
        fit(
            model or make_model(),
            data,
            preprocess=preprocess,
            config=config or FitConfig(batch_size=24),
            callbacks=[At(1, steps.append)],
            **kwargs,
        )
    assert not steps


def test_a_model_that_does_not_fit_the_data_is_refused(data, preprocess):
    refused(data, preprocess, "classes: the model has 7, the data 4", model=make_model(num_classes=7))


def test_validation_data_with_other_classes_are_refused(data, preprocess):
    swapped = make_data(8, split="val", classes=["right", "left", "top", "bottom"])
    refused(data, preprocess, r"validate has other classes.*right, left, top", validate=swapped)


def test_too_few_images_for_a_step_are_refused(data, preprocess):
    config = FitConfig(batch_size=64, accumulate=2)
    refused(data, preprocess, "needs 128 images a step, but halves has 96", config=config)


def test_label_smoothing_in_two_places_is_refused(data, preprocess):
    config = FitConfig(batch_size=24, label_smoothing=0.1)
    text = r"an objective is given.*CrossEntropy\(label_smoothing=0.1\)"
    refused(data, preprocess, text, config=config, objective=CrossEntropy())


def test_a_frozen_model_is_refused(data, preprocess):
    refused(data, preprocess, "nothing to train", model=make_model().requires_grad_(False))


def test_resume_without_out_is_refused(data, preprocess):
    refused(data, preprocess, "resume=True needs out=", resume=True)


def test_teacher_preprocessing_is_checked_by_fit(data, preprocess):
    objective = SoftDistillation(make_model(1), teacher_preprocess=make_preprocess(mean=0.1))
    refused(data, preprocess, "the teacher was trained with", objective=objective)
