"""`compare` end to end on small networks: every column is checked against its own definition."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from leanvit.errors import BadInput
from leanvit.measure import NoMeter, accuracy, accuracy_change, agreement, compare, count, predict

QUICK = {"rounds": 3, "min_seconds": 1e-4}


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 5))


def lean() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


class Artefact:
    """A runner of another runtime that says what it is."""

    runtime, precision = "openvino", "int8"

    def __init__(self, *, batch: int | None = None) -> None:
        self.batch, self.sizes = batch, set()
        self.model = lean().eval()

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.add(len(images))
        return self.model(images)


def test_rows_hold_what_the_single_measures_say(batches, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights").write_bytes(b"x" * 1000)
    (tmp_path / "run" / "plan").write_bytes(b"x" * 24)
    models = {"dense": dense(), "lean": lean()}
    found = compare(models, iter(batches), latency_batch=4, files={"lean": tmp_path / "run"}, **QUICK)

    assert [row.name for row in found.rows] == ["dense", "lean"]
    assert (found.baseline, found.images, found.input_size) == ("dense", 23, (3, 4, 4))
    assert (found.latency_batch, found.rounds) == (4, 3)
    first, second = found.rows
    predictions = {name: predict(model, batches) for name, model in models.items()}
    assert second.score == accuracy(predictions["lean"]).percent()
    assert second.change_points == accuracy_change(predictions["dense"], predictions["lean"])
    assert second.agreement_percent == agreement(predictions["dense"], predictions["lean"]).percent()
    assert (first.change_points, first.agreement_percent, first.speedup_vs_baseline) == (None, None, None)

    assert (first.runtime, first.precision) == ("torch", "f32")
    assert first.params == 48 * 64 + 64 + 64 * 5 + 5
    assert first.macs_per_image == count(models["dense"], (3, 4, 4)).macs == 48 * 64 + 64 * 5
    assert first.weights_bytes == 4 * first.params
    assert first.peak_memory_bytes >= 4 * 4 * (64 + 64)  # the hidden layer of 4 images, before and after GELU
    assert (first.disk_bytes, second.disk_bytes) == (None, 1024)

    assert len(second.samples_s) == 3
    assert second.latency_ms.median == pytest.approx(1000 * sorted(second.samples_s)[1])
    assert second.images_per_s == pytest.approx(4000 / second.latency_ms.median)
    ratios = sorted(a / b for a, b in zip(first.samples_s, second.samples_s, strict=True))
    assert second.speedup_vs_baseline.median == pytest.approx(ratios[1])
    assert found.ratio("dense", "lean") == second.speedup_vs_baseline
    assert found.environment["versions"]["torch"]


def test_another_runtime_is_noted_and_nothing_is_guessed(batches) -> None:
    found = compare({"dense": dense(), "artefact": Artefact()}, batches, **QUICK)
    row = found.row("artefact")
    assert (row.runtime, row.precision) == ("openvino", "int8")
    assert (row.params, row.macs_per_image, row.weights_bytes, row.peak_memory_bytes) == (None, None, None, None)
    assert row.latency_ms is not None and row.score.n == 23
    assert (row.speedup_vs_baseline, row.notes) == (None, ()), "dense was not measured in openvino"
    assert found.without_reference() == ["openvino"]


def test_macs_that_are_not_whole_are_none_and_say_why(batches) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x.flatten(1))[0]

    row = compare({"a": Recurrent()}, batches, **QUICK).rows[0]
    assert row.macs_per_image is None
    assert "not counted" in row.notes[0] and "rnn" in row.notes[0]


def test_a_fixed_batch_decides_the_batch_of_latency(batches) -> None:
    artefact = Artefact(batch=6)
    found = compare({"dense": dense(), "artefact": artefact}, batches, **QUICK)
    assert found.latency_batch == 6 and artefact.sizes == {6}
    other = compare({"dense": dense(), "artefact": artefact}, batches, latency_batch=2, **QUICK)
    row = other.row("artefact")
    assert artefact.sizes == {6} and row.score.n == 23
    assert (row.latency_ms, row.images_per_s, row.speedup_vs_baseline, row.samples_s) == (None, None, None, ())
    assert "takes batch 6 only, timed at batch 2" in row.notes[0]
    with pytest.raises(BadInput, match="row 'artefact' has no latency"):
        other.ratio("dense", "artefact")


def test_images_are_repeated_when_the_batch_is_larger_than_the_data(batches) -> None:
    sizes: set[int] = set()

    def runner(x: Tensor) -> Tensor:
        sizes.add(len(x))
        return torch.zeros(len(x), 5)

    compare({"a": runner}, batches, latency_batch=20, **QUICK)
    assert sizes == {8, 7, 20}


def test_the_baseline_may_be_any(batches) -> None:
    found = compare({"dense": dense(), "lean": lean()}, batches, baseline="lean", **QUICK)
    assert found.row("lean").change_points is None and found.row("dense").change_points is not None


def test_stages_are_told(batches) -> None:
    payload: list[str] = []
    compare({"a": lean()}, batches, progress=payload.append, meter=NoMeter("not requested"), **QUICK)
    assert [line.split()[0] for line in payload] == ["accuracy", "latency:", "MACs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "at least one model"),
        ({"models": {"a": 1}}, "names to callables, got 'a': int"),
        ({"baseline": "leam"}, "unknown baseline 'leam': did you mean 'lean'"),
        ({"rounds": 2}, "rounds must be an integer of at least 3"),
        ({"batch": 0}, "batch must be an integer of at least 1"),
        ({"latency_batch": 0}, "latency_batch must be a positive integer"),
        ({"models": {"a": Artefact(batch=1), "b": Artefact(batch=8)}}, "latency_batch must be given"),
        ({"models": {"a": Artefact(batch=8)}, "latency_batch": 4}, "latency_batch 4 suits no runner"),
        ({"files": {"lena": "x"}}, "unknown model in files 'lena'"),
        ({"files": {"lean": "no/such/file"}}, "does not exist"),
        ({"preprocess": object()}, "preprocess is for a data set"),
    ],
)
def test_bad_arguments_are_named_before_the_data_is_read(arguments: dict, message: str) -> None:
    def unread():
        raise AssertionError("the data was read")
        yield

    accepted = {"models": {"dense": dense(), "lean": lean()}} | QUICK | arguments
    with pytest.raises(BadInput, match=message):
        compare(accepted.pop("models"), unread(), **accepted)


def test_models_on_different_devices_are_refused(batches) -> None:
    with pytest.raises(BadInput, match="on one device"):
        compare({"a": lean(), "b": lean().to("meta")}, batches, **QUICK)


def test_a_data_set_is_read_through_each_models_own_preprocessing() -> None:
    data = pytest.importorskip("leanvit.data", reason="the data package is not there yet")
    digits = data.open_dataset("digits", "val", limit=20)
    kwargs = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "in_chans": 1}
    create = partial(timm.create_model, "vit_tiny_patch16_224", num_classes=len(digits.classes), **kwargs)
    same, darker = create(), create()
    darker.load_state_dict(same.state_dict())
    darker.pretrained_cfg = darker.default_cfg = darker.pretrained_cfg | {"mean": (0.1,) * 3}
    found = compare({"same": same, "darker": darker}, digits, batch=8, **QUICK)
    assert found.images == 20 and found.input_size == (1, 8, 8)
    assert [row.macs_per_image for row in found.rows] == [count(same, (1, 8, 8)).macs] * 2

    own = {name: data.loader(digits, data.Preprocess.of(m), batch_size=8) for name, m in (("s", same), ("d", darker))}
    predictions = predict(same, own["s"]), predict(darker, own["d"])
    assert not torch.allclose(predictions[0].logits, predictions[1].logits)
    assert found.row("darker").agreement_percent == agreement(*predictions).percent()

    shared = compare({"same": same, "darker": darker}, digits, preprocess=data.Preprocess.of(same), **QUICK)
    assert shared.row("darker").agreement_percent.value == 100.0
    with pytest.raises(BadInput, match="runner 'r' has no attribute preprocess"):
        compare({"r": lambda x: x}, digits, **QUICK)
    with pytest.raises(BadInput, match="does not fit data"):
        compare({"same": timm.create_model("vit_tiny_patch16_224", num_classes=7, **kwargs)}, digits, **QUICK)
    with pytest.raises(BadInput, match="one input size"):
        compare({"same": same, "larger": create(img_size=16)}, digits, **QUICK)
