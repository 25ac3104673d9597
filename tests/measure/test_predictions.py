from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from leanvit.errors import BadInput, CheckpointError
from leanvit.measure import Predictions, predict
from leanvit.measure.predictions import predict_all

from .conftest import answers


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


def test_predict_keeps_every_image_once_in_order(batches) -> None:
    model = linear()
    found = predict(model, batches)
    with torch.no_grad():
        expected = model(torch.cat([b.images for b in batches]))
    assert torch.allclose(found.logits, expected, atol=1e-6)
    assert found.keys == tuple(f"image-{i:02d}" for i in range(23))
    assert torch.equal(found.targets, torch.cat([b.targets for b in batches]))
    assert not found.logits.is_inference()


def test_predict_runs_in_eval_mode_and_gives_the_mode_back(batches) -> None:
    model = nn.Sequential(linear(), nn.Dropout(0.9)).train()
    model[0].eval()
    assert torch.equal(predict(model, batches).logits, predict(model, batches).logits)
    assert model.training and model[1].training and not model[0].training


def test_a_fixed_batch_is_filled_and_cut(batches) -> None:
    class Fixed:
        batch = 5

        def __init__(self) -> None:
            self.model = linear().eval()
            self.sizes: set[int] = set()

        def __call__(self, images: Tensor) -> Tensor:
            self.sizes.add(len(images))
            return self.model(images)

    runner = Fixed()
    found = predict(runner, batches)
    assert runner.sizes == {5}
    assert torch.allclose(found.logits, predict(runner.model, batches).logits, atol=1e-6)


def test_runners_may_give_numpy_or_half_precision(batches) -> None:
    model = linear().eval()
    assert torch.equal(predict(lambda x: model(x).numpy(), batches).logits, predict(model, batches).logits)
    assert predict(lambda x: model(x).half(), batches).logits.dtype is torch.float32


def test_one_pass_serves_several_runners(batches) -> None:
    """A generator can be read only once."""
    a, b = linear(), linear()
    found = predict_all({"a": a, "b": b}, (batch for batch in batches))
    assert torch.equal(found["a"].logits, predict(a, batches).logits)
    assert torch.equal(found["b"].logits, predict(b, batches).logits)


def test_bad_outputs_are_named(batches) -> None:
    def poisoned(images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 5)
        logits[2, 1] = float("nan")
        return logits

    with pytest.raises(BadInput, match="runner: logits are not finite for 1 of 8 images: 'image-02'"):
        predict(poisoned, batches)
    with pytest.raises(BadInput, match=r"shape \(8, classes\) for 8 images, it returned shape \(8, 3, 4, 4\)"):
        predict(lambda x: x, batches)
    with pytest.raises(BadInput, match="it returned tuple"):
        predict(lambda x: (x, x), batches)
    with pytest.raises(BadInput, match="no class of a runner with 2 classes"):
        predict(lambda x: torch.zeros(len(x), 2), batches)
    with pytest.raises(BadInput, match="gave no batch"):
        predict(linear(), [])


def test_predictions_are_checked() -> None:
    with pytest.raises(BadInput, match="key 'x' comes twice"):
        answers([0, 1, 2], [0, 1, 2], keys=["x", "y", "x"])
    with pytest.raises(BadInput, match="at least one image"):
        Predictions(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), ())
    with pytest.raises(BadInput, match=r"logits \(2, 3\), targets \(1,\)"):
        Predictions(torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64), ("a", "b"))
    with pytest.raises(BadInput, match="target 3 of key 'k1' is no class"):
        answers([0, 1], [0, 3])


def test_save_and_load(tmp_path) -> None:
    saved = answers([0, 1, 2], [2, 1, 0], keys=["a/ä", "b\n", "c"])
    path = tmp_path / "predictions.safetensors"
    saved.save(path)
    saved.save(path)  # over an old one
    loaded = Predictions.load(path)
    assert loaded.keys == saved.keys
    assert torch.equal(loaded.logits, saved.logits) and torch.equal(loaded.targets, saved.targets)
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.safetensors"]


def test_foreign_and_broken_files_are_refused(tmp_path) -> None:
    path = tmp_path / "file"
    with pytest.raises(BadInput, match="no predictions at"):
        Predictions.load(path)
    answers([0, 1, 2], [2, 1, 0]).save(path)
    whole = path.read_bytes()
    for broken in (b"", whole[:40], whole[:-3], pickle.dumps({"logits": 1}), b"{" * 100):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="cannot be read as predictions"):
            Predictions.load(path)
    tensors = {"logits": torch.zeros(2, 3), "targets": torch.zeros(2, dtype=torch.int64)}
    ours = "leanvit.predictions/1"
    for metadata, message in (
        (None, "found 'none'"),
        ({"format": "leanvit.predictions/9", "keys": "[]"}, "found 'leanvit.predictions/9'"),
        ({"format": ours}, "cannot be read"),
        ({"format": ours, "keys": json.dumps(["a", 1])}, "no list of keys"),
        ({"format": ours, "keys": json.dumps(["a", "a"])}, "comes twice"),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=message):
            Predictions.load(path)
    save_file({"logits": torch.zeros(1, 3).half(), "targets": torch.zeros(1)}, path, {"format": ours, "keys": '["a"]'})
    with pytest.raises(CheckpointError, match="logits must be float32"):
        Predictions.load(path)
