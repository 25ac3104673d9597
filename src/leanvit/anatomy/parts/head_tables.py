"""Tensors that an attention keeps for each of its heads, described for those who cut heads and widths."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadTable:
    """A parameter of an attention, and what lies along its axes."""

    name: str  # under the attention: "logit_scale", "cpb_mlp.2.weight"
    shape: tuple[int, ...]  # as it is seen by its axes; has as many elements as the parameter
    axes: tuple[str, ...]  # "head", "qk" or "v" (a width within a head), "" (neither)
    site: str = ""  # the module under the attention whose product it is the weight of; "": none
