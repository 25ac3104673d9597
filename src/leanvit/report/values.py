"""Figures of a plan as short text: what was requested of a method, and what was achieved."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

LONGEST = 160  # characters; the whole value is in `leanvit.json`


def shown(value: Any, *, longest: int = LONGEST) -> str:
    """A JSON value in words: floats with 4 digits, equal neighbours of a list counted, what is too long cut.

    >>> shown([196, 196, 196, 138, 138, 97])
    '196 ×3, 138 ×2, 97'
    """
    text = _text(value)
    return text if len(text) <= longest else f"{text[: longest - 2].rstrip(', ')} …"


def share_in_words(share: Mapping[str, Any]) -> list[str]:
    """What a method left of the MACs and parameters that it met, and what is left of the dense model's with it.

    >>> share_in_words({"macs": 0.7, "macs_total": 0.49, "params": 1.0, "params_total": 1.0})
    ['0.7 of the MACs that it met, 0.49 of dense']
    """
    lines = []
    for kind, name in (("macs", "MACs"), ("params", "parameters")):
        own, total = share.get(kind), share.get(f"{kind}_total")
        if not isinstance(own, int | float) or abs(own - 1) < 5e-4:  # as it is, or not known
            continue
        of_dense = f", {_share(total)} of dense" if isinstance(total, int | float) else ""
        lines.append(f"{_share(own)} of the {name} that it met{of_dense}")
    return lines


def _share(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 1e6 else f"{float(value):.3g}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        runs = [(text, len(list(same))) for text, same in groupby(_nested(one) for one in value)]
        return ", ".join(text if count == 1 else f"{text} ×{count}" for text, count in runs) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_nested(one)}" for key, one in value.items()) or "none"
    return str(value)


def _nested(value: Any) -> str:
    return f"({_text(value)})" if isinstance(value, list | tuple | dict) else _text(value)
