"""Locked parts: the same bits after any number of steps, at rest, unknown to the optimiser."""

import pytest
import torch
from everything import DROPS, At, Killed, assert_same_weights, changed, kill, run_everything
from safetensors.torch import load_file
from test_best import Normed
from tiny_training import make_model
from torch import nn

from leanvit.errors import BadInput
from leanvit.training import CrossEntropy, FitConfig, Loss, check_run, fit
from leanvit.training.checkpoint import STATE

LOCKED = ("patch_embed", "blocks.0", "pos_embed")


def inside(name: str) -> bool:
    return name == "pos_embed" or name.startswith(("patch_embed.", "blocks.0."))


def test_locked_parts_keep_their_bits_and_own_nothing(data, preprocess, tmp_path):
    class Look:
        def after_step(self, run):
            assert all((p.grad is None) == inside(name) for name, p in run.model.named_parameters())
            trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
            assert trained == {id(p) for name, p in run.model.named_parameters() if not inside(name)}
            modes = {name: m.training for name, m in run.model.named_modules() if name}
            assert not any(modes[name] for name in modes if inside(f"{name}.")) and modes["blocks.1.drop_path1"]

    start = make_model(**DROPS).state_dict()
    result = run_everything(data, preprocess, config=changed(locked=LOCKED), callbacks=[Look()], out=tmp_path)
    for model in (result.model, result.ema):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, start[name]) == inside(name), name
        assert all(p.requires_grad for p in model.parameters())
    slots = [name for name in load_file(tmp_path / STATE) if name.startswith("optimizer.")]
    assert slots and not any(inside(name.removeprefix("optimizer.model.")) for name in slots)


def test_a_locked_model_runs_as_in_evaluation(data, preprocess):
    """What dropout and a batch norm give is what they give in eval mode; the statistics rest."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.trunk(x))

    class Compared(CrossEntropy):
        def forward(self, model, batch, step, context):
            assert model.training and model.head.training
            seen = model.trunk(batch.images)
            assert torch.equal(seen, model.trunk(batch.images)) and not seen.requires_grad
            return Loss(self.of(model(batch.images), batch.targets))

    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = FitConfig(epochs=1, batch_size=24, locked=["trunk"])
    fit(model, data, preprocess=preprocess, config=config, objective=Compared())
    changed_names = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed_names == {"head.weight", "head.bias"}


def test_a_flag_that_was_off_stays_off(data, preprocess):
    model = make_model()
    model.cls_token.requires_grad_(False)
    fit(model, data, preprocess=preprocess, config=FitConfig(epochs=1, batch_size=48, locked=LOCKED))
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"cls_token"}


def test_a_resumed_run_has_the_same_locked_parts(data, preprocess, tmp_path):
    config = changed(locked=LOCKED)
    whole = run_everything(data, preprocess, config=config)
    with pytest.raises(Killed):
        run_everything(data, preprocess, config=config, callbacks=[At(5, kill)], out=tmp_path)
    with pytest.raises(BadInput, match=r"locked was \['patch_embed', 'blocks.0', 'pos_embed'\] and is now \[\]"):
        run_everything(data, preprocess, out=tmp_path, resume=True)
    again = run_everything(data, preprocess, config=config, out=tmp_path, resume=True)
    assert_same_weights(again.model, whole.model)
    assert_same_weights(again.ema, whole.ema)


@pytest.mark.parametrize(
    ("locked", "says"),
    [
        (("blocks.5",), r"unknown locked module 'blocks\.5': did you mean 'blocks\.\d'"),
        (("patch_embd",), r"did you mean 'patch_embed"),
        (("",), r"unknown locked module ''"),
        (("cls_tokens",), r"unknown locked module 'cls_tokens': did you mean 'cls_token'"),
        (("trunk.0", "head"), ""),
        (("conv", "norm", "head"), "leaves no parameter that learns"),
    ],
)
def test_what_cannot_be_locked_is_refused_before_any_work(data, preprocess, locked, says):
    model = Normed("map") if "head" in locked else make_model()
    says = says or r"unknown locked module 'trunk\.0'"
    with pytest.raises(BadInput, match=says):
        check_run(model, data, preprocess=preprocess, config=FitConfig(batch_size=24, locked=locked))
    assert all(p.requires_grad for p in model.parameters())


def test_a_locked_batch_norm_may_see_one_value(data, preprocess):
    model = Normed("mean")
    with pytest.raises(BadInput, match="gives the batch norm 'norm'"):
        check_run(model, data, preprocess=preprocess, config=FitConfig(batch_size=1))
    check_run(model, data, preprocess=preprocess, config=FitConfig(batch_size=1, locked=["norm"]))
