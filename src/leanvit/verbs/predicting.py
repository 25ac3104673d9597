"""`predict`: what a model answers on images without labels, in any runtime, image by image or as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanvit import tasks
from leanvit.arguments import require_classifier
from leanvit.data import AnyDataset, Dataset, Preprocess, loader
from leanvit.data.declared import unlike_range
from leanvit.data.depth import PixelRange
from leanvit.data.unlabelled import Found, find_images
from leanvit.deploy import Runner, load_artefact, read_artefact
from leanvit.deploy.artefact import JSON_NAME as ARTEFACT
from leanvit.errors import BadInput, printable, unknown
from leanvit.files import write_atomic
from leanvit.knobs import Count, Index, check, check_each
from leanvit.measure.runners import evaluating, logits_of, recording
from leanvit.recipe.training_steps import counted
from leanvit.runs.folders import new_file
from leanvit.runs.layout import artefact_folder
from leanvit.tasks import Task, read_task
from leanvit.verbs.answers import ENDINGS, Answer, Predicted, Tally, write_answers
from leanvit.verbs.masks import check_masks_folder, masks_beside, masks_folder
from leanvit.verbs.models import Loaded, Log, is_built, is_fresh, load_model, silent
from leanvit.verbs.runtimes import RUNTIMES, Opener, backend_of, require
from leanvit.verbs.task_answers import task_answers

BATCH = 32
THRESHOLD = 0.5  # of a label, in a multi-label model
_NAMED = 10  # classes of masks, in the log
Progress = Callable[[int, int], None]  # (images done, images in all)


def predict(
    model: Any,
    images: Any,
    *,
    top: int | None = None,
    batch: int | None = None,
    runtime: str | None = None,
    classes: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    task: Task | str | None = None,
    split: str | None = None,
    workers: int = 0,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    log: Log = silent,
    progress: Progress | None = None,
) -> list[Answer]:
    """What a model answers on images, without labels: an `Answer` an image, in the sorted order of the images.

    Images are decoded and prepared as in `measure`. Those that cannot be read come with their error.

    Args:
        model: a run folder, an artefact's folder, a reference or a timm name; or an opened model, a timm model or a
            loaded artefact.
        images: paths, patterns, lists of paths, PIL images, or a data spec or data set, whose labels are ignored.
        top: classes an image; default 1, of a multi-label model those above 0.5. Only of classes of images.
        batch: images in one call (default 32). The answers do not depend on it.
        runtime: of `leanvit.verbs.runtimes.RUNTIMES`, default torch. The run's own artefact is used where there is
            one, else one is exported for this call. An artefact runs in its own.
        classes: names in the order of the outputs; default: those that the model or its task brings, else numbers.
        preprocess: of a model in memory; default: its own, or timm's configuration.
        task: what the outputs mean, a task of `leanvit.tasks` or as `--task` takes it, like
            "segmentation:ignore=11"; default: that of the model, else one class an image.
        split: "train" or "val" of a data spec.
        workers: processes that decode; 0: this one.
        model_args, pretrained, weights: for a timm name.

    Raises:
        BadInput: an argument that is not accepted, no such model or image; before any work. Outputs that the task
            cannot read, with their shapes; at the first batch.
        CheckpointError: a damaged run or artefact.
        MissingExtra, Refused: the runtime is not installed, or does not take the model; the model's outputs are not
            classes of images, and no task says what they are.
    """
    given = (batch, runtime, classes, preprocess, task)
    built = {"model_args": model_args, "pretrained": pretrained, "weights": weights}
    with _opened(model, images, given, top=top, split=split, workers=workers, built=built, log=log) as answering:
        return list(answering.answers(progress))


def predict_file(
    model: str | Path,
    images: Any,
    *,
    out: str | Path | None = None,
    top: int | None = None,
    batch: int | None = None,
    runtime: str | None = None,
    task: Task | str | None = None,
    split: str | None = None,
    workers: int = 0,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    overwrite: bool = False,
    log: Log = silent,
    progress: Progress | None = None,
) -> Predicted:
    """`predict`, written as it goes to a `.csv` or `.jsonl` file; the file is there when it is complete.

    Columns: image, class, probability, class_2, probability_2, ... and error; `exit` where images leave early. Of a
    multi-label model without `top`: image, class (those above 0.5, with `|` between), `p_NAME` for each class, error.
    Of any other task: image, the task's columns, error; an answer that is a map becomes a picture in the folder
    `FILE-masks` beside the file, whose values are the classes, at the size that the model saw; column `mask` names it.
    Answers that come back hold no maps: `predict` gives them.

    Raises what `predict` raises; BadInput for an ending that is neither, or a file that exists without `overwrite`.
    """
    file = None
    if out is not None:
        file = new_file(out, None, overwrite=overwrite)
        if file.suffix.lower() not in ENDINGS:
            raise BadInput(f"--out {file}: its ending chooses the format; accepted: {' or '.join(ENDINGS)}")
    given = (batch, runtime, None, None, task)
    built = {"model_args": model_args, "pretrained": pretrained, "weights": weights}
    with _opened(model, images, given, top=top, split=split, workers=workers, built=built, log=log) as answering:
        if file is None:
            answers = tuple(replace(one, answer=None) for one in answering.answers(progress))
            bad = tuple(one for one in answers if one.error)
            return Predicted(None, len(answers), bad, len(bad), answers)
        tally = _write(answering, file, top=top or 1, overwrite=overwrite, progress=progress, log=log)
    return Predicted(file, tally.images, tuple(tally.bad), tally.failed, tuple(tally.first))


def _write(
    answering: _Answering, file: Path, *, top: int, overwrite: bool, progress: Progress | None, log: Log
) -> Tally:
    """Fill the file as answers come, and the folder of masks beside it where they are maps."""
    by, tally = answering.by, Tally()
    if not by.task.label_kind:
        check_masks_folder(masks_folder(file), overwrite=overwrite)
    file.parent.mkdir(parents=True, exist_ok=True)
    with masks_beside(file, by.task, by.preprocess.input_size[1:]) as masks:

        def fill(part: Path) -> None:
            noted = (tally.note(masks.kept(answer)) for answer in answering.answers(progress))
            write_answers(part, noted, ending=file.suffix.lower(), top=top, every=answering.every)
            masks.place()

        write_atomic(file, fill)
    if masks.count:
        names = by.classes or by.task.map_classes
        named = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_NAMED])) or "by number"
        more = ", …" if len(names) > _NAMED else ""
        log(f"{masks.folder}: {counted(masks.count, 'mask')}, whose values are the classes: {named}{more}")
    return tally


# --- the model ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answerer:
    """A runner with what its outputs mean."""

    runner: Any
    preprocess: Preprocess
    classes: tuple[str, ...]  # empty: not known
    task: Task
    batch: int
    outputs: int | None = None  # how many there are; None: seen when it runs


@contextmanager
def _opened(
    model: Any,
    images: Any,
    given: tuple[Any, ...],
    *,
    top: int | None,
    split: str | None,
    workers: int,
    built: Mapping[str, Any],
    log: Log,
) -> Iterator[_Answering]:
    batch, runtime, classes, preprocess, told = given
    told = read_task(told)
    check_each(Count | None, batch=batch, top=top)
    check("workers", workers, Index)
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise BadInput(f"preprocess is a {type(preprocess).__name__}; accepted: leanvit.Preprocess")
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes or ()):
        raise BadInput(f"classes is {classes!r}; accepted: a list of names, in the order of the outputs")
    if runtime is not None and runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    with ExitStack() as stack:
        if not isinstance(model, str | Path):
            if any(built.values()):
                raise BadInput(f"{', '.join(k for k, v in built.items() if v)}: only a timm name takes these")
            one = _in_memory(model, preprocess, runtime, batch, told)
        elif preprocess is not None:
            raise BadInput("preprocess is given for a model that brings its own; accepted: for a model in memory")
        elif _is_artefact(model):
            one = _of_artefact(Path(model), runtime, batch, told)
        else:
            one = _of_spec(model, runtime or "torch", batch, built, stack, log, told)
        if not one.task.label_kind and top is not None:
            raise BadInput(f"top is {top}, and the task {one.task.name} ranks no classes of an image; leave it out")
        if classes is not None or one.task.label_kind:
            one = replace(one, classes=tuple(one.classes if classes is None else classes))
            _check_outputs(one.outputs, one.classes, top)
        taken = one.preprocess
        found = find_images(images, channels=taken.input_size[0], pixel_range=taken.pixel_range, split=split)
        _log_images(found, taken.pixel_range, log)
        yield _Answering(one, found, top=top, workers=workers)


def _check_outputs(outputs: int | None, classes: tuple[str, ...], top: int | None) -> None:
    """Raise `BadInput` unless names and `top` go with a number of outputs."""
    if outputs is not None and classes and len(classes) != outputs:
        raise BadInput(f"classes has {len(classes)} names; the model has {outputs} outputs")
    if outputs is not None and top is not None and top > outputs:
        raise BadInput(f"top is {top}; accepted: 1 to {outputs}, the classes of the model")


def _is_artefact(model: str | Path) -> bool:
    return (Path(model) / ARTEFACT).is_file()


def _of_artefact(path: Path, runtime: str | None, batch: int | None, told: Task | None) -> _Answerer:
    own = read_artefact(path)
    mine = [name for name in RUNTIMES if backend_of(name) == own.runtime]
    if runtime is not None and runtime not in mine:
        raise BadInput(f"runtime is {runtime!r}, but {path} is an artefact for {own.runtime}; leave the runtime out")
    runner = load_artefact(own.path)
    task = _task_of(runner, told)
    return _answerer(runner, runner.preprocess, runner.labels, task, batch or own.batch or BATCH, own.num_classes)


def _of_spec(
    model: str | Path,
    runtime: str,
    batch: int | None,
    built: Mapping[str, Any],
    stack: ExitStack,
    log: Log,
    told: Task | None,
) -> _Answerer:
    require(runtime)
    fresh = is_built(model)
    loaded = load_model(model, log=log, **built)
    task = _task_of(loaded.model, told)
    if is_fresh(model, built):
        log(f"{model} has fresh weights, so its answers are chance: give --pretrained, --weights, or a run")
    size = batch or _kept_batch(loaded, runtime) or BATCH
    # an artefact of a fixed batch takes any number of images, in pieces: it is opened at its own batch
    runner, _ = stack.enter_context(Opener(_kept_batch(loaded, runtime) or size, log)).open(loaded, runtime)
    classes = loaded.classes or (_timm_labels(str(model), loaded) if fresh else ())
    return _answerer(runner, loaded.preprocess, classes, task, size, loaded.model.num_classes)


def _task_of(model: Any, told: Task | None) -> Task:
    """The task that is told, else the model's own. Raises `BadInput` or `Refused` where the model does not fit it."""
    if told is None and tasks.stated(model) is None:
        require_classifier(model, "predict")
    task = tasks.of(model, None, told)
    task.check("predict", model=model)
    return task


