"""Models side by side on the same images: what each gave and what it cost."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanvit import tasks
from leanvit.arguments import require_dataset, require_named_models
from leanvit.errors import BadInput, unknown
from leanvit.measure.comparison import Comparison
from leanvit.measure.counting import count
from leanvit.measure.energy import ROUNDS, Energy, find_meter, paired_energy
from leanvit.measure.judged import MOST_ANSWERS_BYTES, Judged, judge_all
from leanvit.measure.latency import Latency, Spread, paired_latency
from leanvit.measure.machine import environment
from leanvit.measure.memory import peak_memory
from leanvit.measure.meter import Meter, NoMeter, NotMeasurable
from leanvit.measure.predictions import Batch, Predictions, dataset_of, matched_outputs, predict_all
from leanvit.measure.pruned import kept_parameters, parameters
from leanvit.measure.rows import Row
from leanvit.measure.runners import (
    Runner,
    as_taken,
    device_of,
    evaluating,
    fixed_batch_of,
    precision_of,
    recording,
    run_in_torch,
    runtime_of,
)
from leanvit.tasks import Task, read_task
from leanvit.tasks.intervals import Interval


def compare(
    models: Mapping[str, Runner],
    data: Any,
    *,
    preprocess: Any = None,
    batch: int = 64,
    latency_batch: int | None = None,
    rounds: int = 15,
    min_seconds: float = 0.05,
    baseline: str | None = None,
    files: Mapping[str, str | os.PathLike[str]] | None = None,
    model_names: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
    meter: Meter | NoMeter | None = None,
    on_predictions: Callable[[dict[str, Predictions]], None] | None = None,
    on_judged: Callable[[dict[str, Judged]], None] | None = None,
    class_names: str = "by-name",
    task: Task | str | None = None,
) -> Comparison:
    """Measure every model on the same images, and its speed in rounds where the models take turns.

    Args:
        models: name -> module or other runner: images (B, C, H, W) float32 -> outputs of the task, as logits
            (B, classes).
        data: a loader (iterable of batches with `images`, `targets`, `keys`), or a data set of `leanvit.data`.
        preprocess: for a data set: how images become tensors; by default each runner's own (`runner.preprocess`, or
            timm's data config of a module). A loader has its own already.
        batch: images a batch, for a data set.
        latency_batch: images a call when timing, counting and measuring memory, taken from the data. By default the
            batch of a runner that has a fixed one, else 1. A runner that cannot take it gets no latency, and a note.
        rounds, min_seconds: see `paired_latency`.
        baseline: name that the others are compared with; the first by default. Speed-ups stay within one runtime:
            they are against the rows of the baseline's model there, and there is none where it has no row.
        files: name -> file or folder whose size is the row's `disk_bytes`.
        model_names: name -> the model that runs, where one model has several rows (in several runtimes); by default
            the name without " (RUNTIME)" at its end.
        progress: called with a line of text before each stage.
        meter: what counts energy; by default the counter of the models' device, where the machine offers one.
        class_names: how the classes of a data set, or of a loader's, are found among a model's outputs: "by-name"
            where the model has names (`model.classes`), or "by-position" (`data.match_classes`). A part of a model's
            classes is scored among themselves.
        on_predictions: called once with what each model answered, by name: for those who keep it. Of labels of images
            only.
        on_judged: called once with each model's rows and answers, by name, of any task.
        task: what the outputs are judged by, a task or its text; default: that of the models and the data (`tasks.of`).

    Raises BadInput before any work when names, baseline, batch sizes, files, devices, tasks or classes do not fit.
    """
    require_named_models(models)
    require_dataset(data, "data", "val", loaders=True)
    models = dict(models)
    _check_models(models)
    baseline = _checked_baseline(models, baseline)
    latency_batch = _checked_latency_batch(models, latency_batch)
    device = _checked_device(models)
    sizes = _disk_bytes(models, files or {})
    same = _checked_model_names(models, model_names or {})
    for argument, value, least in (("rounds", rounds, 3), ("batch", batch, 1)):
        if not isinstance(value, int) or value < least:
            raise BadInput(f"{argument} must be an integer of at least {least}, got {value!r}")
    tell = progress or (lambda line: None)
    task = common_task(models, data, task)
    if not task.label_kind:
        _check_task(task, models, dataset_of(data))
    sources = _sources(task, models, data, preprocess, batch, class_names)
    outputs = matched_outputs(models, data, class_names, log=progress) if task.label_kind else None

    tell(f"{'accuracy' if task.label_kind else task.metric.title} of {', '.join(models)}")
    with ExitStack() as stack:
        works = {name: stack.enter_context(recording(model)) for name, model in models.items()}
        judged, images = _judge(task, models, sources, outputs, baseline, on_predictions)
    if on_judged is not None:
        on_judged(judged)
    first = judged[baseline]
    x = _cycled(images, latency_batch).to(device)  # (latency_batch, C, H, W)
    tell(f"latency: {rounds} rounds at batch {latency_batch}")
    timed = {name: m for name, m in models.items() if fixed_batch_of(m) in (None, latency_batch)}
    times = paired_latency(timed, lambda _: x, batch=latency_batch, rounds=rounds, min_seconds=min_seconds)
    energy = _energy(timed, x, meter or find_meter(device), rounds, tell)
    tell("MACs and memory")
    notes = {name: _notes(m, latency_batch) + _left(works[name]) + _unkept(judged[name]) for name, m in models.items()}
    rows = (
        Row(
            name=name,
            model=same.get(name, ""),
            runtime=runtime_of(model),
            precision=precision_of(model),
            disk_bytes=sizes.get(name),
            scores=_scores(name, judged[name]),
            **(_torch_costs(model, x, fits=name in timed, notes=notes[name]) | _mean_macs(works[name])),
            **_against(judged[name], None if name == baseline else first),
            **_speed(times.get(name)),
            **_joules(energy, name),
        )
        for name, model in models.items()
    )
    return Comparison(
        baseline=baseline,
        images=len(first),
        input_size=tuple(x.shape[1:]),
        latency_batch=latency_batch,
        rounds=rounds,
        rows=tuple(rows),
        environment=environment(),
        task=first.task.name,
        metrics=first.task.metrics,
        changes=first.task.changes,
        idle_watts=energy.idle_watts if isinstance(energy, Energy) else None,
        classes=tuple(getattr(dataset_of(data), "classes", ())) if task.label_kind else tuple(task.classes),
    )


# --- the columns of a row -------------------------------------------------------------------------------------------


def _scores(name: str, own: Judged) -> tuple[Interval, ...]:
    found = tuple(own.interval(metric.name).shown() for metric in own.task.metrics)
    for metric, score in zip(own.task.metrics, found, strict=True):
        if not all(map(math.isfinite, (score.value, score.low, score.high))):
            raise BadInput(f"{name}: {metric.title} is {score.value} ({score.low} … {score.high}), which is no figure")
        if metric.unit == "%" and not 0 <= score.low <= score.high <= 100:
            raise BadInput(
                f"{name}: {metric.title} is {score.value} % ({score.low} … {score.high}); accepted: for a metric in % "
                "a fraction, 0 to 1"
            )
    return found


def _against(own: Judged, reference: Judged | None) -> dict[str, Any]:
    if reference is None:
        return {"change_points": None, "agreement_percent": None}
    same = reference.agreement(own)
    return {"change_points": reference.change(own), "agreement_percent": None if same is None else same.percent()}


def _speed(own: Latency | None) -> dict[str, Any]:
    """The speed-up follows from the samples: `Comparison` pairs rows within one runtime."""
    if own is None:
        return {"latency_ms": None, "images_per_s": None, "speedup_vs_baseline": None, "samples_s": ()}
    return {
        "latency_ms": Spread.of([1000 * s for s in own.samples]),
        "images_per_s": own.images_per_s,
        "speedup_vs_baseline": None,
        "samples_s": own.samples,
    }


def _energy(
    timed: Mapping[str, Runner], x: Tensor, meter: Meter | NoMeter, rounds: int, tell: Callable[[str], None]
) -> Energy | NoMeter:
    if isinstance(meter, NoMeter):
        return meter
    tell(f"energy: {meter.source}")
    try:
        return paired_energy(timed, x, meter=meter, rounds=min(rounds, ROUNDS))
    except NotMeasurable as error:
        return NoMeter(str(error))


def _joules(energy: Energy | NoMeter, name: str) -> dict[str, Any]:
    if isinstance(energy, NoMeter):
        return {"joules_per_image": None, "energy_source": f"not measurable here: {energy.reason}"}
    return {"joules_per_image": energy.joules_per_image.get(name), "energy_source": energy.source}


def _torch_costs(model: Runner, x: Tensor, *, fits: bool, notes: tuple[str, ...]) -> dict[str, Any]:
    """What can be seen of a module that torch runs; all None for another runner."""
    if not run_in_torch(model):
        unseen = ("params", "macs_per_image", "weights_bytes", "peak_memory_bytes")
        return {"notes": notes, **dict.fromkeys(unseen)}
    macs, kept_macs, gaps = _macs(model, x) if fits else (None, None, ())
    return {
        "params": parameters(model),
        "kept_params": kept_parameters(model),
        "macs_per_image": macs,
        "kept_macs_per_image": kept_macs,
        "weights_bytes": _weights_bytes(model),
        "peak_memory_bytes": _peak_bytes(model, x) if fits else None,
        "notes": notes + gaps,
    }


def _mean_macs(work: Any) -> dict[str, Any]:
    """Of a model whose work depends on the image: the mean over all images that were predicted. What zeros leave of it
    is not known."""
    if work is None or not work.macs:
        return {}
    return {"macs_per_image": round(work.mean_macs), "kept_macs_per_image": None}


def _unkept(own: Judged) -> tuple[str, ...]:
    if own.answers is not None:
        return ()
    return (f"no agreement: its answers take more than {MOST_ANSWERS_BYTES / 2**20:.0f} MiB",)


def _left(work: Any) -> tuple[str, ...]:
    if work is None:
        return ()
    return (f"MACs are the mean over {work.images} images: {work}; latency is that of the first images",)


def _macs(model: nn.Module, x: Tensor) -> tuple[int | None, int | None, tuple[str, ...]]:
    """(MACs of an image, those that zeros leave of them, notes)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="MACs are a lower bound")  # said in the row's notes
        cost = count(model, x.shape[1:], batch=len(x), make_input=lambda _: as_taken(model, x))
    if cost.uncounted:
        return None, None, (f"MACs at least {cost.gmacs:.4g} G; not counted: {cost.gaps()}",)
    return cost.macs, cost.kept_macs, ()


