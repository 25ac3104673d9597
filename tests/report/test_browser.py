"""The page under real clicks and keys, in headless Chromium without a network."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browsing import Browser, Page, browsing, find_chromium

from leanvit.report.page import render
from leanvit.runs.record import RunRecord

VISIBLE = "document.getElementById('plot-0').data.filter(t => t.visible !== false).map(t => t.name)"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
AXIS = "document.getElementById('plot-0').layout.xaxis.title.text"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (looked for chromium, chromium-browser, google-chrome)")
    with browsing(program, tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture
def url(record: RunRecord, tmp_path: Path) -> str:
    page = tmp_path / "page.html"
    page.write_text(render([record]), encoding="utf-8")
    return page.as_uri()


def fits(page: Page) -> bool:
    return page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("width", [400, 1400])
def test_the_whole_page_answers_to_clicks(browser, url, width) -> None:
    page = browser.open(url, width=width)
    assert fits(page), "the body never scrolls sideways"
    assert page.run("[...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))")
    assert page.run("[...document.querySelectorAll('.plot')].every(p => p.layout.width <= innerWidth)")

    # the cost axis
    assert page.run(AXIS) == "latency [ms / batch of 8]"
    page.click("input[value=MACs]")
    assert page.run(AXIS) == "MACs [M / image]"

    # the legend: a model, then a runtime
    everything = page.run(VISIBLE)
    page.click(".switchkey", number=1)
    assert set(page.run(VISIBLE)) == set(everything) - {"slim"}
    assert page.run("document.querySelectorAll('.switchkey')[1].getAttribute('aria-pressed')") == "false"
    page.click(".switchkey", number=1)
    assert page.run(VISIBLE) == everything
    page.click(".switchkey", number=3)
    assert "best of openvino" not in page.run(VISIBLE)

    # the theme, plots too
    light, ink = page.run(BACKGROUND), "document.getElementById('plot-0').layout.xaxis.gridcolor"
    grid = page.run(ink)
    page.click("#theme")
    assert page.run(BACKGROUND) != light and page.run(ink) != grid
    assert page.run("document.querySelectorAll('.switchkey')[3].getAttribute('aria-pressed')") == "false", "kept"

    # which pair is compared
    shown = "[...document.querySelectorAll('.panel')].filter(p => !p.hidden).map(p => p.dataset.panel)"
    before = page.run(shown)
    page.run("document.querySelector('select[data-panels]').focus()")
    page.press("ArrowLeft" if before == ["1"] else "ArrowRight")
    assert page.run(shown) != before and len(page.run(shown)) == 1
    assert fits(page)
    assert page.complaints() == []


def test_the_depth_slider_moves_by_mouse_and_key(browser, url) -> None:
    page = browser.open(url, width=900)
    layers = (
        "[...document.querySelectorAll('.tokens g.layer')].filter(g => getComputedStyle(g).display !== 'none').length"
    )
    payload = "document.querySelector('.tokens output').textContent"
    assert (page.run(layers), page.run(payload)) == (1, "after block 0: 3 tokens for 4 patches")
    page.run("document.querySelector('input[data-depths]').focus()")
    page.press("ArrowLeft")
    assert (page.run(layers), page.run(payload)) == (0, "the image as given: 4 patches")
    page.press("End")
    assert page.run(layers) == 1
    page.press("Home")
    page.click("input[data-depths]")  # the middle of two places: the browser takes the nearer, the second
    assert page.run("document.querySelector('input[data-depths]').getAttribute('aria-valuetext')") == page.run(payload)
    assert page.complaints() == []


def test_the_theme_is_remembered_and_follows_the_system_before(browser, url) -> None:
    page = browser.open(url, width=900)
    page.run("localStorage.clear()")
    page.send("Page.reload")
    page.wait_for("document.readyState === 'complete' && 'ready' in document.documentElement.dataset")
    page.prefer("light")
    light = page.run(BACKGROUND)
    page.prefer("dark")
    page.wait_for(f"{BACKGROUND} !== {light!r}")
    dark = page.run(BACKGROUND)
    page.click("#theme")
    assert page.run(BACKGROUND) == light
    again = browser.open(url, width=900)
    again.prefer("dark")
    assert again.run(BACKGROUND) == light, "what was chosen stands above what the system prefers"
    again.click("#theme")
    assert again.run(BACKGROUND) == dark


def test_pointing_at_a_mark_tells_its_figures(browser, url) -> None:
    page = browser.open(url, width=1400)
    page.run("document.getElementById('plot-0').scrollIntoView({block: 'center', behavior: 'instant'})")
    mark = "[...document.querySelectorAll('#plot-0 .scatterlayer .point')].at(-1).getBoundingClientRect().toJSON()"
    box = page.run(mark)
    spot = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    for step in (3, 0):
        page.send("Input.dispatchMouseEvent", {"type": "mouseMoved", **spot, "x": spot["x"] + step})
    page.wait_for("document.querySelector('#plot-0 .hoverlayer .hovertext')")
    assert "top-1 88.00 %" in page.run("document.querySelector('#plot-0 .hoverlayer').textContent")


def test_it_prints_light_with_plots_that_fit_and_comes_back(browser, url) -> None:
    page = browser.open(url, width=1400)
    page.run("document.documentElement.dataset.theme = 'dark'")
    page.run(
        "window.seen = null; addEventListener('beforeprint', () => { seen = {"
        "widths: [...document.querySelectorAll('.plot')].map(p => p.layout.width),"
        f"background: {BACKGROUND}, folded: document.querySelectorAll('details:not([open])').length}} }})"
    )
    assert page.paper().startswith(b"%PDF")
    seen = page.run("window.seen")
    assert 900 < max(seen["widths"]) <= 1030 and min(seen["widths"]) > 200
    assert (seen["background"], seen["folded"]) == ("rgb(255, 255, 255)", 0)
    assert page.run("document.getElementById('plot-0').layout.width") > 1200
    assert page.run(BACKGROUND) != "rgb(255, 255, 255)"
    assert page.complaints() == []


def test_a_page_without_measurements_complains_of_nothing(browser, record, tmp_path) -> None:
    path = tmp_path / "bare.html"
    path.write_text(render([replace(record, measurements=(), tokens=None, curve=None)]), encoding="utf-8")
    page = browser.open(path.as_uri(), width=400)
    assert fits(page) and page.complaints() == []


def test_what_is_wrong_in_a_page_would_be_noticed(browser, tmp_path) -> None:
    path = tmp_path / "broken.html"
    path.write_text(
        "<html data-ready><p style='width: 2000px'>wide</p><script>nothingOfThisName()</script>"
        "<img src='https://example.invalid/x.png'>",
        encoding="utf-8",
    )
    page = browser.open(path.as_uri(), width=400)
    assert not fits(page)
    said = " ".join(page.complaints())
    assert "nothingOfThisName" in said and "request of https://example.invalid" in said
