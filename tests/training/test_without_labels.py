"""Objectives that need no labels train on sets that have none; what reads labels is refused before the first step."""

from __future__ import annotations

import pytest
import torch
from processes import run_on
from tiny_training import make_data, make_model, make_preprocess
from torch import nn

from leanvit.anatomy import open_model
from leanvit.data import Masks
from leanvit.errors import BadInput
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Data, Recovery, Root, compress, create
from leanvit.tokens.tome import ToMe
from leanvit.training import FitConfig, Loss, Objective, fit


class Brightness(Objective):
    """The first output says how bright the image is."""

    needs_labels = False

    def forward(self, model, batch, step, context):
        assert batch.targets is None
        return Loss((model(batch.images)[:, 0] - batch.images.mean(dim=(1, 2, 3))).square().mean())


class Stop:
    def __init__(self, at):
        self.at = at

    def after_step(self, run):
        if run.step == self.at:
            raise KeyboardInterrupt


def bare(count=24):
    return make_data(count).without_labels()


def train(out, *, callbacks=(), resume=False, dataset=None):
    model = make_model()
    config = FitConfig(epochs=2, batch_size=8, optimizer="sgd", lr=1e-2, augment="light", warmup_epochs=0)
    fit(
        model,
        bare() if dataset is None else dataset,
        preprocess=make_preprocess(),
        config=config,
        objective=Brightness(),
        callbacks=callbacks,
        out=out,
        resume=resume,
    )
    return model.state_dict()


def test_training_without_labels_resumes_to_the_bit(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", callbacks=[Stop(4)])
    resumed = train(tmp_path / "cut", resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(whole["head.weight"], make_model().state_dict()["head.weight"])
    with pytest.raises(BadInput, match="data"):
        train(tmp_path / "cut", resume=True, dataset=bare(16))


def shared(out):
    torch.save(train(None), f"{out}/{torch.distributed.get_rank()}.pt")


@pytest.mark.e2e
def test_two_processes_train_as_one(tmp_path):
    assert run_on(2, shared, str(tmp_path)) == [0, 0]
    one = train(None)
    for rank in (0, 1):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.allclose(one[name], both[name], atol=1e-5) for name in one)


def test_an_opened_model_keeps_the_names_of_its_outputs():
    model = open_model(make_model())
    model.classes = ("a", "b", "c", "d")
    fit(model, bare(), preprocess=make_preprocess(), config=FitConfig(epochs=1, batch_size=8), objective=Brightness())
    assert model.classes == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "training needs labels, but data 'halves' has none"),
        ({"objective": nn.Identity}, "objective Plain needs labels"),
        ({"objective": Brightness, "config": {"mixup": 0.2}}, "mixup and cutmix needs labels"),
        ({"objective": Brightness, "validate": True}, "validate= needs labels"),
    ],
)
def test_what_reads_labels_is_refused(arguments, says):
    class Plain(Objective):
        pass

    objective = {None: None, nn.Identity: Plain(), Brightness: Brightness()}[arguments.get("objective")]
    with pytest.raises(BadInput, match=says):
        fit(
            make_model(),
            bare(),
            preprocess=make_preprocess(),
            config=FitConfig(epochs=1, batch_size=8, **arguments.get("config", {})),
            objective=objective,
            validate=bare() if "validate" in arguments else None,
        )


def test_methods_that_only_look_at_images_take_a_set_without_labels():
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1}
    model = create(Root("vit_tiny_patch16_224", {**shape, "num_classes": 4})).eval()
    data = Data(bare(), make_preprocess())
    lean = compress(model, [Int8(images=8)], data)
    assert lean.history.plans[0].slug == "int8"
    with pytest.raises(BadInput, match="a recovery needs labels, but data 'halves' has none"):
        compress(model, [ToMe(r=1)], data, recovery=Recovery(epochs=1, batch_size=8))


def test_masks_train_with_their_images_and_mixing_is_refused():
    seen = []

    class PerPixel(Objective):
        def forward(self, model, batch, step, context):
            seen.append((batch["mask"].shape, batch.epoch, len(batch.seeds)))
            return Loss(model(batch.images).square().mean())

    dataset = make_data(16)
    dataset = dataset.with_field("mask", Masks([sample.image for sample in dataset]))

    def run(**settings):
        config = FitConfig(epochs=2, batch_size=8, **settings)
        fit(make_model(), dataset, preprocess=make_preprocess(), config=config, objective=PerPixel())

    run(augment="light")
    assert seen == [((8, 8, 8), epoch, 8) for epoch in (0, 0, 1, 1)]
    with pytest.raises(BadInput, match=r"mixup and cutmix mix images and their labels, but not their mask \(Masks\)"):
        run(mixup=0.5)
    with pytest.raises(BadInput, match=r"Augment\.auto_augment=.* changes an image, but not its mask"):
        run(augment="randaug")
