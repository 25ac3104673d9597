"""Results of a long benchmark, kept row by row: a killed run goes on where it was.

The file holds the settings that the rows were made with. A run with other settings, or on another CPU, is refused: its
rows would be mixed with those that are there.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from leanvit.errors import BadInput
from leanvit.files import write_atomic
from leanvit.measure import environment


class KeptRows:
    """Rows by key in one JSON file: `{"commands", "settings", "environment", "rows", ...}`."""

    def __init__(self, path: Path, settings: dict[str, Any], *, fresh: bool = False) -> None:
        """Raises `BadInput` if `path` holds rows of other settings or of another CPU; `fresh` forgets them."""
        self.path = path
        settings = json.loads(json.dumps(settings))
        self.content: dict[str, Any] = {
            "commands": [],
            "settings": settings,
            "environment": environment(),
            "rows": [],
        }
        if path.is_file() and not fresh:
            kept = json.loads(path.read_text(encoding="utf-8"))
            self._require_same(kept)
            told = {k: v for k, v in settings.items() if v is not None}
            self.content |= {**kept, "settings": kept["settings"] | told}
        command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        if command not in self.content["commands"]:
            self.content["commands"].append(command)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.content["rows"]

    def get(self, **key: Any) -> dict[str, Any] | None:
        """The row whose columns have these values, if it is there."""
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Keep one more row; it is on disk when this returns."""
        self.rows.append(row)
        self.write()
        return row

    def write(self, **more: Any) -> None:
        """Write the file atomically, with `more` (summaries) beside the rows."""
        self.content |= more
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, f"{json.dumps(self.content, indent=1, allow_nan=False)}\n".encode())

    def _require_same(self, kept: dict[str, Any]) -> None:
        was, now = kept["settings"], self.content["settings"]
        both = [k for k in was if was[k] is not None and now.get(k) is not None]  # None: that part has not run yet
        other = [f"{k} was {was[k]!r} and is {now[k]!r}" for k in both if was[k] != now[k]]
        cpus = [kept["environment"]["cpu"], self.content["environment"]["cpu"]]
        if cpus[0] != cpus[1]:
            other.append(f"the CPU was {cpus[0]} and is {cpus[1]}")
        if other:
            raise BadInput(
                f"{self.path} holds rows of other settings: {'; '.join(other)}. Give another --out or --fresh"
            )
