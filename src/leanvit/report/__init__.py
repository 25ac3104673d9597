"""Layer 4: runs as one self-contained HTML page. `write_report` loads on first use."""

from __future__ import annotations

from typing import Any

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    if name != "write_report":
        raise AttributeError(f"module 'leanvit.report' has no attribute {name!r}")
    from leanvit.report.page import write_report

    return write_report