def _weights_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _peak_bytes(model: nn.Module, x: Tensor) -> int:
    x = as_taken(model, x)
    with evaluating(model), torch.inference_mode():
        return peak_memory(lambda: model(x), device=x.device).peak_bytes


def _notes(model: Runner, latency_batch: int) -> tuple[str, ...]:
    if fixed_batch_of(model) in (None, latency_batch):
        return ()
    return (f"no latency: takes batch {fixed_batch_of(model)} only, timed at batch {latency_batch}",)


# --- the data -------------------------------------------------------------------------------------------------------


def _sources(
    task: Task, models: Mapping[str, Runner], data: Any, preprocess: Any, batch: int, class_names: str
) -> list[tuple[list[str], Any]]:
    """Loaders with the names of the models that read them: one loader for each way of preprocessing."""
    if not hasattr(data, "classes"):
        if preprocess is not None:
            raise BadInput("preprocess is for a data set; a loader has preprocessed its images already")
        return [(list(models), data)]
    from leanvit.data import check_fits, loader

    groups: list[tuple[Any, list[str]]] = []
    for name, model in models.items():
        own = preprocess or _own_preprocess(name, model)
        if isinstance(model, nn.Module):
            check_fits(model, own, data, convert=True, class_names=class_names, classes=bool(task.label_kind))
        group = next((names for known, names in groups if known == own), None)
        group.append(name) if group is not None else groups.append((own, [name]))
    sizes = {tuple(own.input_size) for own, _ in groups}
    if len(sizes) > 1:
        raise BadInput(f"models are compared at one input size, these want {sorted(sizes)}; give preprocess")
    return [(names, loader(data, own, batch_size=batch)) for own, names in groups]


