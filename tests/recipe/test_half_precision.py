"""Models in half precision: saved, loaded, shaped and measured as they are; what learns refuses them before work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leanvit.data import Preprocess, loader, open_dataset
from leanvit.deploy import export
from leanvit.errors import BadInput
from leanvit.measure import predict
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Data, Recovery, Root, compress, create, load, save
from leanvit.tokens.evit import EViT
from leanvit.training import FitConfig, fit

HALF = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 3, "num_heads": 1, "in_chans": 1, "num_classes": 10}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_or_says_so(dtype: torch.dtype, tmp_path: Path) -> None:
    data = open_dataset("digits", "train", limit=20)
    model = create(Root("vit_tiny_patch16_224", HALF)).to(dtype)
    preprocess = Preprocess.of(model)
    save(compress(model, [EViT(blocks=(1,))]), tmp_path / "run", preprocess=preprocess)
    loaded = load(tmp_path / "run")
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    logits = predict(loaded, loader(data, preprocess, batch_size=10)).logits
    assert logits.dtype == torch.float32 and logits.shape == (20, 10)
    images = next(iter(loader(data, preprocess, batch_size=20))).images
    assert torch.equal(loaded(images.to(dtype)).float(), torch.as_tensor(logits))
    here, seen = Data(data, preprocess), []
    config = FitConfig(epochs=1, batch_size=10)
    name = str(dtype).removeprefix("torch.")
    for work in (
        lambda: compress(model, [Int8(images=4)], here, on_step=lambda *_: seen.append(1)),
        lambda: compress(model, [EViT()], here, recovery=Recovery(epochs=1, batch_size=10), out=tmp_path / "new"),
        lambda: fit(model, data, preprocess=preprocess, config=config, out=tmp_path / "new"),
        lambda: export(model, tmp_path / "new", to="torch", preprocess=preprocess),
    ):
        with pytest.raises(BadInput, match=rf"the model holds (torch\.)?{name}.*model\.float\(\)"):
            work()
    assert not seen and not (tmp_path / "new").exists()
