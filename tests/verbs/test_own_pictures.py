"""Pictures of four channels and of 16 bits, and own preprocessing, from training to the artefact."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from leanvit.cli.main import app
from leanvit.deploy import load_artefact
from leanvit.errors import BadInput
from leanvit.recipe import load_run
from leanvit.runs.thumbnails import encoded
from leanvit.verbs import export, look, measure, train
from leanvit.verbs.comparing import compare_methods

ARGS = {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8}
SETTINGS = {"epochs": 1, "batch_size": 4}
OWN = {"mean": (0.4, 0.5, 0.6, 0.2), "std": (0.2, 0.3, 0.4, 0.1), "crop_pct": 0.9, "interpolation": "bilinear"}
MODEL = "vit_tiny_patch16_224"


def write(root, make):
    for split, each in (("train", 4), ("val", 2)):
        for kind, label in enumerate(("a", "b")):
            (root / split / label).mkdir(parents=True)
            for number in range(each):
                Image.fromarray(make(np.random.default_rng(number), kind)).save(root / split / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    root = tmp_path_factory.mktemp("four")
    return write(root, lambda draw, kind: draw.integers(0, 256, (16, 16, 4), dtype=np.uint8))


def test_four_channels_from_training_to_the_artefact(four, tmp_path):
    spec, out, said = f"{four}?channels=4", tmp_path / "run", []
    train(MODEL, spec, adapt=True, model_args=ARGS, settings=SETTINGS, out=out, log=said.append, **OWN)
    run = load_run(out)
    assert run.preprocess.input_size == (4, 16, 16) and "in_chans=4" in " ".join(said)
    assert {name: getattr(run.preprocess, name) for name in OWN} == OWN
    assert measure(out, spec, rounds=3, latency_batch=1).comparison.images == 4
    export(out, to="torch", input_type="u8", batch=1)
    runner = load_artefact(out / "artefacts" / "torch", trusted=True)
    image = Image.open(four / "val" / "a" / "0.png")
    logits = run.model(run.preprocess.eval_transform()(image)[None])
    assert np.abs((runner.classify([image]) - logits).detach().numpy()).max() < 1e-3
    with pytest.raises(BadInput, match="can only be given with a timm name"):
        measure(out, spec, mean=(0.5,) * 4)
    with pytest.raises(BadInput, match=r"channels: the images have 3, .*\?channels=4"):
        measure(out, str(four))


def test_what_is_averaged_is_said(four, tmp_path):
    said = []
    train(
        MODEL, f"{four}?channels=4", adapt=True, model_args=ARGS, settings=SETTINGS, out=tmp_path / "r", log=said.append
    )
    assert f"{MODEL}: mean 0.5, std 0.5 for each of 4 channels, an average; --mean and --std for others" in said


def test_what_compare_makes_keeps_the_range_of_its_images(tmp_path):
    root = write(tmp_path / "d", lambda draw, kind: draw.integers(0, 4000, (16, 16)).astype(np.uint16))
    given = {"adapt": True, "model_args": ARGS, "controls": False, "tolerance": 0.5, "rounds": 3, "latency_batch": 1}
    compare_methods(MODEL, str(root), ["tome"], macs=0.7, out=tmp_path / "c", **given)
    assert {load_run(tmp_path / "c" / name).preprocess.pixel_range for name in ("baseline", "tome")} == {(0, 4095)}


def test_a_run_keeps_the_range_of_its_training(tmp_path):
    root = write(tmp_path / "d", lambda draw, kind: draw.integers(0, 4000, (16, 16)).astype(np.uint16))
    said = []
    train(MODEL, str(root), adapt=True, model_args=ARGS, settings=SETTINGS, out=tmp_path / "r", log=said.append)
    assert load_run(tmp_path / "r").preprocess.pixel_range == (0, 4095)
    assert any("0-4095 (12 bits) taken as range" in line for line in said)
    dark = write(tmp_path / "dark", lambda draw, kind: draw.integers(0, 900, (16, 16)).astype(np.uint16))
    with pytest.raises(BadInput, match=r"0-4095, .* taken as 0-1023: give the data \?range=0-4095"):
        measure(tmp_path / "r", str(dark))
    assert measure(tmp_path / "r", f"{dark}?range=0-4095", rounds=3, latency_batch=1).comparison.images == 4
    found = look(f"{dark}?range=0-500", model=tmp_path / "r")
    assert len(found.splits[0].bad) == 8 and "outside of range=0-500" in found.splits[0].bad[0].reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", MODEL, "--data", "digits", "--std", "0.5,0"],
            "Preprocess.std is (0.5, 0); accepted: a list, each a number above 0",
        ),
        (
            ["train", MODEL, "--data", "digits", "--mean", "0.5,x"],
            "--mean is [0.5, 'x']; accepted: numbers with commas",
        ),
        (["measure", MODEL, "--data", "digits", "--interpolation", "cubic"], "did you mean 'bicubic'"),
        (["export", MODEL, "--crop-pct", "0"], "crop_pct is 0.0; accepted: a number above 0"),
        (["compress", MODEL, "--with", "int8", "--mean", "nan"], "--mean is ['nan']; accepted: numbers"),
        (["data", "digits", "--mean", "0.5"], "mean are of a model"),
        (["data", "digits", "--model", MODEL, "--mean", "0.5"], "accepted: 3 values, one a channel"),
    ],
)
def test_own_settings_are_refused_before_any_work(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and message in " ".join(result.output.split())


def test_thumbnails_show_the_first_three_of_four_bands():
    bands = [Image.new("L", (8, 8), level) for level in (10, 20, 30, 0)]
    assert encoded(Image.merge("RGBX", bands), side=8) == encoded(Image.merge("RGB", bands[:3]), side=8)
    assert json.dumps(encoded(Image.merge("RGBA", bands), side=8))
