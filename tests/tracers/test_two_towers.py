"""Tracer: image and text tower, contrastive over the whole batch (CLIP, arXiv 2103.00020), the text tower locked."""

import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from leanvit import compose, load, save
from leanvit.anatomy.composite import Composite, OpenPart, Wiring, foreign, part, wiring
from leanvit.data import Preprocess, Values, loader
from leanvit.recipe import ForeignRoot, Root
from leanvit.training import FitConfig, Loss, WholeBatch, fit, join_world

sys.path.append(str(Path(__file__).parents[1] / "training"))
from processes import run_on
from test_processes import Holed
from tiny_training import make_data

CAPTIONS = torch.tensor([[1, 2, 0], [1, 3, 0], [4, 2, 5], [4, 3, 5]])  # one a class
IMAGE = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "in_chans": 1, "drop_path_rate": 0.2}


@foreign("tracer_text")
class TextTower(nn.Module):
    """Tokens (B, 3) to features (B, width); its state dict lacks the weights of the places."""

    def __init__(self, words, width):
        super().__init__()
        self.table, self.drop = nn.Embedding(words, width), nn.Dropout(0.5)
        self.register_buffer("places", torch.linspace(1, 2, 3)[:, None], persistent=False)

    def forward(self, tokens):
        return self.drop(self.table(tokens) * self.places).mean(dim=1)


@part("tracer_scale")
class Scale(OpenPart):
    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return x * self.log.exp()


@wiring("tracer_clip")
@dataclass(frozen=True)
class Clip(Wiring):
    main, required = "image", ("text", "scale")

    def run(self, model, images, **context):
        text = model.text(context.pop("tokens"))
        image, state = model.image.trace(images, **context)
        return {"image": model.scale(normalize(image, dim=-1)), "text": normalize(text, dim=-1)}, state


class Contrastive(WholeBatch):
    needs_labels = False

    def features(self, model, batch, step, context):
        return model(batch.images, tokens=batch["tokens"], **context)

    def loss(self, features):
        logits, places = features["image"] @ features["text"].T, torch.arange(len(features["image"]))
        total = (cross_entropy(logits, places) + cross_entropy(logits.T, places)) / 2
        return Loss(total, {"images": torch.tensor(float(len(places)))})


class Look(list):
    def after_step(self, run):
        self.append(run.losses)  # and the locked tower rests, at every step:
        trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for name, p in run.model.named_parameters() if not name.startswith("text.")}
        assert not run.model.text.training and not run.model.text.drop.training and run.model.image.training


def two_towers() -> Composite:
    torch.manual_seed(0)
    image, text = Root("vit_tiny_patch16_224", IMAGE | {"num_classes": 8}), {"words": 6, "width": 8}
    return compose(Clip(), {"image": image, "text": ForeignRoot("tracer_text", text), "scale": Root("tracer_scale")})


def train(out: Path) -> None:
    """20 steps: of all images, and without those that the second of two processes has in the first."""
    config = FitConfig(epochs=5, batch_size=24, lr=0.02, optimizer="momentum", locked=("text",))
    preprocess, captions = Preprocess.of(two_towers()), Values(CAPTIONS[make_data(96).targets])
    data = make_data(96).with_field("tokens", captions).without_labels()
    second = next(iter(loader(data, preprocess, batch_size=24, train=True, share=(1, 2)))).keys
    holed = replace(data, images=Holed(data.images, tuple(map(data.keys.index, second))), on_bad="skip")
    for (which, images), chunk in itertools.product((("all", data), ("gone", holed)), (None, 5)):
        model, look = two_towers(), Look()
        fit(model, images, preprocess=preprocess, config=config, objective=Contrastive(chunk), callbacks=[look])
        if join_world().first:
            tensors, file = {key: tensor.clone() for key, tensor in model.state_dict().items()}, f"{which} {chunk}"
            tensors |= {key: torch.tensor([row[key] for row in look]) for key in ("loss", "images")}
            save_file(tensors, out / file)
            again = load(save(model, out / f"{file}.run"))
            mine, other = (one(torch.ones(2, 1, 8, 8), tokens=CAPTIONS[:2]) for one in (model, again))
            assert torch.equal(mine["image"], other["image"]) and torch.equal(mine["text"], other["text"])


@pytest.mark.e2e
def test_two_processes_are_one_and_the_locked_tower_rests(tmp_path_factory):
    start, (one, two) = two_towers().state_dict(), (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    assert run_on(2, train, two) == [0, 0]
    train(one)
    for folder, which, chunk in itertools.product((one, two), ("all", "gone"), (None, 5)):
        found, expected = load_file(folder / f"{which} {chunk}"), load_file(one / f"{which} None")
        assert len(found["loss"]) == 20 and found["images"][0] == (24 if which == "all" else 12)
        assert found["loss"][-1] < found["loss"][1] - 0.05
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, expected[key], atol=1e-5, rtol=0, msg=key)
            assert key not in start or torch.equal(tensor, start[key]) == key.startswith("text."), key
