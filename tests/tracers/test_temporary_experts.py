"""Tracer: temporary experts as a way to train (expert weights averaging, arXiv 2308.06093), killed anywhere."""

import copy
import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import leanvit as lv
from leanvit.knobs import Count, Fraction
from leanvit.recipe import Recovery, register
from leanvit.training.checkpoint import BEST, STATE

sys.path.append(str(Path(__file__).parents[1] / "training"))
from processes import run_on

NAME, SMALL = "vit_tiny_patch16_224", {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 1}
STEPS, SETTINGS = 12, {"epochs": 3, "batch_size": 10, "save_every": 2, "ema_decay": 0.8, "augment": "light"}


class Experts(nn.Module):
    """Copies of an MLP, each for a random share of all tokens; in eval mode the MLP of their mean weights."""

    def __init__(self, mlp, count):
        super().__init__()
        self.experts = nn.ModuleList(copy.deepcopy(mlp) for _ in range(count))

    def forward(self, x, state):
        if not self.training:
            return self.merged()(x, state)
        tokens = x.flatten(0, 1)
        order = torch.randperm(len(tokens)) if len(self.experts) > 1 else torch.arange(len(tokens))
        shares = zip(self.experts, order.tensor_split(len(self.experts)), strict=True)
        found = torch.cat([expert(tokens[share][None], state)[0][0] for expert, share in shares])
        return found[order.argsort()].view_as(x), state

    @torch.no_grad()
    def draw_together(self, rate):
        for weights in zip(*(expert.parameters() for expert in self.experts), strict=True):
            mean = torch.stack(weights).mean(0)
            for weight in weights:
                weight.lerp_(mean, rate * len(weights) / max(len(weights) - 1, 1))

    @torch.no_grad()
    def merged(self):
        mlp = copy.deepcopy(self.experts[0])
        for target, *weights in zip(*(one.parameters() for one in (mlp, *self.experts)), strict=True):
            target.copy_(torch.stack(weights).mean(0))
        return mlp


class Averaging(nn.Module):
    """Its share rate rises with the steps that it has counted itself."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.register_buffer("steps", torch.zeros(()))

    def prepare(self, model):
        for block in model.blocks[1::2]:
            block.mlp = Experts(block.mlp, self.way.experts)

    def after_step(self, run):
        self.steps += 1
        for experts in (module for module in run.model.modules() if isinstance(module, Experts)):
            experts.draw_together(self.way.rate * float(self.steps) / STEPS)
        if run.step == int(os.environ.get("TRACER_DIES_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)

    def deploy(self, model):
        for block in model.blocks[1::2]:
            block.mlp = block.mlp.merged() if isinstance(block.mlp, Experts) else block.mlp


@register("tracer_experts", title="Experts weights averaging", summary="averages temporary experts", kind="train")
@dataclass(frozen=True)
class Ewa:
    experts: Count = 3
    rate: Fraction = 0.3

    def callbacks(self, model):
        return [Averaging(self)]


def train(out, way=None, resume=False, dies_at=0):
    os.environ["TRACER_DIES_AT"] = str(dies_at)
    given = {"adapt": True, "model_args": SMALL, "limit": 40, "keep": "best", "resume": resume, "out": out}
    return lv.load(lv.train(NAME, "digits", settings=SETTINGS, methods=[way] if way else [], **given).folder)


@pytest.mark.e2e
def test_killed_at_random_steps_and_resumed_it_ends_with_the_same_bits(tmp_path, one_thread):
    whole = train(tmp_path / "whole", Ewa()).state_dict()
    steps = sorted(random.sample(range(1, STEPS), 3))
    for number, step in enumerate(steps):
        assert run_on(1, train, tmp_path / "killed", Ewa(), number > 0, step) == [-signal.SIGKILL], steps
    again = train(tmp_path / "killed", Ewa(), resume=True)
    plain = timm.create_model(again.history.root.name, **again.history.root.kwargs)
    plain.load_state_dict(again.state_dict())
    assert all(torch.equal(tensor, whole[key]) for key, tensor in again.state_dict().items()), steps
    assert load_file(tmp_path / "killed" / BEST).keys() == whole.keys()
    assert any(".experts.2." in key for key in load_file(tmp_path / "killed" / STATE))


def test_one_expert_is_the_usual_training_and_a_recovery_takes_them_too(tmp_path, one_thread):
    one, usual = train(tmp_path / "one", Ewa(experts=1)), train(tmp_path / "usual").state_dict()
    assert all(torch.equal(tensor, usual[key]) for key, tensor in one.state_dict().items())
    data = lv.Data(lv.open_dataset("digits", "train").limited(20), one.preprocess)
    lean = lv.compress(one, [lv.ToMe(r=1)], data, recovery=Recovery(epochs=1, batch_size=10, methods=(Ewa(),)))
    assert lean.state_dict().keys() == usual.keys() and lean.reduces_tokens
    assert not torch.equal(lean.blocks[1].mlp.fc1.weight, one.blocks[1].mlp.fc1.weight)
