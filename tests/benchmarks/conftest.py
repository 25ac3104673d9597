"""Benchmarks as modules, and what their `--smoke` writes."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`smoke("small_data", "--pairs", "dhvt")`: what a script writes with --smoke; again: into the same file."""

    def run(script: str, *options: str) -> dict[str, Any]:
        out = tmp_path / f"{script}.json"
        monkeypatch.setattr(sys, "argv", [f"{script}.py", "--smoke", "--out", str(out), *options])
        import_module(script).main()
        return json.loads(out.read_text())

    return run