def _own_preprocess(name: str, model: Runner) -> Any:
    from leanvit.data import Preprocess

    stated = getattr(model, "preprocess", None)
    if stated is None and not isinstance(model, nn.Module):
        raise BadInput(f"preprocess must be given: runner {name!r} has no attribute preprocess")
    return stated if stated is not None else Preprocess.of(model)


def _judge(
    task: Task,
    models: Mapping[str, Runner],
    sources: list[tuple[list[str], Iterable[Batch]]],
    outputs: Mapping[str, tuple[int, ...]] | None,
    baseline: str,
    on_predictions: Callable[[dict[str, Predictions]], None] | None,
) -> tuple[dict[str, Judged], Tensor]:
    """What everyone gave, and the first batch of images as the baseline saw it. outputs: of labels of images."""
    kept: dict[str, Tensor] = {}
    batches = [(names, _keeping(names, loader, kept)) for names, loader in sources]  # matched: of no data set any more
    if outputs is None:
        found = [judge_all(task, {name: models[name] for name in names}, loader) for names, loader in batches]
        return {name: own for part in found for name, own in part.items()}, kept[baseline]
    predictions: dict[str, Predictions] = {}
    for names, loader in batches:
        predictions |= predict_all({name: models[name] for name in names}, loader, outputs=outputs)
    _require_same_classes(predictions, baseline)
    if on_predictions is not None:
        on_predictions(predictions)
    return {name: Judged.of(own) for name, own in predictions.items()}, kept[baseline]


