"""The demo: what it says it typed is what a user can type, and its whole way works on a shrunk model."""

import json
import shlex

import pytest
import typer

from leanvit import verbs
from leanvit.cli.main import app
from leanvit.recipe import load_run
from leanvit.verbs import demonstration

pytestmark = pytest.mark.e2e

SMALL = {"img_size": 8, "patch_size": 2, "depth": 4, "embed_dim": 48, "num_heads": 3}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo as it is, but for size: a small model, one short epoch, few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demonstration, "MODEL_ARGS", SMALL)
        patch.setattr(
            demonstration, "TRAINING", {**demonstration.TRAINING, "batch_size": 128, "warmup_epochs": 0, "epochs": 1}
        )
        patch.setattr(demonstration, "RECOVER", 1)
        patch.setattr(demonstration, "BATCH", 4)
        patch.setattr(demonstration, "ROUNDS", 3)
        patch.setattr(demonstration, "LIMIT", 128)
        yield verbs.demo(tmp_path_factory.mktemp("demo") / "runs", epochs=1)


def test_every_step_is_a_command_that_parses(demo) -> None:
    commands = typer.main.get_command(app).commands
    for line in demo.commands:
        program, verb, *arguments = shlex.split(line)
        assert program == "leanvit"
        commands[verb].make_context(verb, arguments)
    verbs_typed = [shlex.split(line)[1] for line in demo.commands]
    assert verbs_typed == ["train"] + ["compress"] * 4 + ["export"] * 5 + ["measure", "report"]


def test_the_runs_are_what_their_names_say(demo) -> None:
    slugs = {name: [p.slug for p in load_run(demo.folder / name).model.history.plans] for name in demonstration.LEAN}
    assert slugs == {"evit": ["evit"], "tome": ["tome"], "int8": ["int8"], "evit-int8": ["evit", "int8"]}


def test_every_model_is_measured_in_both_runtimes(demo) -> None:
    rows = demo.to_json()["rows"]
    assert [(r["method"], r["runtime"]) for r in rows] == [
        (method, runtime)
        for runtime in ("torch", "openvino")
        for method in ("dense", "evit", "tome", "int8", "evit + int8")
    ]
    by_place = {(r["method"], r["runtime"]): r for r in rows}
    assert by_place["dense", "openvino"]["precision"] == "f32"
    assert by_place["evit + int8", "openvino"]["precision"] == "int8"
    assert by_place["evit + int8", "openvino"]["batch"] == 4
    assert by_place["evit + int8", "openvino"]["speedup_same_runtime"] > 0
    assert json.dumps(demo.to_json(), allow_nan=False)


def test_the_page_shows_it(demo) -> None:
    text = demo.page.read_text(encoding="utf-8")
    text = text[: text.index('<script type="application/json"')]
    for part in ("The change of runtime alone", "evit + int8", ", batch 4", "leanvit train"):
        assert part in text
    assert text.count('<figure class="stack">') == 6 * 3, "six images for evit, tome, evit + int8"
