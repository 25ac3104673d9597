"""Figures of a plan as short text: what was asked of a method, and what was achieved."""

from __future__ import annotations

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
