"""The page: complete, escaped, self-contained, and drawn by a real browser."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from leanvit.errors import BadInput, CheckpointError
from leanvit.recipe import Root, create, save
from leanvit.report import write_report
from leanvit.report.material import Material, Measurement
from leanvit.report.page import render
from leanvit.verbs.folders import Command

HOSTILE = """</script><script>alert('x')</script>"><img src=x onerror=alert(1)>{{ 7*7 }}"""


@pytest.fixture
def material(comparison, maps) -> Material:
    command = Command("measure", "leanvit measure runs/slim", "2026-01-02T03:04:05+00:00", 1.5, {"torch": "2.9"}, "")
    return Material(
        folder=Path("runs/slim"),
        name="evit",
        model="vit_tiny_patch16_224",
        model_args={"depth": 2},
        classes=("zero", "one"),
        data="digits",
        asked=({"method": "evit", "asked": {"keep_rate": 0.7}, "achieved": {"tokens": [5, 4]}},),
        commands=(command,),
        measurements=(Measurement("measure.json", comparison, command.command),),
        tokens=maps,
        made_with={"timm": "1.0"},
    )


def own_text(page: str) -> str:
    """The page without plotly, whose text is not ours."""
    return page[: page.index("<script>")]


def test_the_page_holds_everything(material) -> None:
    text = own_text(render([material]))
    for part in (
        "4.00×",
        "both in openvino, batch 8",
        "The change of runtime alone: dense, torch f32 to openvino f32: 2.50×",
        "ms / batch of 8",
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


def test_what_comes_from_runs_is_escaped(material, make_row, compare_rows, maps) -> None:
    hostile_row = replace(make_row(HOSTILE), notes=(HOSTILE,))
    comparison = replace(compare_rows(make_row("dense"), hostile_row), environment={"cpu": HOSTILE, HOSTILE: HOSTILE})
    hostile = replace(
        material,
        name=HOSTILE,
        model=HOSTILE,
        model_args={HOSTILE: HOSTILE},
        classes=(HOSTILE, HOSTILE),
        data=HOSTILE,
        asked=({"method": HOSTILE, "asked": {HOSTILE: HOSTILE}, "achieved": {HOSTILE: [HOSTILE]}},),
        commands=(Command(HOSTILE, HOSTILE, HOSTILE, 1.0, {HOSTILE: HOSTILE}, HOSTILE),),
        measurements=(Measurement(HOSTILE, comparison, HOSTILE),),
        tokens=replace(maps, name=HOSTILE, pictures=(replace(maps.pictures[0], key=HOSTILE, png=HOSTILE),)),
        made_with={HOSTILE: HOSTILE},
    )
    page = render([hostile, material])
    assert "alert('x')" in own_text(page).replace("&#39;", "'"), "the text itself is shown"
    assert "<script>alert" not in page and "<img" not in page
    assert "</script><script>alert" not in page
    assert ">49<" not in page, "nothing is evaluated"


def test_the_page_asks_the_network_for_nothing(material) -> None:
    text = own_text(render([material]))
    links = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", text)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert "@import" not in text and "url(" not in text


def test_a_run_that_was_not_measured_says_so(material) -> None:
    text = own_text(render([replace(material, measurements=(), tokens=None)]))
    assert "leanvit measure RUN --data DATA" in text
    assert "tokens were not traced" in text


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


def test_measurements_come_in_the_order_they_were_made(run, comparison) -> None:
    for number in (10, 2):
        (run / f"measure-{number}.json").write_text(comparison.to_json())
    shown = re.findall(r"run · (measure[-\d]*\.json)", own_text(write_report([run]).read_text()))
    assert shown == ["measure.json", "measure-2.json", "measure-10.json"]


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
    ],
)
def test_a_damaged_file_is_named(run, name, content, message) -> None:
    (run / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{name}.*{message}"):
        write_report([run])


def test_bad_input_is_named(run, tmp_path) -> None:
    with pytest.raises(BadInput, match="no run folder"):
        write_report([tmp_path / "nothing"])
    with pytest.raises(BadInput, match="given twice"):
        write_report([run, run.parent / "." / "run"])
    with pytest.raises(BadInput, match="at least one"):
        write_report([])


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> str:
    named = os.environ.get("LEANVIT_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium on this machine (looked for chromium, chromium-browser, google-chrome)")
    return found


def browse(chromium: str, page: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, without a network, and what the console said."""
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=5000",
            "--window-size=1200,2000",
            "--dump-dom",
            page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_browser_draws_every_plot_without_an_error(chromium, material, tmp_path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render([material]), encoding="utf-8")
    document, console = browse(chromium, page, tmp_path / "profile")
    assert console == []
    for plot in ("plot-0-latency", "plot-0-macs", "plot-tokens"):
        drawn = document.split(f'id="{plot}"')[1][:4000]
        assert "main-svg" in drawn, plot
    assert document.count('class="errorbar"') + document.count('class="errorbars"') >= 6


def test_an_error_in_a_page_would_be_noticed(chromium, tmp_path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>nothingOfThisName()</script>", encoding="utf-8")
    _, console = browse(chromium, page, tmp_path / "profile")
    assert any("nothingOfThisName" in line for line in console)
