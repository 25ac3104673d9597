"""Models of parts: unknown parts and wirings, traits that a part must keep, and files that need what is not known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from wrong import Case, Cli

import leanvit
from leanvit.anatomy.composite import Wiring, wiring
from leanvit.errors import Refused
from leanvit.knobs import Count
from leanvit.prune.nvit import NViT
from leanvit.recipe import CompositeRoot, ForeignRoot, Root, compose, rebuilt
from leanvit.tokens.evit import EViT
from leanvit.tokens.sit import SiT

KWARGS = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 1, "num_classes": 2}
TINY = Root("vit_tiny_patch16_224", KWARGS)


@wiring("wrong_wiring")
@dataclass(frozen=True)
class Needing(Wiring):
    """A wiring that reads maps of a known width, and needs a head."""

    stride: Count = 1

    required: ClassVar[tuple[str, ...]] = ("head",)
    keeps: ClassVar[Mapping[str, frozenset[str]]] = {"backbone": frozenset({"maps", "width"})}


def _whole(**parts: Any) -> Any:
    return compose(Needing(), {"backbone": TINY, "head": TINY, **parts})


CLI = [
    Cli(
        "part of a model without parts",
        ("compress", "run", "--with", "evit", "--part", "head"),
        ("part is 'head'; accepted: none, the model is no model of parts",),
    ),
    Cli("unknown feature", ("measure", "feature-unknown", "--data", "digits"), ("uses the feature 'streams'",), 1),
    Cli(
        "unknown wiring",
        ("measure", "wiring-unknown", "--data", "digits"),
        ("wiring-unknown", "my_heads", "leanvit --import"),
        1,
    ),
]

CASES = [
    Case(
        "part unknown",
        lambda: leanvit.compress(_whole(), [EViT(keep_rate=0.5)], part="neck"),
        ("part is 'neck'; accepted: backbone, head",),
    ),
    Case(
        "trait not kept",
        lambda: leanvit.compress(_whole(), [SiT()]),
        ("sit takes feature maps .* away, which the model around this part needs",),
        Refused,
    ),
    Case(
        "width not kept",
        lambda: NViT(macs=0.5, kinds=("embed",)).check_fits(_whole().main_part, None),
        ("nvit cannot cut embedding channels of this model: the model around this part reads their width",),
        Refused,
    ),
    Case("part missing", lambda: compose(Needing(), {"backbone": TINY}), ("needs the part 'head'",)),
    Case("main part missing", lambda: compose(Needing(), {"head": TINY}), ("opened model as its part 'backbone'",)),
    Case("part of another kind", lambda: _whole(head=3), ("part 'head' is a int; accepted: a model or part",)),
    Case("name of a part", lambda: _whole(**{"state-dict": TINY}), ("part 'state-dict': accepted: a Python name",)),
    Case("argument of a wiring", lambda: Needing(stride=0), ("stride is 0; accepted: a whole number, 1 or more",)),
    Case("unknown wiring in Python", lambda: CompositeRoot("wrong_wirin"), ("unknown wiring 'wrong_wirin'", "did you")),
    Case("unknown foreign part", lambda: ForeignRoot("gone", {}), ("unknown foreign 'gone'",)),
    Case("argument of a part", lambda: rebuilt(_whole(), {"img_size": 16}), (r"accepted .*: backbone\.ARGUMENT",)),
    Case(
        "outputs of no classes",
        lambda: leanvit.predict(_whole(), "digits", preprocess=leanvit.Preprocess.of(_whole())),
        (
            "predict needs a model that tells classes of images apart, and the outputs of wiring wrong_wiring are",
            r"--task NAME \(in Python task=\)",
        ),
        Refused,
    ),
]
