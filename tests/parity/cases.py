"""Golden cases: where they are, what is in one, and who handles it.

A case is `<slug>/<name>.json` with, mostly, `<slug>/<name>.safetensors` beside it. One module a slug,
`parity_<slug>.py`, registers a handler for each kind of case:

    @handler("evit", "forward")
    def forward(case): ...

Handlers are found by the slug and by `kind`, or, for a case without one, by the key that it holds; never by its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Handler = Callable[["Case"], None]
_HANDLERS: dict[tuple[str, str], Handler] = {}


@dataclass(frozen=True)
class Case:
    """One golden case."""

    path: Path  # of the json

    @property
    def slug(self) -> str:
        return self.path.parent.name

    @property
    def id(self) -> str:
        return f"{self.slug}/{self.path.stem}"

    @cached_property
    def spec(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    def part(self, name: str) -> dict[str, Tensor]:
        """Tensors under `weights/`, `input/`, `output/` or `mid/`, without that prefix."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}

    def check(self, name: str, got: Tensor, want: Tensor) -> None:
        """Equal within the case's tolerance; integers and booleans exactly."""
        tolerance = self.spec["tolerance"] if want.is_floating_point() else {"atol": 0, "rtol": 0}
        torch.testing.assert_close(
            got.detach().to(want.dtype) if want.is_floating_point() else got,
            want,
            atol=tolerance["atol"],
            rtol=tolerance["rtol"],
            msg=lambda text: f"{self.id}: {name}: {text}",
        )


def handler(slug: str, kind: str) -> Callable[[Handler], Handler]:
    """Register what checks the cases of one kind of one slug (for cases without a kind: of one top-level key)."""

    def register(function: Handler) -> Handler:
        _HANDLERS[slug, kind] = function
        return function

    return register


def folder(option: str | None) -> Path | None:
    """The folder of cases: `--cases`, else LEANVIT_PARITY, else `../shared/parity` beside the checkout, else None.

    Raises:
        FileNotFoundError: the first two name no folder.
    """
    for source, named in (("--cases", option), ("LEANVIT_PARITY", os.environ.get("LEANVIT_PARITY"))):
        if named:
            if not Path(named).is_dir():
                raise FileNotFoundError(f"{source} is {named!r}, which is no folder")
            return Path(named)
    beside = Path(__file__).resolve().parents[3] / "shared" / "parity"
    return beside if beside.is_dir() else None


def found(root: Path) -> Iterator[Case]:
    """Every case under a folder (which may be that of one slug)."""
    for path in sorted(root.resolve().rglob("*.json")):
        yield Case(path)


def check(case: Case) -> None:
    """Run a case through its handler. A case that nobody handles is a failure: its method is here."""
    module = Path(__file__).parent / f"parity_{case.slug}.py"
    if not module.is_file():
        raise AssertionError(f"{case.id}: leanvit has this method, but tests/parity/{module.name} is missing")
    import_module(f"parity.parity_{case.slug}")
    kinds = [case.spec["kind"]] if "kind" in case.spec else list(case.spec)
    for kind in kinds:
        if (case.slug, kind) in _HANDLERS:
            _HANDLERS[case.slug, kind](case)
            return
    known = sorted(kind for slug, kind in _HANDLERS if slug == case.slug)
    raise AssertionError(f"{case.id}: no handler for {kinds}; tests/parity/parity_{case.slug}.py handles {known}")
