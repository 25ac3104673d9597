"""What `MODEL` means everywhere: a timm name (built here), a run folder or a reference of the package (loaded)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leanvit.anatomy import OpenModel
from leanvit.data import AnyDataset, Preprocess, Stream, adapted_kwargs, keyed, open_dataset
from leanvit.data.label_kinds import SEVERAL
from leanvit.data.splits import COUNTED_TOGETHER
from leanvit.errors import BadInput, LeanvitError
from leanvit.knobs import Count, Index, check
from leanvit.models.registry import require_model
from leanvit.recipe import Root, create, load_run, rebuilt
from leanvit.recipe.catalogue import Reference, reference, reference_name
from leanvit.recipe.training_steps import counted
from leanvit.runs.commands import Command, commands_of
from leanvit.runs.logs import trained_on_labels
from leanvit.tasks import MultiLabel, Task
from leanvit.verbs.sources import Sourced, has_source, sourced
from leanvit.verbs.weights import Held, as_in_file, load_weights, read_weights

Log = Callable[[str], None]
_ACCEPTED = (
    "a timm name, the path of a run folder, or a reference (leanvit references); also hf-hub:OWNER/NAME, "
    "local-dir:FOLDER"
)
_LISTED = 20  # images that are named one by one


def silent(line: str) -> None:
    """Say nothing: the default of every verb, for use as a library."""


@dataclass(frozen=True)
class Loaded:
    """A model with what belongs to it."""

    model: OpenModel  # in eval mode
    preprocess: Preprocess
    classes: tuple[str, ...]
    name: str  # of a row: "dense", "evit + int8", the timm name, or `leanvit/NAME`
    folder: Path | None = None  # the run that it came from
    reference: str = ""  # its name, where the run is one of the package
    commands: tuple[Command, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """What to call files after: the run folder's name, or the timm name."""
        return self.folder.name if self.folder else self.name

    @property
    def home(self) -> Path | None:
        """The run folder, if results may be kept in it: the package is not written to."""
        return None if self.reference else self.folder

    @property
    def task(self) -> Task | None:
        """What the outputs mean, as the run says; None: one class an image."""
        found: Task | None = self.model.task
        return found


def load_model(
    spec: str | Path,
    *,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    adapt_to: AnyDataset | None = None,
    preprocess_settings: Mapping[str, Any] | None = None,
    rebuilds: bool = False,
    seed: int = 0,
    log: Log = silent,
) -> Loaded:
    """A timm name, built, or a run folder, loaded.

    Args:
        spec: timm name, path of a run folder, or `leanvit/NAME`: a reference that comes with the package;
            `hf-hub:OWNER/NAME` (or `timm/NAME`) and `local-dir:FOLDER` come with weights, settings and class names.
        model_args: constructor arguments of a timm name; with `rebuilds` also of a run, whose plans and weights follow
            (`recipe.rebuilt`).
        pretrained: timm's pretrained weights.
        weights: file with a timm name's weights, of any training loop (`load_weights`); leanvit's own architectures
            take their official checkpoints too. With `adapt_to` classes, image size and channels may be others.
        seed: of a timm name's fresh weights.
        adapt_to: change the constructor arguments of a timm name so that it fits this data; said aloud.
        preprocess_settings: own `mean`, `std`, `crop_pct` and `interpolation` of a timm name; a run has its own.

    Raises:
        BadInput: no such name or run (the nearest names are given), or arguments that only a timm name takes.
        CheckpointError: a damaged run or weights file.
    """
    name = reference_name(spec)
    if name is not None or _is_folder(spec):
        given = {"model arguments": {} if rebuilds else model_args, "pretrained": pretrained, "weights": weights}
        given["preprocessing (mean, std, crop_pct, interpolation)"] = preprocess_settings
        extra = [what for what, value in given.items() if value]
        if extra:
            kind = "a run folder" if name is None else "a reference"
            other = " (train takes model arguments of a run, too)" if model_args and not rebuilds else ""
            raise BadInput(f"{spec} is {kind}: {', '.join(extra)} can only be given with a timm name{other}")
        run = _of_run(Path(spec)) if name is None else _of_reference(reference(name))
        return _with_arguments(run, model_args, seed, log) if model_args else run
    kwargs = dict(model_args or {})
    if pretrained and weights:
        raise BadInput("give pretrained or weights, not both")
    source = sourced(str(spec)) if has_source(spec) else None
    architecture = source.name if source else str(spec)
    require_model(architecture, kind="model")
    held = read_weights(Path(weights)) if weights else None
    if source is not None:
        kwargs = {**(source.kwargs if adapt_to is None else source.adaptable()), **kwargs}
        held = held or source.weights()
    if adapt_to is not None:
        kwargs = _adapted(architecture, kwargs, pretrained or source is not None, adapt_to, log, held)
    with keyed.global_rng(seed, "weights"):
        loaded = _of_timm(
            architecture, kwargs, pretrained and source is None, held, log, adapt=adapt_to is not None, source=source
        )
    loaded = _with_settings(loaded, preprocess_settings, log)
    if adapt_to is not None and len(adapt_to.classes) == loaded.model.num_classes:
        loaded = replace(loaded, classes=tuple(adapt_to.classes))
    loaded.model.classes = loaded.classes
    return loaded


