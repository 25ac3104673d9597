"""The page: complete, escaped, self-contained, and drawn by a real browser."""

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from leanvit.errors import BadInput, CheckpointError
from leanvit.recipe import Root, create, save
from leanvit.report import write_report
from leanvit.report.page import render
from leanvit.report.sections import sections
from leanvit.runs.commands import Command
from leanvit.runs.record import Measurement, RunRecord, read_run
from leanvit.runs.saving import TargetRow

HOSTILE = """</script><script>alert('x')</script>"><img src=x onerror=alert(1)>{{ 7*7 }}"""


def own_text(page: str) -> str:
    """The page without plotly, whose text is not ours."""
    return page[: page.index('<script type="application/json"')] + page[page.index('id="figures"') :][:20_000]


def test_the_page_holds_everything(record) -> None:
    text = own_text(render([record]))
    for part in (
        "4.00×",
        "both in openvino, batch 8",
        "The change of runtime alone: dense, openvino f32 instead of torch f32: 2.50x",
        "ms / batch of 8",
        '<b class="bad">2</b> lost the right one, <b class="ok">1</b> gained it',
        "expected calibration error",
        "after block 0: 3 tokens for 4 patches",
        "data digits, 4 images",
        "This page is one file of",
        "keep_rate <b>0.7</b>",
        "leanvit measure runs/slim",
        "torch 2.9",
        "timm 1.0",
        "A Processor",
        "taken for one",
        "data:image/png;base64,",
        "not visible in another runtime",
    ):
        assert part in text, part


def test_what_comes_from_runs_is_escaped(record, make_row, compare_rows, maps, evidence) -> None:
    hostile_row = replace(make_row(HOSTILE), notes=(HOSTILE,))
    comparison = replace(compare_rows(make_row("dense"), hostile_row), environment={"cpu": HOSTILE, HOSTILE: HOSTILE})
    dense = evidence.answers["dense"]
    answers = replace(
        evidence,
        data=HOSTILE,
        keys=(HOSTILE, "b", "c", "d"),
        answers={"dense": dense, HOSTILE: replace(dense, classes=1 - dense.classes)},
    )
    hostile = replace(
        record,
        name=HOSTILE,
        model=HOSTILE,
        model_args={HOSTILE: HOSTILE},
        classes=(HOSTILE, HOSTILE),
        data=HOSTILE,
        asked=(TargetRow(HOSTILE, {HOSTILE: HOSTILE}, {HOSTILE: [HOSTILE]}, (HOSTILE,)),),
        commands=(Command(HOSTILE, HOSTILE, HOSTILE, 1.0, {HOSTILE: HOSTILE}, HOSTILE),),
        measurements=(Measurement(HOSTILE, comparison, HOSTILE, answers, {HOSTILE: HOSTILE}),),
        tokens=replace(maps, name=HOSTILE, pictures=(replace(maps.pictures[0], key=HOSTILE, image=HOSTILE),)),
        made_with={HOSTILE: HOSTILE},
    )
    page = render([hostile, record])
    assert "alert('x')" in own_text(page).replace("&#39;", "'"), "the text itself is shown"
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "</script><script>alert" not in page
    assert ">49<" not in page, "nothing is evaluated"


def test_the_page_asks_the_network_for_nothing(record) -> None:
    text = own_text(render([record]))
    links = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", text)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert "@import" not in text and "url(" not in text


def test_nothing_is_fetched_and_only_the_pages_own_scripts_run(record) -> None:
    page = render([record])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    allowed = set(re.findall(r"'sha256-([^']*)'", policy))
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    found = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts}
    assert len(scripts) == 3 and found == allowed


def test_a_run_that_was_not_measured_says_so(record) -> None:
    text = own_text(render([replace(record, measurements=(), tokens=None, curve=None)]))
    assert "leanvit measure RUN --data DATA" in text
    assert "tokens were not traced" in text


def test_a_run_of_an_older_leanvit_says_what_is_missing_and_what_makes_it(record) -> None:
    old = replace(record.measurements[0], evidence=None, pictures={})
    text = own_text(render([replace(record, measurements=(old,))]))
    assert "4.00×" in text and "expected calibration error" not in text
    assert "Measuring anew keeps them" in text and text.count("<code>leanvit measure runs/slim</code>") == 2


