"""`compare`: methods at equal MACs, off the shelf and after the same recovery, in one report."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from contract.toys import toys
from leanvit.errors import BadInput, CheckpointError, Refused
from leanvit.files import sealed_text, write_atomic
from leanvit.recipe import Recovery, load, load_run, parse_with
from leanvit.report import write_report
from leanvit.report.side_by_side import lines, recovery_in_words
from leanvit.runs.compared import ABOUT, BASELINE, COMPARED, SideBySide, read_about
from leanvit.runs.record import read_run
from leanvit.runs.saving import ways_of
from leanvit.training import Interrupted
from leanvit.verbs.candidates import choose
from leanvit.verbs.comparing import Compared, compare_methods
from leanvit.verbs.models import load_model, silent

ARGS = {"img_size": 8, "patch_size": 1, "in_chans": 1, "num_classes": 10, "depth": 4, "embed_dim": 24, "num_heads": 3}
NAME = "vit_tiny_patch16_224"
GIVEN = {
    "candidates": ["evit", "tome"],
    "macs": 0.7,
    "recovery": Recovery(epochs=1, batch_size=20),
    "model_args": ARGS,
    "limit": 40,
    "rounds": 3,
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    out = tmp_path_factory.mktemp("compared") / "here"
    return compare_methods(NAME, "digits", out=out, **GIVEN)


def test_every_method_is_set_to_the_share(compared: Compared) -> None:
    method_results = {one.name: one for one in compared.result.standings}
    assert list(method_results) == ["evit", "tome", "evit-select-random", "evit-select-lowest"]
    for one in method_results.values():
        row, dense = (compared.comparison.row(name) for name in (one.name, BASELINE))
        assert row.macs_per_image / dense.macs_per_image == pytest.approx(0.7, rel=0.03)
        assert one.recovered and not one.learns
    assert method_results["evit-select-random"].knobs["select"] == "random"


def test_every_model_is_a_run_that_loads(compared: Compared) -> None:
    for name, slugs in ((BASELINE, []), ("evit", ["evit"]), ("tome", ["tome"]), ("evit-select-lowest", ["evit"])):
        assert [plan.slug for plan in load(compared.folder / name).history.plans] == slugs


@pytest.mark.e2e
def test_models_stand_in_every_runtime_and_at_int8(tmp_path: Path) -> None:
    given = {**GIVEN, "candidates": ["tome"], "recovery": None, "model_args": {**ARGS, "depth": 1}}
    more = {"runtimes": ["openvino"], "int8": True, "controls": False, "tolerance": 0.5}
    found = compare_methods(NAME, "digits", out=tmp_path / "here", **given, **more)
    rows = {(row.name, row.precision) for row in found.comparison.rows}
    whole = {(name, "f32") for name in (BASELINE, "tome", f"{BASELINE} (openvino)", "tome (openvino)")}
    assert rows == whole | {(f"{name} int8 (openvino)", "int8") for name in (BASELINE, "tome")}
    whole = {row.name: row for row in found.comparison.rows}
    lean, dense = (whole[f"{name} int8 (openvino)"] for name in ("tome", BASELINE))
    assert found.comparison.reference(lean) is dense, "at the same precision"
    own = lines(found.result, found.comparison)[1]
    assert own.cells[-1][0] == f"{lean.speedup_vs_baseline.median:.2f}", "one speed-up in every table"
    assert own.name == "tome" and all(float(text) > 0 for text, _ in own.cells[-3:])  # torch, OpenVINO f32 and int8
    float_run, int8_run = (read_run(found.folder / name).asked for name in ("tome", "tome-int8"))
    assert [row.method for row in int8_run] == ["tome", "int8"] and int8_run[:1] == float_run


def test_the_recovery_changed_the_weights_and_off_the_shelf_is_before_it(compared: Compared) -> None:
    dense, lean = (load(compared.folder / name).state_dict() for name in (BASELINE, "tome"))
    assert any(not dense[key].equal(lean[key]) for key in dense)
    assert read_run(compared.folder / "tome").curve is not None, "the log of the recovery is kept, as compress does"
    again = compare_methods(NAME, "digits", ["tome"], out=compared.folder.parent / "shelf", **_without_training())
    (alone,) = again.result.standings
    before = next(one for one in compared.result.standings if one.name == "tome")
    assert alone.off_the_shelf_percent == before.off_the_shelf_percent
    assert again.comparison.row("tome").score == alone.off_the_shelf_percent


def _without_training() -> dict[str, object]:
    return {k: v for k, v in {**GIVEN, "recovery": None}.items() if k != "candidates"}


def test_the_table_holds_each_method_once_and_its_speed(compared: Compared) -> None:
    table = lines(compared.result, compared.comparison)
    assert table[0].name == BASELINE and len({line.name for line in table}) == len(table) == 5
    assert all(len(line.cells) == 6 for line in table)  # MACs, twice accuracy and change, the speed in torch
    assert all(float(line.cells[-1][0]) > 0 for line in table)


def test_the_page_shows_the_comparison_and_token_maps(compared: Compared, tmp_path: Path) -> None:
    text = write_report([compared.folder], tmp_path / "page.html").read_text()
    assert compared.page.is_file() and 'id="side-by-side"' in text and 'id="tokens"' in text
    assert "evit-select-random" in text and "at 0.7 of its MACs" in text


def test_a_resumed_comparison_runs_no_finished_method_again(compared: Compared) -> None:
    folder, said = compared.folder, []
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("weights-*.safetensors")}
    (folder / "tome" / "standing.json").unlink()  # as if it had been stopped while tome was saved
    again = compare_methods(NAME, "digits", out=folder, resume=True, log=said.append, **GIVEN)
    assert "tome: recovery" in said and "evit: recovery" not in said
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items() if path.parent.name == "evit")
    assert [s.off_the_shelf_percent for s in again.result.standings] == [
        s.off_the_shelf_percent for s in compared.result.standings
    ]
    assert SideBySide.read(folder).standings == again.result.standings


@pytest.fixture
def heeded_ctrl_c() -> Iterator[None]:
    """Processes that a shell put into the background ignore SIGINT from their start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_command_that_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    def stop(line: str) -> None:
        if line == "tome: compressed":
            os.kill(os.getpid(), number)

    out = tmp_path / "here"
    given = {**GIVEN, "candidates": ["tome"], "recovery": None, "model_args": {**ARGS, "depth": 2}, "tolerance": 0.5}
    typed = f"leanvit compare-methods {NAME} --out {out}"
    with pytest.raises(Interrupted, match=re.escape(f"To go on: {typed} --resume")):
        compare_methods(NAME, "digits", out=out, log=stop, command=typed, **given)
    assert not (out / COMPARED).exists() and (out / BASELINE).is_dir()