def _with_settings(loaded: Loaded, settings: Mapping[str, Any] | None, log: Log) -> Loaded:
    """With own preprocessing. What a model with four channels or more takes without is said: timm knows three."""
    preprocess = loaded.preprocess.with_settings(settings)
    missing = [name for name in ("mean", "std") if (settings or {}).get(name) is None]
    if missing and preprocess.input_size[0] > 3:
        said = ", ".join(f"{name} {getattr(preprocess, name)[0]:.3g}" for name in missing)
        options = " and ".join(f"--{name}" for name in missing)
        log(f"{loaded.name}: {said} for each of {preprocess.input_size[0]} channels, an average; {options} for others")
    return replace(loaded, preprocess=preprocess)


def row_name(model: OpenModel) -> str:
    """`dense`, or the methods in order: `evit + int8`, of parts `tome (backbone) + int8 (head)`."""
    plans = model.history.plans if model.history else ()
    return " + ".join(plan.label for plan in plans) or "dense"


def as_runner(model: OpenModel, preprocess: Preprocess) -> OpenModel:
    """The model with what `measure` asks of a runner: its preprocessing."""
    runner: Any = model
    runner.preprocess = preprocess
    return model


def open_split(
    spec: str,
    split: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    log: Log = silent,
    beside: AnyDataset | None = None,
) -> AnyDataset:
    """`open_dataset`, with what the data set has to say said aloud.

    Of a spec with `on_bad=skip` every image is decoded once, and those that cannot be read are left out from the start
    (a stream leaves them out as they come).

    beside: the other split, opened before: what both have to say alike is not said twice.
    """
    if not isinstance(spec, str | Path) or not str(spec).strip():
        raise BadInput(f"data is {spec!r}; accepted: digits, a folder, a file, or hf:NAME (leanvit train --help)")
    check("--limit", limit, Count | None)
    check("--seed", seed, Index)
    try:
        dataset = open_dataset(spec, split, seed=seed, limit=limit)
    except OSError as error:
        raise BadInput(f"data {spec!r} cannot be read: {error.strerror or error}{_at(error)}") from error
    except UnicodeEncodeError as error:
        raise BadInput(f"data {spec!r} holds a name that is not UTF-8 text: {error.object!r}") from error
    if dataset.on_bad == "skip":
        dataset = dataset.readable()
    log(f"data: {_in_words(dataset)}")
    repeated = beside is not None and beside.note == dataset.note
    if dataset.note and not repeated:
        log(f"data: {dataset.note}")
    if dataset.left_out and not (repeated and COUNTED_TOGETHER in dataset.note):
        reasons = ", ".join(f"{count} {reason}" for reason, count in dataset.left_out.items())
        log(f"data: left out of {dataset.split}: {reasons}")
    return dataset


def _in_words(dataset: AnyDataset) -> str:
    """`photos/, train: 273 images, typically 282 wide and 256 high, colour, 5 classes`."""
    height, width = dataset.image_size
    size = f"{width}x{height}" if width == height else f"{width} wide and {height} high"
    kind = {1: "grey", 3: "colour"}.get(dataset.channels, f"{dataset.channels} channels")
    shards = ""
    if isinstance(dataset, Stream):
        shards = f" {'drawn from' if dataset.resampled else 'in'} {len(dataset.parts)} shards"
    classes = f"{len(dataset.classes)} {'labels' if dataset.label_kind == SEVERAL else 'classes'}"
    classes = classes if dataset.labelled else "without labels"
    images = f"{len(dataset)} images{shards}"
    return f"{dataset.spec}, {dataset.split}: {images}, typically {size}, {kind}, {classes}"


def log_bad(log: Log, *datasets: AnyDataset | None) -> None:
    """At the end of a verb: how many images were left out of each split, and which."""
    for dataset in datasets:
        if dataset is None or not dataset.bad:
            continue
        log(f"{dataset.split}: {counted(len(dataset.bad), 'image')} could not be read, left out:")
        for bad in dataset.bad[:_LISTED]:
            log(f"  {bad.reason}")
        if len(dataset.bad) > _LISTED:
            shown = shlex.join(["leanvit", "data", dataset.spec, "--all", "--json"])
            log(f"  … and {len(dataset.bad) - _LISTED} more; all of them: {shown}")


