"""What a method is: knobs in a frozen dataclass, a life of prepare / learn / shape / fold / finish, and declarations.

    @method("evit")
    @dataclass(frozen=True)
    class EViT:
        keep_rate: float = 0.7
        requires: ClassVar[frozenset[str]] = frozenset({"class_token", "float"})
        destroys: ClassVar[frozenset[str]] = frozenset({"full_grid"})
        def learn(self, model, data): ...   # -> structure: JSON, shapes and what a person edits
        def shape(self, model, structure): ...

`Method` is what every method has. Each other protocol is one optional step: a method has the ones that its paper needs,
and callers check `isinstance(m, Folds)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leanvit.anatomy import OpenModel
    from leanvit.data import AnyDataset
    from leanvit.recipe.learning import Data
    from leanvit.recipe.training_steps import Training
    from leanvit.training import FitConfig, Objective

Structure = dict[str, Any]


@runtime_checkable
class Method(Protocol):
    """The declarations that every method carries (as class variables) and the one step that none can miss.

    `structure_model`, a class variable that may be missing, is a frozen dataclass of its structure
    (`recipe.structure`): a plan with other keys or values is refused before anything is built.
    """

    slug: ClassVar[str]
    requires: ClassVar[frozenset[str]]  # traits that the model must have (anatomy: OpenModel.traits)
    destroys: ClassVar[frozenset[str]]  # traits that it no longer has afterwards
    slot: ClassVar[str]  # block slot that the method fills ("" for none): one method a slot and block
    blends: ClassVar[bool]  # whether its steps mix all tokens (`Step.blends`): others take tokens before its first one
    export: ClassVar[str]  # "whole", "segments" or "none"
    needs_data: ClassVar[bool]
    trains: ClassVar[bool]  # whether `learn` trains, with resumable state in `data.out`
    resumable: ClassVar[bool]  # whether `learn` keeps units (`Data.units`): `compress` then keeps steps, too
    trainable_after: ClassVar[bool]  # whether a recovery by training may follow
    learns_from: ClassVar[tuple[str, ...]]  # "one" class an image, "several": what it knows of; (): any task
    tunable: ClassVar[tuple[str, ...]]  # knobs that a user changes in a finished model (`Tunes`)
    open_knobs: ClassVar[tuple[str, ...]]  # knobs that are None until the data is known (`ChoosesKnobs`)

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Deterministic surgery that only builds structure: needs no data, never reads weights; replayed on load."""


# --- steps of its life ---------------------------------------------------------------


@runtime_checkable
class Prepares(Protocol):
    """Puts in what is needed while learning."""

    def prepare(self, model: OpenModel) -> None:
        """Leaves the output unchanged bit for bit, and follows from the model's structure and the knobs alone."""


@runtime_checkable
class Learns(Protocol):
    """Decides: calibrates, searches, trains."""

    def learn(self, model: OpenModel, data: Any) -> Structure:
        """The structure of the plan, as JSON. `data` is a `Data`; None where the method's `needs_data` is false."""


@runtime_checkable
class Folds(Protocol):
    """Moves values into what `shape` built."""

    def fold(self, model: OpenModel, structure: Structure, before: Mapping[str, Tensor]) -> None:
        """`before`: the model's state dict before `shape`, after `learn`."""


@runtime_checkable
class Finishes(Protocol):
    """Leaves temporary parts (gates, experts, adapters) in the model that train on in the recovery.

    Until they are taken out its plan is unfinished: a load runs `prepare` again before `shape`.
    """

    def finish(self, model: OpenModel, structure: Structure) -> None:
        """Moves the values of what `prepare` put in into what stays, and takes it out."""


# --- before any work -----------------------------------------------------------------


@runtime_checkable
class ChecksFit(Protocol):
    """Knows before any work, of this method or of another, whether it fits the model.

    A method that learns nothing from data needs none: it is applied to a copy.
    """

    def check_fits(self, model: OpenModel, data: Data | None) -> None:
        """Raises `Refused` or `BadInput` where `learn` would before its first step."""


@runtime_checkable
class ChecksTeacher(Protocol):
    """Knows which teachers it can learn from in the recovery."""

    def check_teacher(self, model: OpenModel, teacher: nn.Module) -> None:
        """Raises `Refused` for a teacher that does not suit."""


