"""Tracer: masked autoencoding (arXiv 2111.06377) on a folder without labels; the encoder goes on in plain timm."""

import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from golden import Case, cases
from leanvit import Preprocess, compose, load, open_dataset, save
from leanvit.anatomy.composite import Composite, Wiring, wiring
from leanvit.anatomy.parts.blocks import apply_norm
from leanvit.anatomy.parts.tokens import take_tokens, with_prefix
from leanvit.data import Batch
from leanvit.knobs import BelowOne
from leanvit.recipe import Root
from leanvit.training import FitConfig, Loss, Objective, fit, join_world
from training.processes import run_on


@wiring("tracer_mae")
@dataclass(frozen=True)
class MAE(Wiring):
    """Pixels (B, patches, values) of all patches by those that are first in the order of `noise` (B, patches)."""

    ratio: BelowOne
    main, required = "encoder", ("decoder",)  # whose 1x1 "patches" are tokens of the encoder
    keeps = dict.fromkeys(("encoder", "decoder"), frozenset({"full_grid", "class_token", "width"}))

    def run(self, model: Composite, images: Any, **context: Any) -> Any:
        order, (encoder, decoder) = context.pop("noise").argsort(dim=1), model.parts.values()
        kept = order[:, : int(order.shape[1] * (1 - self.ratio))]
        x, state = encoder.embed(images, encoder.start(images, **context))
        x, state = encoder.run(take_tokens(x, with_prefix(kept, 1)), state.taken(kept))
        x, full = apply_norm(state.ops, "norm", encoder.norm, x), decoder.start(torch.empty(1, 1, *state.grid))
        x = full.ops.conv("patch_embed.proj", decoder.patch_embed.proj, x.mT.unsqueeze(3)).squeeze(3).mT
        masked = decoder.cls_token.expand(len(x), order.shape[1] - kept.shape[1], -1)  # stands for what is not seen
        x = take_tokens(torch.cat([x, masked], dim=1), with_prefix(order.argsort(dim=1), 1)) + decoder.pos_embed
        return decoder.classify(*decoder.run(x, full))[0][:, 1:], state


class Masked(Objective):
    needs_labels = False  # the mean over masked patches of the squared error of normalised pixels

    def bind(self, model: Any, preprocess: Any = None) -> None:
        self.grid, self.patches = model.grid(), model.patches()
        self.kept = int(self.patches * (1 - model.wiring.ratio))

    def terms(self, batch: Batch) -> int:
        return len(batch) * (self.patches - self.kept)

    def forward(self, model: Any, batch: Batch, step: int, context: Any) -> Loss:
        noise = context["noise"] if context else torch.rand(len(batch), self.patches)
        patches = batch.images.unflatten(3, (self.grid[1], -1)).unflatten(2, (self.grid[0], -1))
        pixels = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # by row, column, channel
        masked = noise.argsort(dim=1).argsort(dim=1) >= self.kept
        return Loss((model(batch.images, noise=noise) - pixels).square().mean(dim=2)[masked].mean())


VIT = "vit_tiny_patch16_224"
ENCODER = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
DECODER = {"img_size": 4, "patch_size": 1, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3 * 4**2}
NAMES = {"mask_token": "decoder.cls_token", "decoder_embed": "decoder.patch_embed.proj", "decoder_pred": "decoder.head"}
NAMES |= {"decoder_": "decoder.", "": "encoder."}  # beginnings of official names -> of ours


def autoencoder(ratio: float, encoder: dict[str, int], decoder: dict[str, int]) -> Composite:
    parts = {"encoder": encoder, "decoder": {**decoder, "in_chans": encoder["embed_dim"], "global_pool": ""}}
    return compose(MAE(ratio), {name: Root(VIT, kwargs) for name, kwargs in parts.items()})


@cases("medical_mae", "mae_pretrain")
def test_the_loss_is_that_of_the_official_code(case: Case) -> None:
    a, given, objective = case.meta["args"], case.group("input/"), Masked()
    own = {key: a.get(f"decoder_{key}", 1) for key in DECODER} | {"img_size": 5, "num_classes": 3 * 8**2}
    model = autoencoder(a["mask_ratio"], {key: a.get(key, 0) for key in ENCODER}, own)
    for key, tensor in case.group("weights/").items():
        old = next(old for old in NAMES if key.startswith(old))
        parameter = model.get_parameter(NAMES[old] + key.removeprefix(old))
        parameter.data = tensor.view_as(parameter)
    objective.bind(model)
    loss = objective(model, Batch(given["x"], None, []), 0, {"noise": given["noise"]}).total
    torch.testing.assert_close(loss, case.group("output/")["loss"], atol=2e-5, rtol=1e-5)


def train(out: Path, killed_at: int = 0, resume: bool = False) -> list[float]:
    torch.manual_seed(0)
    model, data = autoencoder(0.75, ENCODER, DECODER), open_dataset(f"{out.parent / 'pictures'}?labels=none", "train")
    kill = SimpleNamespace(after_step=lambda run: run.step == killed_at and signal.raise_signal(signal.SIGKILL))
    config = FitConfig(epochs=8, batch_size=8, lr=3e-3, eps=1e-3, augment="light", save_every=4)
    more: Any = {"preprocess": Preprocess.of(model), "objective": Masked(), "callbacks": [kill], "resume": resume}
    result = fit(model, data, config=config, out=out, **more)
    save(model, out / f"rank{join_world().rank}")
    return [row["loss"] for row in result.history]


@pytest.mark.e2e
def test_a_killed_pretraining_goes_on_and_its_encoder_loads_in_timm(tmp_path: Path, one_thread: None) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(56):
        Image.new("RGB", (16, 16), (4 * i, 255 - 4 * i, 128)).save(tmp_path / "pictures" / f"{i}.png")
    losses = train(tmp_path / "whole")
    assert run_on(1, train, tmp_path / "cut", 10) == [-signal.SIGKILL] and losses[-1] < 0.7 * losses[0]
    train(tmp_path / "cut", resume=True)
    assert run_on(2, train, tmp_path / "both") == [0, 0]
    whole, cut, both = (load(tmp_path / name / "rank0") for name in ("whole", "cut", "both"))
    for other, atol in ((cut, 0), (both, 1e-5)):
        torch.testing.assert_close(other.state_dict(), whole.state_dict(), atol=atol, rtol=0)
    save(whole.encoder, tmp_path / "encoder")
    plain = timm.create_model(VIT, **ENCODER, checkpoint_path=next((tmp_path / "encoder").glob("*.safetensors"))).eval()
    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    torch.testing.assert_close(plain.forward_features(images), whole.encoder.forward_features(images))
    moved = compose(MAE(0.75), {"encoder": plain, "decoder": whole.decoder}).eval()
    torch.testing.assert_close(moved(images, noise=noise), whole(images, noise=noise))
