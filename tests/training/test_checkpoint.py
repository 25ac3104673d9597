import contextlib
import json
import os
import random
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_training import make_model

from leanvit.errors import BadInput, CheckpointError, LeanvitError
from leanvit.files import write_atomic
from leanvit.training import FitConfig, JsonlLog, fit
from leanvit.training import checkpoint as checkpoints
from leanvit.training.checkpoint import STATE

CONFIG = FitConfig(epochs=2, batch_size=48, ema_decay=0.9)


class Stop(Exception):
    pass


class StopAfter:
    def __init__(self, step):
        self.step = step

    def after_step(self, run):
        if run.step == self.step:
            raise Stop


@pytest.fixture
def stopped(data, preprocess, tmp_path):
    """A folder with a run that stopped at step 2 of 4."""
    with pytest.raises(Stop):
        fit(make_model(), data, preprocess=preprocess, config=CONFIG, out=tmp_path, callbacks=[StopAfter(3)])
    return tmp_path


@pytest.fixture
def resume(data, preprocess):
    def go(out, *, model=None, config=CONFIG, **kwargs):
        kwargs = {"resume": True, **kwargs}
        return fit(model or make_model(), data, preprocess=preprocess, config=config, out=out, **kwargs)

    return go


def rewrite(path: Path, change) -> None:
    """Save a state again after `change(tensors, header)`, as a version before seals wrote it."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors, header = load_file(path), json.loads(metadata["leanvit.training"])
    header["format"] = 1
    change(tensors, header)
    save_file(tensors, path, metadata={"leanvit.training": json.dumps(header)})


def test_a_state_is_plain_safetensors_with_names_that_can_be_read(stopped):
    tensors = load_file(stopped / STATE)
    assert tensors["model.head.weight"].shape == tensors["ema.head.weight"].shape == (4, 16)
    assert tensors["optimizer.model.head.weight.exp_avg"].shape == (4, 16)
    assert checkpoints.read_position(stopped / STATE).progress["step"] == 2
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((stopped / STATE).stat().st_mode) == 0o666 & ~umask


def test_no_temporary_files_stay(stopped):
    assert {p.name for p in stopped.rglob("*") if p.is_file()} == {"state.safetensors", "train.jsonl"}


def test_leftovers_of_a_killed_save_are_cleared(stopped, resume):
    leftovers = [(stopped / STATE).with_name(name) for name in (".state.safetensors-123.part", ".tmpAbCdEf")]
    for leftover in leftovers:
        leftover.write_text("half")
    resume(stopped)
    assert not any(leftover.exists() for leftover in leftovers)


def test_without_out_nothing_is_written(data, preprocess, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(make_model(), data, preprocess=preprocess, config=CONFIG, validate=data)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file_and_says_why(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def full(temporary):
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(LeanvitError, match=r"No space left on device.*unchanged"):
        write_atomic(path, full)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_during_a_run_leaves_the_last_state(data, preprocess, tmp_path, monkeypatch, resume):
    def fill_up(run):
        def no_space(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints, "save_file", no_space)

    class Filling:
        def after_step(self, run):
            if run.step == 3:
                fill_up(run)

    whole = fit(make_model(), data, preprocess=preprocess, config=CONFIG)
    with pytest.raises(LeanvitError, match="No space left"):
        fit(make_model(), data, preprocess=preprocess, config=CONFIG, out=tmp_path, callbacks=[Filling()])
    monkeypatch.undo()
    assert torch.equal(resume(tmp_path).model.head.weight, whole.model.head.weight)


def test_whichever_write_fails_the_run_can_go_on(data, preprocess, tmp_path, monkeypatch):
    def trained(out=None, resume=False):
        given = {"preprocess": preprocess, "config": CONFIG, "validate": data}
        return fit(make_model(), data, **given, out=out, resume=resume).final.head.weight

    whole, replace, failing = trained(), os.replace, 0
    while True:
        failing, calls = failing + 1, 0
        out = tmp_path / str(failing)

        def full(source, target, *, failing=failing):
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(28, "No space left on device")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            try:
                trained(out)
                break
            except LeanvitError as error:
                assert "No space left on device" in str(error)
        assert torch.equal(trained(out, resume=(out / STATE).exists()), whole)
    assert failing >= 6  # the first state, the log, weights and state of two epochs


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_that_cannot_grow_is_a_clear_error(data, preprocess, tmp_path):
    class Full(JsonlLog):
        def start(self, run):
            super().start(run)
            self._file = Path("/dev/full").open("w")  # noqa: SIM115

    log = Full(tmp_path / "log.jsonl", every=1)
    with pytest.raises(LeanvitError, match=r"cannot write .*log\.jsonl: No space left"):
        fit(make_model(), data, preprocess=preprocess, config=CONFIG, callbacks=[log])


def test_too_little_space_is_seen_before_the_first_step(resume, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("leanvit.training.assemble.shutil.disk_usage", lambda path: usage)
    with pytest.raises(BadInput, match="0 MB free, but the run needs"):
        resume(tmp_path, resume=False)


def test_out_that_is_a_file_is_refused(resume, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is a file: give a folder"):
        resume(tmp_path / "file", resume=False)


def test_out_that_cannot_be_written_is_refused(resume, tmp_path, monkeypatch):
    def read_only(self, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(BadInput, match=r"cannot be written: .*Read-only file system"):
        resume(tmp_path, resume=False)


def test_an_unfinished_run_is_not_overwritten(resume, stopped):
    before = (stopped / STATE).read_bytes()
    with pytest.raises(BadInput, match="stopped at step 2 of 4: give resume=True"):
        resume(stopped, resume=False)
    assert (stopped / STATE).read_bytes() == before


def test_a_finished_run_may_be_run_again(resume, stopped):
    resume(stopped)
    resume(stopped, resume=False)
    assert (stopped / "train.jsonl").read_text().count('"event": "start"') == 1  # the old log is gone


def test_nothing_to_resume(resume, tmp_path):
    with pytest.raises(BadInput, match=r"nothing to resume: .*state.safetensors does not exist"):
        resume(tmp_path)


def test_another_recipe_is_named_field_by_field(resume, stopped):
    config = FitConfig(**{**CONFIG.to_json(), "lr": 0.5, "seed": 7})
    with pytest.raises(BadInput, match=r"lr was 0.001 and is now 0.5; seed was 0 and is now 7"):
        resume(stopped, config=config)


def test_another_model_is_refused_and_left_alone(resume, stopped):
    model = make_model(embed_dim=8)
    before = model.head.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"does not fit the model: .* has shape .* \(\d+ such tensors\)"):
        resume(stopped, model=model)
    assert torch.equal(model.head.weight, before)


@pytest.mark.filterwarnings("ignore:.*older leanvit")
def test_a_state_of_an_older_version_lacks_fields_at_their_defaults(resume, stopped):
    def older(tensors, header):
        for name in ("compile", "train_mode", "data"):
            del header["about"][name]
        for name in ("skipped", "stopped", "scaler"):
            del header["progress"][name]

    rewrite(stopped / STATE, older)
    with pytest.raises(BadInput, match="train_mode was 'train' and is now 'eval'"):
        resume(stopped, config=FitConfig(**{**CONFIG.to_json(), "train_mode": "eval"}))
    with pytest.warns(UserWarning, match="older leanvit, without a seal and a fingerprint of its data"):
        assert resume(stopped).steps == 4


def test_a_newer_format_is_named(resume, stopped):
    rewrite(stopped / STATE, lambda tensors, header: header.update(format=3))
    with pytest.raises(CheckpointError, match="format 3; this leanvit reads formats 1 to 2"):
        resume(stopped)


def test_a_foreign_file_is_named(resume, stopped):
    save_file({"weight": torch.ones(2)}, stopped / STATE)
    with pytest.raises(CheckpointError, match="no training state of leanvit"):
        resume(stopped)


@pytest.mark.filterwarnings("ignore:.*older leanvit")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tensors, header: tensors.pop("ema.head.bias"), "does not fit the ema: head.bias"),
        (lambda tensors, header: tensors.update({"model.extra": torch.ones(1)}), "does not fit the model: extra"),
        (
            lambda tensors, header: tensors.update({"optimizer.model.x.exp_avg": torch.ones(1)}),
            "'model.x'.*not",
        ),
        (
            lambda tensors, header: tensors.update({"optimizer.model.head.bias.exp_avg": torch.ones(5)}),
            "exp_avg.*does not fit",
        ),
        (lambda tensors, header: header["progress"].update(step=99), "at step 99, but has 1 finished epochs"),
        (lambda tensors, header: header["progress"].update(step="two"), "progress is not understood"),
        (lambda tensors, header: header["progress"].pop("epoch_sums"), "progress is not understood"),
        (lambda tensors, header: header.update(progress=[]), "header that is not understood"),
    ],
)
def test_tampering_is_named(resume, stopped, change, text):
    rewrite(stopped / STATE, change)
    with pytest.raises(CheckpointError, match=text):
        resume(stopped)


@pytest.mark.parametrize("name", ["state", "best"])
def test_one_flipped_bit_is_refused(name, data, preprocess, tmp_path):
    """Anywhere: in tensors, names, shapes, header, seal. What is not sealed any more may give the same tensors."""
    config = FitConfig(epochs=1, batch_size=48)
    fit(make_model(), data, preprocess=preprocess, config=config, validate=data, out=tmp_path)
    path = tmp_path / "training" / f"{name}.safetensors"
    whole, draw, tensors = path.read_bytes(), random.Random(5), load_file(path)
    header = int.from_bytes(whole[:8], "little") + 8
    places = [*(draw.randrange(header) for _ in range(150)), *(draw.randrange(header, len(whole)) for _ in range(50))]
    loaded = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            found = checkpoints.read_weights(path) if name == "best" else checkpoints._read(path)[0]
            assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
            loaded += 1
    assert loaded <= (3 if name == "best" else 0)


def test_a_cut_file_is_refused(stopped, resume):
    whole, draw = (stopped / STATE).read_bytes(), random.Random(5)
    for _ in range(20):
        (stopped / STATE).write_bytes(whole[: draw.randrange(len(whole))])
        with pytest.raises(CheckpointError):
            resume(stopped)


def test_more_epochs_are_refused_with_the_way_out(resume, stopped):
    more = FitConfig(**{**CONFIG.to_json(), "epochs": 5})
    with pytest.raises(BadInput, match=r"epochs was 2 and is now 5\. .*resume with epochs=2.*train on.*--epochs 3"):
        resume(stopped, config=more)


def _relabelled(data):
    targets = data.targets.copy()
    targets[[0, 1]] = (targets[0] + 1) % len(data.classes), targets[1]
    return replace(data, targets=targets)


def _repainted(data):
    key = data.keys[0]
    image, row = np.asarray(data[0].image).copy(), int(data.rows[0])
    image.flat[3] ^= 1

    class Painted:
        def __getitem__(self, at):
            return Image.fromarray(image) if at == row else data.images[at]

    return replace(data, images=Painted()), key


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: replace(data, classes=[*reversed(data.classes)]), r"data: its classes \(names, or their order\)"),
        (lambda data: replace(data, keys=("other", *data.keys[1:])), "data: its keys"),
        (_relabelled, "data: its labels changed$"),
        (lambda data: _repainted(data)[0], r"data: the pixels changed of '[^']+' \(8 images were compared\)"),
        (lambda data: data.take(range(len(data) - 1)), r"data.images was \d+ and is now \d+"),
    ],
)
def test_changed_data_is_named(data, preprocess, stopped, change, says):
    changed = change(data)
    with pytest.raises(BadInput, match=says):
        fit(make_model(), changed, preprocess=preprocess, config=CONFIG, out=stopped, resume=True)
