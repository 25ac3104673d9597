"""What methods give to a training: its objective and callbacks; and which of them `train` and a recovery take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from leanvit.arguments import require_methods
from leanvit.cards import paper
from leanvit.errors import BadInput, Refused
from leanvit.kinds import KINDS
from leanvit.recipe.protocol import BringsObjective, Schedules
from leanvit.recipe.registry import knobs_of

if TYPE_CHECKING:
    from leanvit.anatomy import OpenModel

TRAIN = KINDS["train"]
TRAIN_AGAIN = "train with the first, then with the other from the run that this gives"
COMPRESS_AGAIN = "compress with the first, then with the other from the run that this gives"
_GIVES = {"shape": "parts of the model", "objective": "the objective", "callbacks": "callbacks"}


def is_for_training(slug: str) -> bool:
    """Whether a method is a way to train."""
    return TRAIN.name in paper(slug).kinds


def check_training_methods(methods: Sequence[Any]) -> None:
    """Raise unless each is a way to train, and one of them at most brings an objective.

    Raises:
        BadInput: what is no method, or one of another kind (the command that takes it is named).
        Refused: two methods bring an objective (both are named).
    """
    _require_ways(methods)
    require_one_objective(methods, "the training", TRAIN_AGAIN)


def check_recovery_methods(methods: Sequence[Any]) -> None:
    """Raise unless each is a way to train that needs no parts of its own, and one at most brings an objective.

    Raises:
        BadInput: what is no method, one of another kind, or one with `shape` (what applies it is named).
        Refused: two methods bring an objective (both are named).
    """
    _require_ways(methods)
    for m in methods:
        if shapes(m):
            raise BadInput(
                f"{m.slug} puts parts into the model, and a recovery adds none: apply it before "
                f"(leanvit compress MODEL --with {m.slug} --recover EPOCHS, or leanvit train MODEL --with {m.slug})"
            )
    require_one_objective(methods, "the recovery", "leave one of them out")


def _require_ways(methods: Sequence[Any]) -> None:
    require_methods(methods)
    for i, m in enumerate(methods):
        slug = getattr(m, "slug", None)
        if isinstance(m, type) or slug is None:
            raise BadInput(f"methods[{i}] is {m!r}; accepted: a method, like parse_with('gmm_mask')")
        if not is_for_training(slug):
            card = paper(slug)
            gives = KINDS[card.kinds[0]].gives
            raise BadInput(f"{slug} is {gives}, not a way to train: leanvit {card.verb} MODEL --with {slug}")


def require_one_objective(methods: Iterable[Any], whose: str, instead: str) -> None:
    """Raise `Refused` where several methods bring an objective (they are named)."""
    bring: list[Any] = [m for m in methods if isinstance(m, BringsObjective)]
    if len(bring) > 1:
        slugs = " and ".join(m.slug for m in bring)
        raise Refused(f"{slugs} each bring the objective of {whose}, which has one: {instead}")


def objective_method(methods: Iterable[Any]) -> Any:
    """The one that brings an objective (`BringsObjective`), or None."""
    return next((m for m in methods if isinstance(m, BringsObjective)), None)


def callbacks_of(methods: Iterable[Any], model: OpenModel) -> list[object]:
    """The callbacks by which methods steer a training of the model, in their order."""
    return [c for m in methods if isinstance(m, Schedules) for c in m.callbacks(model)]


def as_rows(methods: Iterable[Any]) -> list[dict[str, Any]]:
    """Methods as a run's record has them (JSON)."""
    return [{"slug": m.slug, "knobs": knobs_of(m)} for m in methods]


def shapes(m: Any) -> bool:
    """Whether a method is applied to the model, and kept in its history."""
    return hasattr(m, "shape")


def given_by(m: Any) -> str:
    """In words, what a method gives to a training: `the objective, callbacks`."""
    return ", ".join(words for step, words in _GIVES.items() if hasattr(m, step))
