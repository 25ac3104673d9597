"""Every command of README and docs is run, in the order of its page, on a few small photos of five classes.

What a reader types is what is run: README and quickstart as they are printed, from the download of pretrained weights
on (timm gets fresh ones instead). Elsewhere a comment before a block says how it is run
smaller: `<!-- test: epochs=1 -pretrained="why" skip:make="why" -->`
    key=value           the option --key of the commands in the block gets this value, also where it has none;
    verb.key=value      of the commands of this verb only
    -flag="why"         the flag is left out
    skip:word="why"     lines that begin with the word are not run
    skip="why"          the block is not run
    "old => new"        text replaced, in a block of Python
What is left out needs a reason, and is listed below.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from leanvit.cli.main import app

ROOT = Path(__file__).parents[2]
FIRST = "docs/quickstart.md"  # the other pages go on in the folder that it leaves
BLOCK = re.compile(
    r"(?:<!-- test: (?P<marker>[^\n]*?) -->\n)?```(?P<language>bash|sh|python)\n(?P<text>.*?)^```", re.M | re.S
)

LEFT_OUT = {
    "README.md": {"make": "sets up an environment of its own; tests/verbs/test_demonstration.py runs the demo"},
    "docs/quickstart.md": {"block 1": "installs the package that is under test"},
    "docs/own-method.md": {"block 1": "the file itself, included whole: tests/docs/test_own_method.py runs it"},
    "docs/own-task.md": {
        "block 1": "the file itself, included whole: tests/docs/test_own_task.py runs it",
        "block 2": "tests/docs/test_own_task.py runs these commands",
        "block 3": "tests/docs/test_own_task.py does the same",
        "block 4": "tests/tracers/test_heads.py does the same",
    },
}


@dataclass(frozen=True)
class Block:
    """A fenced block and what its marker says."""

    python: bool
    text: str
    options: list[tuple[str, str]] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # first word of a line, "" for the block -> why
    replaced: list[tuple[str, str]] = field(default_factory=list)


def pages() -> dict[str, str]:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in files}


def blocks(text: str) -> list[Block]:
    return [_block(found) for found in BLOCK.finditer(text)]


def _block(found: re.Match[str]) -> Block:
    block = Block(found["language"] == "python", found["text"])
    for token in shlex.split(found["marker"] or ""):
        key, _, value = token.partition("=")
        if " => " in token:
            block.replaced.append(tuple(token.split(" => ")))
        elif key.startswith("-"):
            block.flags[f"-{key}"] = value
        elif key == "skip" or key.startswith("skip:"):
            block.skipped[key[5:]] = value
        else:
            block.options.append((key, value))
    return block


PAGES = {name: found for name, text in pages().items() if (found := blocks(text))}


# --- running --------------------------------------------------------------------------------------------------------


def run_page(found: list[Block]) -> None:
    """The blocks of a page, in order, in the working directory; those of Python share their names."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in found:
        if "" in block.skipped:
            continue
        if block.python:
            exec(compile(smaller_code(block), "<block>", "exec", dont_inherit=True), names)
        else:
            for words in smaller_commands(block):
                run_command(words)


def smaller_code(block: Block) -> str:
    text = block.text
    for old, new in block.replaced:
        assert old in text, f"the marker replaces {old!r}, which the block does not hold"
        text = text.replace(old, new)
    return text


def smaller_commands(block: Block) -> list[list[str]]:
    """The commands as they are run. A marker that changes nothing has been forgotten: an error."""
    lines = [shlex.split(line, comments=True) for line in block.text.replace("\\\n", " ").splitlines()]
    commands = [words for words in lines if words and words[0] not in block.skipped]
    unused = {*block.flags, *(name for name, _ in block.options)}
    for flag in block.flags:
        for words in commands:
            if flag in words:
                words.remove(flag)
                unused.discard(flag)
    for name, value in block.options:
        verb, _, key = name.rpartition(".")
        for words in commands:
            if f"--{key}" in known_options(words) and (not verb or verb in words):
                set_option(words, f"--{key}", value)
                unused.discard(name)
    assert not unused, f"the marker says {unused}, which no command of the block knows"
    return commands


def known_options(words: list[str]) -> set[str]:
    verbs = typer.main.get_command(app).commands
    verb = next((verbs[w] for w in words if words[0] == "leanvit" and w in verbs), None)
    return set() if verb is None else {option for p in verb.params for option in p.opts}


