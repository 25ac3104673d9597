"""Loading what a verb needs: PyTorch and timm, seconds of a short command."""

from __future__ import annotations

import atexit
import gc
import sys
from typing import Any


def load_verb(name: str) -> Any:
    """The function of `leanvit.verbs` under this name, imported now.

    Imports make some hundred thousand objects that all stay, and the collector goes through them again and again for
    nothing: it rests meanwhile, and leaves them out afterwards (0.4 s of 3 s; measured on two cores).
    """
    from leanvit import verbs

    first = "torch" not in sys.modules and gc.isenabled()
    if not first:
        return getattr(verbs, name)
    gc.disable()
    try:
        return getattr(verbs, name)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.enable()
