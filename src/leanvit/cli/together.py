"""Which commands torchrun may start, and that the others run in one process."""

from __future__ import annotations

from leanvit.cli.output import process
from leanvit.errors import BadInput

TOGETHER = ("train", "compress", "compare-methods", "demo")  # their processes train together


def require_one_process(what: str) -> None:
    """Raise `BadInput` where torchrun started several, which would all do the same."""
    processes = process()[1]
    if processes > 1:
        *most, last = TOGETHER
        raise BadInput(
            f"{what} runs in one process, but torchrun started {processes}: start it without torchrun, which is for "
            f"{', '.join(most)} and {last}"
        )