def test_counted_parameters_of_int8_are_shown(record, make_row, compare_rows) -> None:
    slim = replace(make_row("slim"), precision="int8 simulated", params=804_234, weights_bytes=871_520)
    measured = Measurement("measure.json", compare_rows(make_row("dense"), slim), "")
    text = own_text(render([replace(record, measurements=(measured,))]))
    assert ">0.804</td>" in text and ">0.831</td>" in text


def other_run(record: RunRecord, comparison, data: str, evidence=None) -> RunRecord:
    measured = Measurement("measure.json", comparison, "", evidence)
    return replace(record, folder=Path("runs/other"), data=data, measurements=(measured,), tokens=None, curve=None)


def test_runs_on_other_data_are_never_in_one_plot(record, comparison) -> None:
    made = sections([record, other_run(record, replace(comparison, images=50), "photos")])
    assert [(part.title, part.images) for part in made.data] == [("digits", 4), ("photos", 50)]
    assert [len(part.benches[0].tables) for part in made.data] == [1, 1]
    text = own_text(render([record, other_run(record, replace(comparison, images=50), "photos")]))
    assert "figures of one part are not comparable" in text


def test_the_same_name_with_other_images_is_other_data(record, comparison, evidence) -> None:
    moved = replace(evidence, keys=("e", "f", "g", "h"))
    made = sections([record, other_run(record, comparison, "digits", moved)])
    assert len(made.data) == 2
    assert len({part.title for part in made.data}) == 2, "told apart by their images"


def test_runs_on_the_same_images_share_a_plot_and_keep_their_names(record, comparison, evidence) -> None:
    made = sections([record, other_run(record, comparison, "digits", evidence)])
    (part,) = made.data
    (bench,) = part.benches
    assert [table.title for table in bench.tables] == ["slim · measure.json", "other · measure.json"]
    names = {entry["name"] for entry in made.plots[bench.plot]["latency"]["legend"]}
    assert {"dense [slim]", "dense [other]"} <= names and "were not interleaved" in bench.note


def test_another_machine_or_batch_gets_its_own_plot(record, comparison, evidence) -> None:
    elsewhere = replace(comparison, environment={"cpu": "Another", "threads": 1})
    (part,) = sections([record, other_run(record, elsewhere, "digits", evidence)]).data
    assert [bench.conditions for bench in part.benches] == [
        "images of 1×8×8, batch 8, A Processor, 2 threads",
        "images of 1×8×8, batch 8, Another, 1 thread",
    ]


# --- from folders -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, comparison, maps) -> Path:
    kwargs = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 1, "num_classes": 2}
    folder = save(create(Root("vit_tiny_patch16_224", kwargs)), tmp_path / "run", classes=["a", "b"])
    (folder / "measure.json").write_text(comparison.to_json())
    (folder / "tokens.json").write_text(maps.to_json())
    return folder


def test_a_report_of_a_folder(run) -> None:
    page = write_report([run])
    assert page == run / "report.html"
    assert "4.00×" in page.read_text()


def test_measurements_come_in_the_order_they_were_made(run, comparison, make_row) -> None:
    for number in (10, 2):
        other = replace(comparison, rows=(*comparison.rows, make_row(f"other {number}")))
        (run / f"measure-{number}.json").write_text(other.to_json())
    shown = re.findall(r"<h3>run · (measure[-\d]*\.json)", own_text(write_report([run]).read_text()))
    assert shown == ["measure.json", "measure-2.json", "measure-10.json"]


def test_a_comparison_is_one_section_however_often_it_was_made(run, comparison) -> None:
    """The newest is shown; one that lacks rows, or has other models, replaces nothing."""
    few = replace(comparison, rows=comparison.rows[:2])
    for number, one in ((2, few), (3, few), (10, comparison)):
        (run / f"measure-{number}.json").write_text(one.to_json())
    made = sections([read_run(run)])
    (table,) = made.data[0].benches[0].tables
    assert table.earlier == ("measure.json", "measure-2.json", "measure-3.json")
    assert "Measured before, and not shown: measure.json, measure-2.json, measure-3.json." in render([read_run(run)])
    (run / "measure-11.json").write_text(few.to_json())
    assert len(sections([read_run(run)]).data[0].benches[0].tables) == 2, "measure-10 has rows that 11 lacks"


