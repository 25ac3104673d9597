"""What a method is: knobs in a frozen dataclass, a life of prepare / learn / shape / fold / finish, and declarations.

    @method("evit")
    @dataclass(frozen=True)
    class EViT:
        keep_rate: float = 0.7
        requires: ClassVar[frozenset[str]] = frozenset({"class_token", "float"})
        destroys: ClassVar[frozenset[str]] = frozenset({"full_grid"})
        def learn(self, model, data): ...   # -> structure: JSON, shapes and what a person edits
        def shape(self, model, structure): ...

Steps other than `shape` are optional; a method has the ones that its paper needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from leanvit.anatomy import OpenModel

Structure = dict[str, Any]


class Method(Protocol):
    """The declarations that every method carries (as class variables) and the one step that none can miss.

    Optional steps: `prepare(model)`, `learn(model, data) -> Structure`, `fold(model, structure, before)`,
    `finish(model, structure)`.

    `before` is the model's state dict as it was before `shape` (after `learn`): what a method that cuts or merges
    weights takes them from.

    A method with `finish` leaves temporary parts in the model (gates, experts, adapters) that train on in the recovery;
    `prepare` puts them in, with the output unchanged bit for bit, and `finish` moves their values into what stays and
    takes them out. Until then its plan is unfinished: a load runs `prepare` again before `shape`, so `prepare` follows
    from the model's structure and the knobs alone.

    `structure_model`, a class variable, is a pydantic model of its structure (`recipe.structure`): a plan with other
    keys or kinds of values is refused before anything is built.

    Also optional: `check_fits(model, data)`, called before any work, of this method or of another: raises `Refused` or
    `BadInput` where `learn` would before its first step (methods that learn nothing from data are applied to a copy
    instead); `callbacks(model) -> list` (for the recovery that follows), `achieved(model) -> dict` (asked against
    achieved), `check(model, structure) -> list[str]` (in words, each target that the model to be saved misses beyond
    the method's tolerance), `places(model) -> Iterable[int]` (the blocks whose `slot` it fills, from its knobs alone:
    then two methods that clash are refused before any work), and the class method `at_macs(model, share, knobs) ->
    Method` with the class variable `dials`: the method whose dials, knobs that set its cost, are chosen so that this
    share of the model's MACs is left (see `recipe.nearest_setting`). `retune(model, was, now)` sets what an edited
    structure says on a model that was made already, where no weight follows from it (`Refused` for any other edit);
    with `tuned(structure, knobs) -> (Method, Structure)` and the class variable `tunable`, those knobs, a user changes
    them in a finished model (`recipe.retune`).

    A method that trains says its course before it begins: `trainings(dataset) -> list[Training]` (`recipe.course`).
    A knob whose default follows from the data is None until then: the class variable `open_knobs` names it, and
    `chosen_for(dataset) -> Method` sets it. `compress` asks for both; the plan records what was chosen.

    A method that learns by a loss of its own brings the recovery's: `objective(model, data, config) -> Objective |
    None` (`leanvit.training`), asked for once before each recovery that follows it, with the lean model, `data.teacher`
    and the recovery's `FitConfig`; it takes the place of the recovery's distillation (alpha, temperature, distillation,
    which are then refused), and None leaves that in place. Its own parameters are trained along and never part of the
    model. Two methods that both bring one are refused before any work; `check_teacher(model, teacher)` may refuse then,
    too.
    """

    slug: ClassVar[str]
    requires: ClassVar[frozenset[str]]  # traits that the model must have (anatomy: OpenModel.traits)
    destroys: ClassVar[frozenset[str]]  # traits that it no longer has afterwards
    slot: ClassVar[str]  # block slot that the method fills ("" for none): one method a slot and block
    blends: ClassVar[
        bool
    ]  # whether its steps mix all tokens (`Step.blends`): others take tokens before its first place
    export: ClassVar[str]  # "whole", "segments" or "none"
    needs_data: ClassVar[bool]
    trains: ClassVar[bool]  # whether `learn` trains, with resumable state in `data.out`
    trainable_after: ClassVar[bool]  # whether a recovery by training may follow

    def shape(self, model: OpenModel, structure: Structure) -> None: ...


class TrainingMethod(Protocol):
    """What a way to train offers (kind "train"): knobs in a frozen dataclass, and one of these steps at least.

    `objective(model, data, config) -> Objective | None`: what the training minimises (`leanvit.training`), asked for
    once, before the first step; its own parameters are trained along and never part of the model. `callbacks(model) ->
    list`: of `fit`. `shape(model, structure)`: parts that stay in the model, as of any `Method`; a class that has it is
    applied by `compress`, too.
    """

    slug: ClassVar[str]