def _keeping(names: list[str], loader: Iterable[Batch], kept: dict[str, Tensor]) -> Iterator[Batch]:
    for batch in loader:
        kept.update({name: batch.images for name in names if name not in kept})
        yield batch


def _require_same_classes(predictions: Mapping[str, Predictions], baseline: str) -> None:
    wanted = predictions[baseline].logits.shape[1]
    for name, own in predictions.items():
        if own.logits.shape[1] != wanted:
            raise BadInput(
                f"models are compared on the same classes, {baseline} has {wanted} and {name} {own.logits.shape[1]}"
            )


def _cycled(images: Tensor, batch: int) -> Tensor:
    return images[torch.arange(batch) % len(images)]


# --- the arguments --------------------------------------------------------------------------------------------------


def _check_models(models: Mapping[str, Runner]) -> None:
    if not models:
        raise BadInput("models must name at least one model, got none")
    for name, model in models.items():
        if not isinstance(name, str) or not callable(model):
            raise BadInput(f"models must map names to callables, got {name!r}: {type(model).__name__}")


def common_task(models: Mapping[str, Runner], data: Any, given: Task | str | None = None) -> Task:
    """The task that models are judged by side by side; runners that have no `task` go by the others. Raises BadInput
    for models of different tasks."""
    given = read_task(given)
    dataset = dataset_of(data)
    found = {name: tasks.of(m, dataset, given) for name, m in models.items() if hasattr(m, "task")}
    if not found:
        return tasks.of(None, dataset, given)
    first, own = next(iter(found.items()))
    for name, other in found.items():
        if other != own and (type(other) is not type(own) or other.to_json() != own.to_json()):
            raise BadInput(
                f"models are judged by one task, that of {first} is {own!r} and that of {name} {other!r}: measure "
                "them one by one, or give the task (--task)"
            )
    return own


def _check_task(task: Task, models: Mapping[str, Runner], dataset: Any) -> None:
    """Raise `BadInput` where a task that is not of labels of images does not suit a model, or the data."""
    for name, model in models.items():
        try:
            task.check_judging("compare", model=model, dataset=dataset)
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None


def _checked_baseline(models: Mapping[str, Runner], baseline: str | None) -> str:
    if baseline is not None and baseline not in models:
        raise unknown("baseline", baseline, models)
    return baseline or next(iter(models))


def _checked_model_names(models: Mapping[str, Runner], names: Mapping[str, str]) -> Mapping[str, str]:
    for name, model in names.items():
        if name not in models:
            raise unknown("model in model_names", name, models)
        if not isinstance(model, str) or not model:
            raise BadInput(f"model_names[{name!r}] is {model!r}; accepted: a text")
    return names


def _checked_latency_batch(models: Mapping[str, Runner], batch: int | None) -> int:
    fixed = {name: fixed_batch_of(m) for name, m in models.items() if fixed_batch_of(m) is not None}
    if batch is None and len(set(fixed.values())) > 1:
        raise BadInput(f"latency_batch must be given: the runners' fixed batches differ, {fixed}")
    chosen = batch if batch is not None else next(iter(fixed.values()), 1)
    if not isinstance(chosen, int) or chosen < 1:
        raise BadInput(f"latency_batch must be a positive integer, got {batch!r}")
    if len(fixed) == len(models) and chosen not in fixed.values():
        raise BadInput(f"latency_batch {chosen} suits no runner: their fixed batches are {fixed}")
    return chosen


def _checked_device(models: Mapping[str, Runner]) -> torch.device:
    devices = {name: str(device_of(model)) for name, model in models.items()}
    if len(set(devices.values())) > 1:
        raise BadInput(f"models are compared on one device, these are on {devices}")
    return torch.device(next(iter(devices.values())))


def _disk_bytes(models: Mapping[str, Runner], files: Mapping[str, str | os.PathLike[str]]) -> dict[str, int]:
    """Size of each file, or of all files in each folder."""
    sizes = {}
    for name, path in files.items():
        if name not in models:
            raise unknown("model in files", name, models)
        root = Path(path)
        if not root.exists():
            raise BadInput(f"files[{name!r}] does not exist: {root}")
        sizes[name] = sum(p.stat().st_size for p in ([root] if root.is_file() else root.rglob("*")) if p.is_file())
    return sizes
