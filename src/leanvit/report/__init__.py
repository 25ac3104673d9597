"""Floor 3: runs as one self-contained HTML page. `report` loads on first use."""

from __future__ import annotations

from typing import Any

__all__ = ["report"]


def __getattr__(name: str) -> Any:
    if name != "report":
        raise AttributeError(f"module 'leanvit.report' has no attribute {name!r}")
    from leanvit.report.page import report

    return report