def _answerer(
    runner: Any, preprocess: Preprocess, classes: Sequence[str], task: Task, batch: int, outputs: int | None
) -> _Answerer:
    return _Answerer(runner, preprocess, tuple(classes) or tuple(task.classes), task, batch, outputs)


def _kept_batch(loaded: Loaded, runtime: str) -> int | None:
    """The fixed batch of the artefact that the run keeps for a runtime."""
    backend = backend_of(runtime)
    if backend is None or loaded.folder is None or not _is_artefact(artefact_folder(loaded.folder, backend)):
        return None
    return read_artefact(artefact_folder(loaded.folder, backend)).batch


def _timm_labels(name: str, loaded: Loaded) -> tuple[str, ...]:
    """The names that timm has for the classes that its weights were trained on."""
    from timm.data import ImageNetInfo, infer_imagenet_subset
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None or config.num_classes != loaded.model.num_classes:
        return ()
    if config.label_names:
        return tuple(map(str, config.label_names))
    subset = infer_imagenet_subset(config.to_dict())
    if subset is None:
        return ()
    known = ImageNetInfo(subset)
    return tuple(known.index_to_description(index) for index in range(known.num_classes()))


def _in_memory(
    model: Any, preprocess: Preprocess | None, runtime: str | None, batch: int | None, told: Task | None
) -> _Answerer:
    """A model or a loaded artefact, with what it declares."""
    if not callable(model):
        raise BadInput(
            f"model is a {type(model).__name__}; accepted: a run folder, an artefact, a reference or a timm name as "
            "text, or an opened model, a timm model or a loaded artefact"
        )
    own = "torch" if isinstance(model, nn.Module) else getattr(model, "runtime", None)
    if runtime is not None and runtime != own:
        raise BadInput(f"runtime is {runtime!r}, but the model runs in {own}: export it, or give the path of a run")
    stated = getattr(model, "preprocess", None)
    chosen = preprocess or (stated if isinstance(stated, Preprocess) else None)
    if chosen is None and not isinstance(model, nn.Module):
        raise BadInput("preprocess is needed: the model does not state how its images are prepared")
    names = getattr(model, "classes", None) or getattr(model, "labels", None) or ()
    names = tuple(names) if isinstance(names, list | tuple) and all(isinstance(n, str) for n in names) else ()
    task = _task_of(model, told)
    fixed = getattr(model, "batch", None)
    size = batch or (fixed if isinstance(fixed, int) else BATCH)
    outputs = model.artefact.num_classes if isinstance(model, Runner) else getattr(model, "num_classes", None)
    return _answerer(model, chosen or Preprocess.of(model), names, task, size, outputs)