def test_replacing_removes_what_the_comparison_made_and_nothing_else(compared: Compared, tmp_path: Path) -> None:
    out = tmp_path / "here"
    shutil.copytree(compared.folder, out)
    shutil.copytree(out / "tome", out / "mine")
    given = {**GIVEN, "candidates": ["tome"], "controls": False, "recovery": None}
    compare_methods(NAME, "digits", out=out, overwrite=True, **given)
    assert (out / "mine").is_dir() and (out / "tome").is_dir() and not (out / "evit").exists()


def test_what_is_resumed_must_be_the_same(compared: Compared) -> None:
    with pytest.raises(BadInput, match=r"macs was 0\.7 and is 0\.5"):
        compare_methods(NAME, "digits", out=compared.folder, resume=True, **{**GIVEN, "macs": 0.5})


def test_a_comparison_is_not_resumed_with_other_images_or_weights(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for split, (number, name) in itertools.product(("train", "val"), enumerate("ab")):
        (root / split / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 99 * number + 7 * i).save(root / split / name / f"{i}.png")
    own = {**ARGS, "num_classes": 2, "depth": 2}
    given = {"candidates": ["tome"], "macs": 0.7, "tolerance": 0.5, "controls": False, "rounds": 3, "latency_batch": 1}
    out = tmp_path / "out"
    compare_methods(NAME, str(root), out=out, model_args=own, **given)
    again = {**given, "model_args": own, "out": out, "resume": True}
    with pytest.raises(BadInput, match=f"the weights of {NAME} changed"):
        compare_methods(NAME, str(root), weights=_weights(tmp_path, own), **again)
    with pytest.raises(BadInput, match="class_names was 'by-name' and is 'by-position'"):
        compare_methods(NAME, str(root), class_names="by-position", **again)
    Image.new("L", (8, 8), 200).save(root / "val" / "a" / "0.png")
    with pytest.raises(BadInput, match=r"is of other data: data: the pixels changed of 'a/0\.png'"):
        compare_methods(NAME, str(root), **again)
    about = {
        k: v for k, v in read_about(out).items() if k not in ("class_names", "weights", "images")
    }  # as 0.1 wrote it
    write_atomic(out / ABOUT, sealed_text({"kind": "leanvit-comparison", "format": 1, "about": about}))
    assert [one.name for one in compare_methods(NAME, str(root), **again).result.standings] == ["tome"]


def test_a_way_to_train_recovers_every_method_without_an_objective_of_its_own(tmp_path: Path) -> None:
    way = "toy_smooth:smoothing=0.2,until=1000"
    with toys():
        ways = Recovery.of({"epochs": 1, "batch_size": 20}, (parse_with(way),))
        given = {**GIVEN, "candidates": ["tome", "sit"], "tolerance": 0.5, "controls": False, "recovery": ways}
        given["model_args"] = {**ARGS, "depth": 2}
        out = tmp_path / "here"
        found = compare_methods(NAME, "digits", out=out, **given)
        (one,) = found.result.standings
        assert one.name == "tome" and "sit and toy_smooth each bring the objective" in found.result.left_out["sit"]
        assert ways_of(load_run(out / "tome").info) == (way,)
        assert f"1 epoch by {way}, batch 20" in recovery_in_words(found.result)
        assert f"by {way}" in found.page.read_text()
        with pytest.raises(BadInput, match="recovery was"):
            compare_methods(NAME, "digits", out=out, resume=True, **{**given, "recovery": GIVEN["recovery"]})


def _weights(folder: Path, kwargs: dict[str, Any]) -> Path:
    save_file(load_model(NAME, model_args=kwargs, seed=1).model.state_dict(), folder / "other.safetensors")
    return folder / "other.safetensors"


def test_a_damaged_result_is_named(compared: Compared, tmp_path: Path) -> None:
    (tmp_path / COMPARED).write_text((compared.folder / COMPARED).read_text().replace('"tome"', '"../tome"', 1))
    with pytest.raises(CheckpointError, match=r"compare\.json.*leads out"):
        write_report([tmp_path], tmp_path / "page.html")


def test_a_comparison_without_its_measurement_is_named_and_the_page_written(compared: Compared, tmp_path: Path) -> None:
    out = tmp_path / "here"
    shutil.copytree(compared.folder, out)
    (out / BASELINE / "measure.json").write_text("{")
    with pytest.warns(UserWarning, match=r"compare\.json is not shown: .*measure\.json is missing or cannot be read"):
        text = write_report([out], tmp_path / "page.html").read_text()
    assert 'id="side-by-side"' not in text and "measure.json: not a comparison" in text and 'id="tokens"' in text


def test_the_short_table_has_five_columns_and_what_was_left_out(compared: Compared) -> None:
    short = compared.table(wide=False)
    assert len(short.columns) == 5 < len(compared.table().columns)
    assert "at 0.7 of the MACs" in str(short.caption) and "speed-up: against baseline" in str(short.caption)


def test_methods_that_do_not_fit_are_left_out_unless_they_were_named() -> None:
    start = load_model(NAME, model_args={**ARGS, "class_token": False, "global_pool": "avg"})
    chosen, left_out = choose(start, (), 0.7, tolerance=0.03, controls=True, log=silent)
    assert "tome" in [one.name for one in chosen] and "class token" in left_out["evit"]
    with pytest.raises(Refused, match="class token"):
        choose(start, ["evit"], 0.7, tolerance=0.03, controls=False, log=silent)


def test_a_share_that_a_method_does_not_reach_is_refused_with_the_nearest() -> None:
    start = load_model(NAME, model_args={**ARGS, "patch_size": 4})  # four patches: few settings
    with pytest.raises(Refused, match=r"tome comes no nearer to 0\.9 of the MACs than 0\.\d+"):
        choose(start, ["tome"], 0.9, tolerance=0.001, controls=False, log=silent)


def test_images_to_learn_from_are_asked_for_only_where_something_learns(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "data" / "val" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / "data" / "val" / label / f"{i}.png")
    given = {"macs": 0.7, "rounds": 3, "model_args": {**ARGS, "num_classes": 2}, "convert": True}
    data = str(tmp_path / "data")
    found = compare_methods(NAME, data, ["evit"], out=tmp_path / "out", **given)
    assert [one.name for one in found.result.standings] == ["evit", "evit-select-random", "evit-select-lowest"]
    for learns in (
        {"recovery": Recovery(epochs=1)},
        {"candidates": ["lgvit"]},
        {"int8": True, "runtimes": ["openvino"]},
    ):
        with pytest.raises(BadInput, match="has no training split, only val"):
            compare_methods(NAME, data, out=tmp_path / "other", **{"candidates": ["evit"], **given, **learns})
    assert not (tmp_path / "other").exists()
