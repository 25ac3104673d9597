"""Training by methods of kind "train": what is kept of them, what a killed run goes on with, what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from contract.toys import toys
from leanvit import NViT, ToMe
from leanvit.cli.main import app
from leanvit.data import Batch
from leanvit.errors import BadInput, Refused
from leanvit.recipe import Recovery, load_run, parse_with
from leanvit.recipe.text import as_text
from leanvit.recipe.training_methods import as_rows
from leanvit.report import write_report
from leanvit.runs.record import read_run
from leanvit.training import Loss, Objective, Run
from leanvit.training.checkpoint import STATE
from leanvit.verbs import compress, dry_run, export, train, training

MODEL = "vit_tiny_patch16_224"
SMALL = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 1}
NVIT = NViT(macs=0.8, max_steps=2, interval=1, batch_size=10)
SETTINGS = {"epochs": 3, "batch_size": 10, "save_every": 1}


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys():
        yield


def trained(out: Path, *methods: str, **more: Any) -> Any:
    given: dict[str, Any] = {"settings": SETTINGS, "adapt": True, "model_args": SMALL, "limit": 20, **more}
    return train(MODEL, "digits", methods=[parse_with(text) for text in methods], out=out, **given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_run(folder).model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(BaseException):
    """Stands for SIGKILL."""


class KillAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, run: Run) -> None:
        if run.step == self.step:
            raise Killed


@pytest.mark.parametrize("method", ["toy_smooth:smoothing=0.3,until=4", "gmm_mask:init=paper"])
def test_a_killed_run_goes_on_with_the_same_method_only(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    trained(tmp_path / "whole", method)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "progress", lambda log: (KillAt(3),))
        trained(tmp_path / "killed", method)
    changed = method.replace("smoothing=0.3", "smoothing=0.2").replace("init=paper", "num_kernels=2")
    was = f"of another run: methods was {[as_text(parse_with(method))]} and is now "
    for other, now in (([changed], str([as_text(parse_with(changed))])), ([], "None")):
        with pytest.raises(BadInput, match=re.escape(was + now)):
            trained(tmp_path / "killed", *other, resume=True)
    trained(tmp_path / "killed", method, resume=True)
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_an_objective_is_trained_along_and_no_part_of_the_model(tmp_path: Path) -> None:
    said: list[str] = []
    done = trained(tmp_path / "own", "toy_smooth:smoothing=0.3", log=said.append)
    assert done.label == f"{MODEL} + toy_smooth"
    assert "trains with toy_smooth:smoothing=0.3,until=1000 (the objective, callbacks)" in said
    trained(tmp_path / "usual")
    own, usual = weights(tmp_path / "own"), weights(tmp_path / "usual")
    assert own.keys() == usual.keys() and not same(own, usual)
    with safe_open(tmp_path / "own" / STATE, framework="pt") as state:
        assert "objective.scale" in state.keys()  # noqa: SIM118
    info = load_run(tmp_path / "own").info
    assert info["methods"] == [{"slug": "toy_smooth", "knobs": {"smoothing": 0.3, "until": 1000}}]
    train(tmp_path / "own", "digits", settings=SETTINGS, limit=20, out=tmp_path / "on")
    (stage,) = load_run(tmp_path / "on").info["stages"]
    assert stage["methods"] == info["methods"] and "methods" not in load_run(tmp_path / "on").info


def test_parts_stay_in_a_model_that_is_exported_and_trained_on(tmp_path: Path) -> None:
    trained(tmp_path / "run", "gmm_mask:num_kernels=2")
    model = load_run(tmp_path / "run").model
    (plan,) = model.history.plans
    assert plan.slug == "gmm_mask" and plan.structure == {"blocks": [0, 1]}
    assert export(tmp_path / "run", to="torch").folder.is_dir()
    done = train(tmp_path / "run", "digits", settings=SETTINGS, limit=20, out=tmp_path / "on")
    assert done.label == "gmm_mask" and not same(weights(tmp_path / "on"), model.state_dict())
    with pytest.raises(Refused, match="has a mask on its scores already"):
        train(tmp_path / "run", "digits", methods=[parse_with("gmm_mask")], limit=20, out=tmp_path / "no")


def test_the_teacher_that_the_user_names_is_the_objectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    way = type(parse_with("toy_smooth"))
    own = way.objective

    def noted(self: Any, model: Any, data: Any, config: Any) -> Any:
        found.append(data.teacher)
        return own(self, model, data, config)

    monkeypatch.setattr(way, "objective", noted)
    trained(tmp_path / "teacher")
    trained(tmp_path / "alone", "toy_smooth")
    trained(tmp_path / "taught", "toy_smooth", teacher=tmp_path / "teacher")
    assert found[0] is None and same(found[1].state_dict(), weights(tmp_path / "teacher"))
    info = load_run(tmp_path / "taught").info
    assert info["distill"]["kind"] == "method" and info["distill"]["teacher"] == str(tmp_path / "teacher")
    with pytest.raises(BadInput, match=r"teacher was .*teacher' and is now .*alone"):
        trained(tmp_path / "taught", "toy_smooth", teacher=tmp_path / "alone", resume=True)
    with pytest.raises(BadInput, match=r"distill is 'soft'.*toy_smooth brings the objective of the training"):
        trained(tmp_path / "no", "toy_smooth", teacher=tmp_path / "teacher", distill="soft")


def test_what_ways_achieved_is_recorded_and_shown(tmp_path: Path) -> None:
    trained(tmp_path / "run", "gmm_mask:num_kernels=2", "toy_smooth")
    (row,) = load_run(tmp_path / "run").info["asked"]
    assert row["method"] == "gmm_mask" and row["asked"]["num_kernels"] == 2 and row["achieved"]["mask_parameters"] > 0
    record = read_run(tmp_path / "run")
    assert record.asked[0].method == "gmm_mask" and record.ways[1] == "toy_smooth:smoothing=0.1,until=1000"
    page = write_report([tmp_path / "run"], out=tmp_path / "report.html").read_text()
    assert "trained with toy_smooth:smoothing=0.1,until=1000" in page
    trained(tmp_path / "usual")
    assert not {"asked", "methods", "recovered_with"} & load_run(tmp_path / "usual").info.keys()


def test_a_recovery_records_its_ways_behind_those_of_before(tmp_path: Path) -> None:
    trained(tmp_path / "dense", "toy_smooth")
    recovery = Recovery(epochs=1, batch_size=10, methods=(parse_with("toy_smooth:smoothing=0.2"),))
    for start, out in (("dense", "lean"), ("lean", "leaner")):
        methods = [parse_with("tome:r=[1]")] if out == "lean" else [parse_with("evit:blocks=[1],keep_rate=0.5")]
        compress(tmp_path / start, methods, "digits", recovery=recovery, limit=20, measured=False, out=tmp_path / out)
    way = {"slug": "toy_smooth", "knobs": {"smoothing": 0.2, "until": 1000}}
    assert load_run(tmp_path / "lean").info["recovered_with"] == [way]
    assert load_run(tmp_path / "leaner").info["recovered_with"] == [way, way]
    words = "toy_smooth:smoothing={},until=1000"
    assert read_run(tmp_path / "lean").ways == (words.format(0.1), words.format(0.2))
    compress(tmp_path / "lean", [], None, measured=False, out=tmp_path / "same")
    assert load_run(tmp_path / "same").info["recovered_with"] == [way]


def test_a_mask_and_an_objective_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = trained(None, "gmm_mask", "toy_smooth")
    assert done.folder == Path("runs") / f"{MODEL}-gmm_mask-toy_smooth"
    assert [plan.slug for plan in load_run(done.folder).model.history.plans] == ["gmm_mask"]


def test_the_smoothing_of_a_recipe_is_the_methods_to_use(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'title = "t"\n[model]\nname = "{MODEL}"\n[fit]\nlabel_smoothing = 0.1\n')
    trained(tmp_path / "run", "toy_smooth", recipe=recipe)
    assert load_run(tmp_path / "run").info["training"]["label_smoothing"] == 0.1


def test_a_dry_run_and_the_page_of_a_method_name_it(tmp_path: Path) -> None:
    made = [parse_with("gmm_mask"), parse_with("toy_smooth")]
    found = dry_run(MODEL, "digits", methods=made, adapt=True, model_args=SMALL, limit=20, seconds=0.0)
    assert found.methods == (
        f"{as_text(made[0])} (parts of the model)",
        f"{as_text(made[1])} (the objective, callbacks)",
    )
    explained = CliRunner().invoke(app, ["methods", "toy_smooth"]).stdout
    assert "leanvit train MODEL --data DATA --with toy_smooth:smoothing=0.1" in " ".join(explained.split())
    assert "--with METHOD --recover 3 --recover-with toy_smooth:smoothing=0.1" in " ".join(explained.split())
    assert "--recover-with" not in CliRunner().invoke(app, ["methods", "gmm_mask"]).stdout


def test_the_command_line_takes_methods(tmp_path: Path) -> None:
    small = [word for key, value in SMALL.items() for word in ("--model-arg", f"{key}={value}")]
    words = ["train", MODEL, "--data", "digits", "--adapt", "--limit", "20", "--epochs", "1", *small]
    words += ["--with", "gmm_mask:num_kernels=2", "--with", "toy_smooth"]
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert dry.exit_code == 0 and dry.stdout.count("trains with") == 2, dry.output
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    knobs = load_run(tmp_path / "run").info["methods"][0]["knobs"]
    assert knobs["num_kernels"] == 2 and (tmp_path / "run" / STATE).is_file()


class Brightness(Objective):
    """The first output says how bright the image is."""

    needs_labels = False

    def forward(self, model: Any, batch: Batch, step: int, context: Any) -> Loss:
        assert batch.targets is None
        return Loss((model(batch.images)[:, 0] - batch.images.mean(dim=(1, 2, 3))).square().mean())


def test_an_objective_that_needs_no_labels_trains_without_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = {"data": "digits?labels=none", "limit": 30, "settings": SETTINGS, "adapt": True, "model_args": SMALL}
    method = parse_with("toy_smooth")
    with pytest.raises(BadInput, match=r"train by _Smooth needs labels, but data 'digits\?labels=none' has none"):
        train(MODEL, methods=[method], out=tmp_path / "none", **bare)
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(type(method), "objective", lambda self, model, data, config: Brightness())
    monkeypatch.setattr(type(method), "callbacks", lambda self, model: [])
    done = train(MODEL, methods=[method], out=tmp_path / "whole", **bare)
    assert done.score is None and not load_run(tmp_path / "whole").classes
    with monkeypatch.context() as patch:
        patch.setattr(training, "progress", lambda log: [KillAt(4)])
        with pytest.raises(Killed):
            train(MODEL, methods=[method], out=tmp_path / "cut", **bare)
    train(MODEL, methods=[method], out=tmp_path / "cut", resume=True, **bare)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    with pytest.raises(BadInput, match="--keep best needs labels, but data"):
        train(MODEL, methods=[method], out=tmp_path / "best", keep="best", **bare)
    assert not (tmp_path / "best").exists()
    assert dry_run(MODEL, methods=[method], seconds=0.0, **bare).loss is not None
    recovery = Recovery(epochs=1, batch_size=10, methods=(method,))
    given: dict[str, Any] = {"limit": 30, "recovery": recovery, "measured": False}
    compress(tmp_path / "whole", [ToMe(r=1)], bare["data"], out=tmp_path / "lean", **given)
    assert load_run(tmp_path / "lean").info["recovered_with"] == as_rows([method])
    with pytest.raises(BadInput, match="nvit needs labels"):
        compress(tmp_path / "whole", [NVIT, ToMe(r=1)], bare["data"], out=tmp_path / "other", **given)
