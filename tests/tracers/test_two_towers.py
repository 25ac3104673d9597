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
from leanvit.data import Preprocess, loader
from leanvit.recipe import ForeignRoot, Root
from leanvit.training import FitConfig, Loss, WholeBatch, fit, join_world

sys.path.append(str(Path(__file__).parents[1] / "training"))
from processes import run_on
from test_processes import Holed
from tiny_training import make_data

CAPTIONS = torch.tensor([[1, 2, 0], [1, 3, 0], [4, 2, 5], [4, 3, 5]])  # one a class
IMAGE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1, "num_classes": 8}
RUNS = {"all": "all", "all chunk": "all", "gone": "gone", "gone chunk": "gone"}  # and what each is like


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
    main = "image"
    required = ("text", "scale")

    def run(self, model, images, **context):
        text = model.text(context.pop("tokens"))
        image, state = model.image.trace(images, **context)
        return {"image": model.scale(normalize(image, dim=-1)), "text": normalize(text, dim=-1)}, state


class Contrastive(WholeBatch):
    def features(self, model, batch, step, context):
        return model(batch.images, tokens=CAPTIONS[batch.targets], **context)

    def loss(self, features):
        logits, places = features["image"] @ features["text"].T, torch.arange(len(features["image"]))
        total = (cross_entropy(logits, places) + cross_entropy(logits.T, places)) / 2
        return Loss(total, {"images": torch.tensor(float(len(places)))})


class Look(list):
    """Keeps the figures of every step, and sees that the locked tower rests."""

    def after_step(self, run):
        self.append(run.losses)
        trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for name, p in run.model.named_parameters() if not name.startswith("text.")}
        assert not run.model.text.training and not run.model.text.drop.training and run.model.image.training


def two_towers(**more) -> Composite:
    torch.manual_seed(0)
    text = ForeignRoot("tracer_text", {"words": 6, "width": 8})
    parts = {"image": Root("vit_tiny_patch16_224", IMAGE | more), "text": text, "scale": Root("tracer_scale")}
    return compose(Clip(), parts)


def train(out: Path) -> None:
    """20 steps: of all images, and without those that the second of two processes has in the first."""
    out.mkdir(exist_ok=True)
    config = FitConfig(epochs=5, batch_size=24, lr=0.02, optimizer="momentum", locked=("text",))
    data, preprocess = make_data(96), Preprocess.of(two_towers())
    second = next(iter(loader(data, preprocess, batch_size=24, train=True, share=(1, 2)))).keys
    holed = replace(data, images=Holed(data.images, tuple(map(data.keys.index, second))), on_bad="skip")
    for name in RUNS:
        images, drops = (data, {"drop_path_rate": 0.2}) if name.startswith("all") else (holed, {})
        model, look, loss = two_towers(**drops), Look(), Contrastive(5 if name.endswith("chunk") else None)
        fit(model, images, preprocess=preprocess, config=config, objective=loss, callbacks=[look])
        if join_world().first:
            figures = {key: torch.tensor([row[key] for row in look]) for key in ("loss", "images")}
            save_file(figures | {key: tensor.clone() for key, tensor in model.state_dict().items()}, out / name)
            save(model, out / f"{name}.run")
            again, given = load(out / f"{name}.run"), {"images": torch.randn(2, 1, 8, 8), "tokens": CAPTIONS[:2]}
            assert all(torch.equal(feature, again(**given)[key]) for key, feature in model(**given).items())


@pytest.mark.e2e
def test_two_processes_are_one_and_the_locked_tower_rests(tmp_path):
    start, (one, two) = two_towers().state_dict(), (tmp_path / number for number in ("one", "two"))
    assert run_on(2, train, two) == [0, 0]
    train(one)
    for folder, (name, whole) in itertools.product((one, two), RUNS.items()):
        found, expected = load_file(folder / name), load_file(one / whole)
        assert len(found["loss"]) == 20 and found["images"][0] == (24 if whole == "all" else 12)
        assert found["loss"][-1] < found["loss"][1] - 0.05
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, expected[key], atol=1e-5, rtol=0, msg=key)
            assert key not in start or torch.equal(tensor, start[key]) == key.startswith("text."), key