def set_option(words: list[str], name: str, value: str) -> None:
    if name in words and not re.match(r"\w+=", value):
        words[words.index(name) + 1] = value
    else:  # not there, or one that repeats, like --model-arg K=V
        words += [name, value]


def run_command(words: list[str]) -> None:
    if words[0] == "leanvit":
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}\n{result.exception!r}"
        return
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the quickstart leaves: photos, and the runs of the page."""
    folder = tmp_path_factory.mktemp("docs")
    make_photos(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page(PAGES[FIRST])
    yield folder


def make_photos(folder: Path) -> None:
    """80 photos of 48x48, five classes, each with a colour of its own."""
    random = np.random.default_rng(0)
    colours = {"bird": (90, 0, 0), "cat": (0, 90, 0), "dog": (0, 0, 90), "fish": (90, 90, 0), "horse": (0, 90, 90)}
    for label, colour in colours.items():
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(16):
            pixels = random.integers(0, 160, (48, 48, 3), dtype=np.uint8) + np.array(colour, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i:04}.png")
    shutil.copy(ROOT / "examples" / "head_importance.py", folder)


@pytest.fixture(scope="module", autouse=True)
def _no_network() -> Iterator[None]:
    """timm's download gives fresh weights of the model that it names; what timm does with them is timm's own."""

    def fetched(name: str, *_: object, **__: object) -> dict[str, torch.Tensor]:
        return timm.create_model(name.partition("/")[2]).state_dict()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.models._builder.load_state_dict_from_hf", fetched)
        yield


@pytest.mark.e2e
@pytest.mark.parametrize("page", [page for page in PAGES if page != FIRST])
def test_every_command_of_the_page_works(page: str, quickstart: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "page"
    if page == "README.md":  # it starts from nothing
        folder.mkdir()
        make_photos(folder)
    else:
        shutil.copytree(quickstart, folder)
    monkeypatch.chdir(folder)
    run_page(PAGES[page])


@pytest.mark.e2e
def test_the_quickstart_works(quickstart: Path) -> None:
    left = {path.name for path in quickstart.iterdir()} | {path.name for path in (quickstart / "runs").iterdir()}
    assert {"dense", "slim", "merged", "report.html"} <= left


# --- what is not run ------------------------------------------------------------------------------------------------


def test_readme_and_quickstart_are_run_as_they_are_printed() -> None:
    changed = {page: b for page in ("README.md", FIRST) for b in PAGES[page] if b.options or b.replaced or b.flags}
    assert not changed


def test_what_is_left_out_is_listed_with_its_reason() -> None:
    found: dict[str, dict[str, str]] = {}
    for page, its_blocks in PAGES.items():
        for number, block in enumerate(its_blocks, start=1):
            for word, why in {**block.skipped, **block.flags}.items():
                assert why, f"{page}: {word or 'a block'} is left out without a reason"
                found.setdefault(page, {})[word or f"block {number}"] = why
    assert found == LEFT_OUT


def test_every_fence_is_a_kind_that_is_run_or_is_no_command() -> None:
    for page, text in pages().items():
        fences = re.findall(r"^```(\w*)", text, flags=re.M)
        assert set(fences) <= {"", "bash", "sh", "python", "text"}, page
        assert len(blocks(text)) == sum(fence in ("bash", "sh", "python") for fence in fences), page


def test_a_marker_that_nothing_knows_is_an_error() -> None:
    (block,) = blocks("<!-- test: epohcs=1 -->\n```bash\nleanvit train m --data digits\n```\n")
    with pytest.raises(AssertionError, match="epohcs"):
        smaller_commands(block)
    (block,) = blocks(
        '<!-- test: epochs=1 -adapt="why" -->\n```bash\nleanvit train m --data d --adapt --epochs 9\n```\n'
    )
    assert smaller_commands(block) == [["leanvit", "train", "m", "--data", "d", "--epochs", "1"]]


def test_a_command_that_fails_is_seen() -> None:
    with pytest.raises(AssertionError, match="unknown method"):
        run_page(blocks("```bash\nleanvit methods evitt\n```\n"))
    with pytest.raises(ZeroDivisionError):
        run_page(blocks("```python\n1 / 0\n```\n"))
