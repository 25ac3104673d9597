"""Zeros of sparse tensors stay exact zeros, whatever trains them and however."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from everything import DROPS, EVERYTHING, At, Killed, assert_same_weights, changed, kill
from processes import run_on
from safetensors.torch import load_file, save_file
from tiny_training import make_data, make_model, make_preprocess

from leanvit import ToMe
from leanvit.anatomy import open_model
from leanvit.anatomy.sparse import set_sparse, sparse_parameters
from leanvit.data import Preprocess, open_dataset
from leanvit.errors import LeanvitError
from leanvit.recipe import Data, Recovery, Root, compress, load, save
from leanvit.recipe.history import create
from leanvit.training import CrossEntropy, FitConfig, fit, join_world
from leanvit.training.checkpoint import STATE
from leanvit.training.config import OPTIMIZERS
from zeroing import Zeros, zero_smallest, zeros_of

NAMES = ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.bias", "blocks.1.mlp.fc2.weight", "patch_embed.proj.weight")
PLAIN = FitConfig(epochs=1, batch_size=8, lr=1e-2)


def pruned(**kwargs):
    """An opened model with zeros in a linear, a bias and a convolution."""
    model = open_model(make_model(**kwargs))
    torch.nn.init.normal_(model.blocks[1].mlp.fc1.bias, std=0.1)
    model.sparse = NAMES
    zero_smallest(model, NAMES)
    return model


def train(model, config, data=None, **kwargs):
    return fit(model, data or make_data(32), preprocess=make_preprocess(), config=config, **kwargs)


def assert_kept(trained, before) -> None:
    for name, zeros in before.items():
        parameter = dict(trained.named_parameters())[name]
        assert (parameter[zeros] == 0).all(), name
        assert (parameter[~zeros] != 0).all(), name


@pytest.mark.parametrize(
    ("optimizer", "clip_mode"), [*((name, "norm") for name in OPTIMIZERS), ("adamw", "value"), ("lamb", "agc")]
)
def test_every_optimiser_leaves_a_zero_at_zero(optimizer, clip_mode):
    model = pruned()
    before, start = zeros_of(model), copy.deepcopy(model.state_dict())
    config = replace(PLAIN, optimizer=optimizer, weight_decay=0.3, clip_grad=0.1, clip_mode=clip_mode, ema_decay=0.5)
    result = train(model, config)
    assert_kept(result.model, before)
    assert_kept(result.ema, before)
    name = NAMES[0]
    moved = result.model.state_dict()[name] != start[name]
    assert moved[~before[name]].float().mean() > 0.9, "all others learn"


@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
def test_with_everything_on(amp):
    model = pruned(**DROPS)
    before = zeros_of(model)
    result = train(model, changed(amp=amp, train_mode="train"), make_data(96), validate=make_data(16, split="val"))
    assert_kept(result.model, before)
    assert_kept(result.ema, before)


def test_clipping_is_of_the_gradient_of_what_is_kept():
    norms = {}

    class Norm:
        def after_step(self, run):
            own = torch.stack([p.grad.norm() for p in run.model.parameters() if p.grad is not None]).norm()
            norms[run.step] = (float(own) / run.grad_factor, run.losses["grad_norm"])
            assert all((p.grad[p == 0] == 0).all() for p in run.sparse) and len(run.sparse) == len(NAMES)

    train(pruned(), replace(PLAIN, clip_grad=0.01), callbacks=[Norm()])
    assert len(norms) == 4
    for of_kept, logged in norms.values():
        assert of_kept == pytest.approx(logged, rel=1e-4)


def test_gradients_that_a_callback_adds_are_masked_too():
    class Noise:
        def before_step(self, run):
            for p in run.sparse:
                p.grad.add_(1.0)

    model = pruned()
    before = zeros_of(model)
    assert_kept(train(model, PLAIN, callbacks=[Noise()]).model, before)


def test_a_gradient_that_is_not_finite_is_no_zero():
    class Broken(CrossEntropy):
        def forward(self, model, batch, step, context):
            weight = dict(model.named_parameters())[NAMES[0]]
            flaw = weight.flatten()[(weight.flatten() == 0).nonzero()[0, 0]]
            loss = super().forward(model, batch, step, context)
            return replace(loss, total=loss.total + (flaw * float("inf")).nan_to_num())

    with pytest.raises(LeanvitError, match="grad_norm is nan"):
        train(pruned(), PLAIN, objective=Broken())


def test_a_model_without_sparse_tensors_trains_bit_for_bit_as_before():
    plain, marked = open_model(make_model()), open_model(make_model())
    marked.sparse = [name for name in NAMES if name.endswith("weight")]  # with no zero in them
    assert_same_weights(train(plain, PLAIN).model, train(marked, PLAIN).model)


def test_a_plain_module_keeps_its_zeros_too():
    model = make_model()
    set_sparse(model, NAMES)
    torch.nn.init.normal_(model.blocks[1].mlp.fc1.bias, std=0.1)
    zero_smallest(model, NAMES)
    before = {name: p.detach() == 0 for name, p in sparse_parameters(model).items()}
    assert_kept(train(model, PLAIN).model, before)


def test_zeros_are_kept_through_a_kill_and_resume(tmp_path):
    data = make_data(96)
    whole = train(pruned(**DROPS), EVERYTHING, data, out=tmp_path / "whole")
    with pytest.raises(Killed):
        train(pruned(**DROPS), EVERYTHING, data, out=tmp_path / "killed", callbacks=[At(5, kill)])
    state = load_file(tmp_path / "killed" / STATE)
    assert not [name for name in state if "mask" in name or "sparse" in name]
    model = pruned(**DROPS)
    before = zeros_of(model)
    again = train(model, EVERYTHING, data, out=tmp_path / "killed", resume=True)
    for result in (whole, again):
        assert_kept(result.model, before)
        assert_kept(result.ema, before)
    assert_same_weights(whole.model, again.model)
    assert_same_weights(whole.ema, again.ema)


def test_temporary_modules_around_a_sparse_one_keep_its_zeros():
    class Wrapped(torch.nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.inner, self.name = mlp, mlp.name
            self.gate = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, state):
            return self.inner(x * self.gate, state)

    class Gate:
        def prepare(self, model):
            model.blocks[1].mlp = Wrapped(model.blocks[1].mlp)

        def deploy(self, model):
            model.blocks[1].mlp = model.blocks[1].mlp.inner

    model = pruned()
    before = zeros_of(model)
    assert_kept(train(model, PLAIN, callbacks=[Gate()]).model, before)


def test_a_callback_that_fills_zeros_is_met():
    class Filling:
        def after_step(self, run):
            if run.step == 2:
                with torch.no_grad():
                    run.sparse[0].add_(0.1)

    with pytest.raises(LeanvitError, match=r"filled \d+ of \d+ pruned weights: a callback changed weights of blocks"):
        train(pruned(), PLAIN, callbacks=[Filling()])


def on_two(out: Path) -> None:
    """DDP and FSDP2, each with accumulation, clipping and an average."""
    for parallel in ("ddp", "fsdp2"):
        model = pruned(**DROPS)
        before = zeros_of(model)
        result = train(model, changed(parallel=parallel, epochs=1), make_data(96))
        for trained in (result.model, result.ema):
            assert_kept(trained, before)
        if join_world().first:
            tensors = {name: t.clone() for name, t in result.model.state_dict().items()}
            save_file(tensors, out / f"{parallel}.final")


def test_zeros_are_kept_on_two_processes(tmp_path):
    assert run_on(2, on_two, tmp_path) == [0, 0]
    model = pruned(**DROPS)
    before = zeros_of(model)
    one = train(model, changed(epochs=1), make_data(96)).model.state_dict()
    for name in ("ddp", "fsdp2"):
        two = load_file(tmp_path / f"{name}.final")
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, atol=2e-4, rtol=0, msg=f"{name} {key}")
        assert all((two[key][zeros] == 0).all() for key, zeros in before.items())


ROOT = Root("vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 3,
                                     "in_chans": 1, "num_classes": 10})  # fmt: skip


def test_recovery_and_a_loaded_run_keep_zeros(tmp_path):
    """`run_recovery` asks the methods of the present call alone: a loaded sparse run has none that would re-zero."""
    data = open_dataset("digits", "train").limited(40)
    dense = create(ROOT)
    given = Data(data, Preprocess.of(dense))
    recovery = Recovery(epochs=1, batch_size=8, lr=1e-2)
    lean = compress(dense, [Zeros()], given, recovery=recovery)
    before = zeros_of(lean)
    assert all(zeros.float().mean() == 0.5 for zeros in before.values()) and lean.sparse
    save(lean, tmp_path)
    again = compress(load(tmp_path), [ToMe(r=1)], given, recovery=recovery)
    assert_kept(again, before)
    loaded = load(tmp_path)
    fit(loaded, data, preprocess=given.preprocess, config=PLAIN, convert=True)
    assert_kept(loaded, before)
    assert not torch.equal(loaded.state_dict()["head.weight"], lean.state_dict()["head.weight"])