@runtime_checkable
class FillsSlots(Protocol):
    """Knows from its knobs alone where it works: two methods that clash are then refused before any work."""

    def fills(self, model: OpenModel) -> Iterable[int]:
        """The blocks whose `slot` it fills."""


@runtime_checkable
class AtMacs(Protocol):
    """Can be set to a cost by the knobs that its card names as `cost`."""

    @classmethod
    def at_macs(cls, model: OpenModel, share: float, knobs: Mapping[str, Any]) -> Self:
        """With these knobs, and cost knobs that leave this share of its MACs (`recipe.nearest_setting`)."""


@runtime_checkable
class ChoosesKnobs(Protocol):
    """Has defaults that follow from the data; the plan records what was chosen."""

    def chosen_for(self, dataset: AnyDataset) -> Method:
        """With those of `open_knobs` set that are None."""


@runtime_checkable
class ForeseesTraining(Protocol):
    """Says what it will train before it begins."""

    def trainings(self, dataset: AnyDataset) -> Sequence[Training]:
        """Its trainings in their order. Raises `BadInput` where the images do not fill a batch."""


# --- the recovery that follows -------------------------------------------------------


@runtime_checkable
class Schedules(Protocol):
    """Steers the trainings of the model that it made."""

    def callbacks(self, model: OpenModel) -> Sequence[object]:
        """Callbacks (`leanvit.training`) of the recovery, or of a later training; none where nothing is steered."""


@runtime_checkable
class BringsObjective(Protocol):
    """Learns in the recovery or in a training by a loss of its own; of two that bring one, both are refused early."""

    def objective(self, model: OpenModel, data: Data, config: FitConfig) -> Objective | None:
        """Takes the place of the recovery's distillation, whose settings are then refused; None leaves it in place.

        Asked for once before each training, with the model, `data.teacher` and the training's numbers. Its own
        parameters are trained along and never part of the model.
        """


# --- what came of it -----------------------------------------------------------------


@runtime_checkable
class Achieves(Protocol):
    """Reports what was achieved of what was requested."""

    def achieved(self, model: OpenModel, structure: Structure) -> Mapping[str, Any]:
        """Figures counted on the model, by name. `structure` is that of its plan."""


@runtime_checkable
class Checks(Protocol):
    """Has targets that a model can miss."""

    def check(self, model: OpenModel, structure: Structure) -> Sequence[str]:
        """In words, each target that the model misses beyond the method's tolerance."""


@runtime_checkable
class Retunes(Protocol):
    """Can do again in a finished model what no weight follows from."""

    def retune(self, model: OpenModel, was: Structure, now: Structure) -> None:
        """Sets what an edited structure says. Raises `Refused` where anything else was edited."""


@runtime_checkable
class Tunes(Retunes, Protocol):
    """Lets a user change its `tunable` knobs in a finished model (`recipe.retune`)."""

    def tuned(self, structure: Structure, knobs: Mapping[str, Any]) -> tuple[Retunes, Structure]:
        """The method with these knobs, and the structure that follows."""


@runtime_checkable
class Tied(Protocol):
    """Knows whether its plan holds for the model with other constructor arguments (`recipe.rebuilt`).

    A plan whose method does not say so is taken to be tied to the grid of tokens and to the classes.
    """

    def tied_to(self, structure: Structure) -> Mapping[str, str]:
        """What must stay, and why in words: "grid" (of tokens), "classes", or "make", every constructor argument."""


# --- ways to train -------------------------------------------------------------------


class TrainingMethod(Protocol):
    """A way to train (kind "train", `train(..., methods=[...])`): knobs in a frozen dataclass, one of three at least.

    `BringsObjective`: what the training minimises; `data.teacher` is the one that the user names (`--teacher`), else
    None. `Schedules`: callbacks of `fit`. `shape`: parts that stay in the model, as of any `Method`, put in before the
    training; a class that has it is applied by `compress`, too. A class without it also goes with a recovery
    (`Recovery(methods=...)`), where `data.teacher` is that of the recovery.
    """

    slug: ClassVar[str]