def test_the_headline_is_of_what_was_measured_last_in_a_runtime_of_deployment(record, make_row, compare_rows) -> None:
    def measured(at: str, ms: float, runtime: str) -> Measurement:
        mark = "" if runtime == "torch" else f" ({runtime})"
        pair = make_row(f"dense{mark}", runtime=runtime), make_row(f"slim{mark}", runtime=runtime, ms=ms)
        rows = pair if runtime == "torch" else (make_row("dense"), *pair)
        return Measurement(f"measure-{at}.json", replace(compare_rows(*rows), environment={"cpu": at}), "", at=at)

    found = measured("3", 5.0, "torch"), measured("2", 4.0, "onnx"), measured("1", 1.0, "openvino")
    assert sections([replace(record, measurements=found)]).headline.runtime == "onnx"
    assert sections([replace(record, measurements=found[:1])]).headline.runtime == "torch"


def test_a_model_has_one_colour_on_the_page(record, make_row, compare_rows, comparison, evidence) -> None:
    """In other runtimes, plots and sections too; what is named alike and is another model has its own."""
    steps = compare_rows(make_row("dense"), make_row("+ evit", macs=3_000_000))
    whole = compare_rows(make_row("dense"), make_row("evit"), make_row("evit (onnx)", runtime="onnx"))
    own = replace(
        record, measurements=(Measurement("measure.json", steps, ""), Measurement("measure-2.json", whole, ""))
    )
    other = compare_rows(make_row("dense", macs=9_000_000), make_row("slim"))
    far = replace(record, folder=Path("runs/far"), name="slim", measurements=(Measurement("m.json", other, ""),))
    made = sections([own, far])
    colours = {
        (trace["name"], trace["meta"]["series"])
        for views in made.plots.values()
        for trace in views[next(iter(views))]["data"]
        if trace["meta"]["series"] >= 0
    }
    by_name: dict[str, set[int]] = {}
    for name, number in colours:
        by_name.setdefault(name, set()).add(number)
    assert all(len(numbers) == 1 for numbers in by_name.values()), by_name
    assert by_name["+ evit [slim]"] == by_name["evit [slim]"] == by_name["evit"]
    assert by_name["slim [far]"] == by_name["slim"]
    assert by_name["dense [slim]"] != by_name["dense [far]"], "as many parameters, other MACs"


def test_a_page_is_not_replaced_unasked(run, tmp_path) -> None:
    out = tmp_path / "page.html"
    write_report([run], out)
    with pytest.raises(BadInput, match="exists"):
        write_report([run], out)
    assert write_report([run], out, overwrite=True) == out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("measure.json", "{", "not a comparison"),
        ("tokens.json", "[]", "not token maps"),
        ("commands.jsonl", '{"verb": 3}', "not a record of commands"),
        ("train.jsonl", "nothing\n", "not a log of training"),
        ("predictions.safetensors", "{", "cannot be read as evidence"),
    ],
)
def test_a_damaged_file_is_named_and_the_page_is_written(run, name, content, message) -> None:
    (run / name).write_text(content)
    with pytest.warns(UserWarning, match=f"not in the report: .*{name}.*{message}"):
        page = write_report([run]).read_text()
    assert re.search(f'<li class="missing">[^<]*{re.escape(name)}[^<]*{message}', page)
    assert ("4.00×" in own_text(page)) is (name != "measure.json"), "what can be read is shown"


def test_bad_input_is_named(run, tmp_path) -> None:
    with pytest.raises(BadInput, match="no run folder"):
        write_report([tmp_path / "nothing"])
    with pytest.raises(BadInput, match="given twice"):
        write_report([run, run.parent / "." / "run"])
    with pytest.raises(BadInput, match="at least one"):
        write_report([])


def test_answers_of_a_replaced_measurement_are_not_taken_for_this_one(run, evidence, comparison) -> None:
    replace(evidence, of="0" * 64).save(run / "predictions.safetensors")
    assert read_run(run).measurements[0].evidence is None
    evidence.save(run / "predictions.safetensors")
    assert read_run(run).measurements[0].evidence is not None


def test_answers_of_other_rows_are_left_out(run, evidence) -> None:
    replace(evidence, answers={"dense": evidence.answers["dense"]}).save(run / "predictions.safetensors")
    found = read_run(run)
    assert found.measurements[0].evidence is None
    assert "does not hold the answers of measure.json" in found.unreadable[0]


def test_a_damaged_run_is_refused(run) -> None:
    (run / "leanvit.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"leanvit\.json"):
        write_report([run])