# --- answering ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answering:
    """A model and its images; nothing has run yet."""

    by: _Answerer
    found: Found
    top: int | None
    workers: int

    @property
    def every(self) -> bool:
        """Whether answers hold the classes above 0.5, not a number of classes."""
        return self.by.task.label_kind == "several" and self.top is None

    def answers(self, progress: Progress | None = None) -> Iterator[Answer]:
        """In the order of the images, a batch at a time."""
        done, total = 0, len(self.found)
        for part in self.found.parts:
            for answer in self._of(part):
                done += 1
                if progress is not None and (done % self.by.batch == 0 or done == total):
                    progress(done, total)
                yield answer

    def _of(self, dataset: AnyDataset) -> Iterator[Answer]:
        keys = iter(dataset.keys) if isinstance(dataset, Dataset) else None
        reported = 0
        batches = loader(dataset, self.by.preprocess, batch_size=self.by.batch, workers=self.workers, on_bad="skip")
        for batch in batches:
            good = self._answered(batch.images, batch.keys)
            if keys is None:  # of a stream, bad images come behind those of their batch
                yield from good.values()
                yield from (_unread(one) for one in dataset.bad[reported:])
                reported = len(dataset.bad)
                continue
            bad = {one.key: one for one in dataset.bad[reported:]}
            reported = len(dataset.bad)
            while good:
                key = next(keys)
                yield good.pop(key) if key in good else _unread(bad.pop(key))
            yield from (_unread(bad[key]) for key in islice(keys, len(bad)))
        yield from (_unread(one) for one in dataset.bad[reported:])

    def _answered(self, images: Tensor, keys: list[str]) -> dict[str, Answer]:
        runner = self.by.runner
        with torch.inference_mode(), evaluating(runner), recording(runner) as work:
            found = list(self._ran(images, keys))
        if work is not None and work.at:
            left = torch.cat(work.at)[: len(keys)].tolist()
            found = [replace(one, exit=work.layers[number]) for one, number in zip(found, left, strict=True)]
        return dict(zip(keys, found, strict=True))

    def _ran(self, images: Tensor, keys: list[str]) -> Iterator[Answer]:
        by = self.by
        if not by.task.label_kind:
            yield from task_answers(by.task, by.runner, images, keys, by.classes)
            return
        logits = logits_of(by.runner, images, keys)
        _check_outputs(logits.shape[1], by.classes, self.top)
        chances = logits.sigmoid() if by.task.label_kind == "several" else logits.softmax(dim=1)
        names = by.classes or tuple(map(str, range(logits.shape[1])))
        yield from (self._answer(key, row, names) for key, row in zip(keys, chances, strict=True))

    def _answer(self, key: str, row: Tensor, names: tuple[str, ...]) -> Answer:
        count = int((row > THRESHOLD).sum()) if self.every else self.top or 1
        # of equal values the first, as in arg-max
        order = row.argsort(descending=True, stable=True)[:count].tolist()
        found = tuple(names[i] for i in order), tuple(float(row[i]) for i in order)
        every = dict(zip(names, row.tolist(), strict=True)) if self.by.task.label_kind == "several" else None
        return Answer(key, *found, every=every)


def _unread(bad: Any) -> Answer:
    return Answer(bad.key, error=bad.reason)


def _log_images(found: Found, pixel_range: PixelRange | None, log: Log) -> None:
    notes = [part.note for part in found.parts if isinstance(part, Dataset) and part.note and part.split == "all"]
    notes += filter(None, (unlike_range(part) for part in found.parts if part.pixel_range == pixel_range))
    if found.left_out:
        endings = ", ".join(f"{count} {printable(ending)}" for ending, count in found.left_out.items())
        notes.append(f"left out, no images by their endings: {endings}")
    log(f"images: {len(found)}" + "".join(f"; {note}" for note in notes))
