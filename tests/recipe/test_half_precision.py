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
from leanvit.verbs import measure
from leanvit.verbs.compressing import compress as verb

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_run_is_measured_beside_its_dense_one(dtype: torch.dtype, tmp_path: Path) -> None:
    model = create(Root("vit_tiny_patch16_224", HALF))
    save(compress(model, []), tmp_path / "dense")
    save(compress(model.to(dtype), []), tmp_path / "half")
    given = {"data": "digits", "limit": 20, "latency_batch": 2}
    found = measure(tmp_path / "half", against=[tmp_path / "dense"], rounds=3, **given).comparison
    short = {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    assert sorted(str(row.precision) for row in found.rows) == sorted([short, "f32"])
    assert all(row.latency_ms and row.peak_memory_bytes and row.macs_per_image for row in found.rows)
    made = verb(tmp_path / "half", [EViT(blocks=(1,))], out=tmp_path / "lean", **given)  # with token maps
    assert made.comparison is not None and len(made.comparison.rows) == 2