def _is_folder(spec: str | Path) -> bool:
    """Whether a MODEL is a folder. Raises `BadInput` for what is neither that nor a name."""
    if not isinstance(spec, str | Path) or not str(spec).strip():
        raise BadInput(f"MODEL is {spec!r}; accepted: {_ACCEPTED}")
    path = Path(spec)
    try:
        if path.is_dir():
            return True
        if path.is_file():
            hint = _FILE_HINTS.get(path.suffix, "")
            raise BadInput(f"MODEL {spec} is a file; accepted: {_ACCEPTED}{hint}")
    except OSError as error:
        raise BadInput(f"MODEL {spec!r} cannot be read: {error.strerror or error}") from None
    if path.is_symlink():
        raise BadInput(f"MODEL {spec} is a link that leads nowhere; accepted: {_ACCEPTED}")
    if isinstance(spec, str) and has_source(spec):
        return False
    if isinstance(spec, Path) or "/" in spec or spec.startswith("."):
        raise BadInput(f"there is no run folder at {spec}; accepted: {_ACCEPTED}")
    return False


_FILE_HINTS = {
    ".toml": " (a recipe is given by --recipe)",
    ".safetensors": " (weights are given by --weights, beside a timm name)",
    ".json": " (give the folder that it is in)",
}


def is_built(spec: str | Path) -> bool:
    """Whether a MODEL is a timm name, to which constructor arguments and weights belong. Raises `BadInput`."""
    return reference_name(spec) is None and not _is_folder(spec)


def is_fresh(spec: str | Path, built: Mapping[str, Any]) -> bool:
    """Whether a MODEL gets random weights: a timm name without any. built: what `load_model` is given for it."""
    if not is_built(spec) or (isinstance(spec, str) and has_source(spec)):
        return False
    return not (built["pretrained"] or built["weights"])


def _at(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _of_run(path: Path) -> Loaded:
    try:
        run = load_run(path)
    except OSError as error:
        raise BadInput(f"MODEL {path} cannot be read: {error.strerror or error}{_at(error)}") from error
    loaded = Loaded(
        model=run.model,
        preprocess=run.preprocess or Preprocess.of(run.model),
        classes=tuple(run.classes),
        name=row_name(run.model),
        folder=path,
        commands=commands_of(path),
        info=run.info,
    )
    if run.model.task is None and trained_on_labels(path):  # older runs say it in their log only
        run.model.task = MultiLabel()
    return loaded


def _of_reference(one: Reference) -> Loaded:
    """What is made from it keeps its name, in the info of the run."""
    loaded = _of_run(one.folder)
    return replace(loaded, name=one.spec, reference=one.name, info={**loaded.info, "reference": one.spec})


def _with_arguments(loaded: Loaded, model_args: Mapping[str, Any], seed: int, log: Log) -> Loaded:
    """A run's model with other constructor arguments; each change is said."""
    model = rebuilt(loaded.model, model_args, seed=seed, log=log)
    preprocess = model.preprocess or Preprocess.of(model)
    return replace(loaded, model=model, preprocess=preprocess, classes=tuple(model.classes))


def _of_timm(
    name: str,
    kwargs: dict[str, Any],
    pretrained: bool,
    weights: Held | None,
    log: Log,
    *,
    adapt: bool,
    source: Sourced | None = None,
) -> Loaded:
    try:
        model = create(Root(name, _json(kwargs)), pretrained=pretrained)
    except OSError as error:
        raise LeanvitError(f"--pretrained: the weights of {name} cannot be had: {_first_line(error)}") from error
    if source is not None:
        source.describe(model, *(m for m in model._source if m is not None))
        log(f"{source.spec}: {name} with {_listed(kwargs)}" if kwargs else f"{source.spec}: {name}")
    if weights is not None:
        load_weights(model, weights, name=name, adapt=adapt, log=log)
    if source is None:
        return Loaded(model=model.eval(), preprocess=Preprocess.of(model), classes=(), name=name)
    fits = len(source.labels) == model.num_classes
    if source.labels and not fits and not adapt:
        log(f"{source.spec}: its {len(source.labels)} names of classes are left: the model has {model.num_classes}")
    classes = source.labels if fits else ()
    return Loaded(model=model.eval(), preprocess=Preprocess.of(model), classes=classes, name=source.label)


def _adapted(
    name: str, kwargs: dict[str, Any], pretrained: bool, dataset: AnyDataset, log: Log, weights: Held | None
) -> dict[str, Any]:
    """Constructor arguments that fit the data; image and patch size are those of the weights, where they say."""
    fitted = adapted_kwargs(name, {**kwargs, **({"pretrained": True} if pretrained else {})}, dataset)
    fitted.pop("pretrained", None)
    if weights is not None:
        planned = create(Root(name, _json(fitted)), device="meta")
        fitted |= as_in_file(weights, planned, name, kwargs)
    changed = ", ".join(f"{key}={value}" for key, value in fitted.items() if kwargs.get(key) != value)
    log(f"adapted {name} to {dataset.spec}: {changed or 'nothing to change'}")
    return fitted


def _listed(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in kwargs.items())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _json(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kwargs.items()}
