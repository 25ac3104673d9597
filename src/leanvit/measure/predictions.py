"""What a runner answered on a data set, kept by key, and how it is saved."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from leanvit.errors import BadInput, CheckpointError
from leanvit.measure.runners import Runner, evaluating, logits_of
from leanvit.tasks import Classification, MultiLabel, Task

_FORMAT = "leanvit.predictions/1"


class Batch(Protocol):
    """What a loader yields: images (B, C, H, W) float32, targets (B,) int64 or (B, classes) float32, B keys."""

    @property
    def images(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def keys(self) -> list[str]: ...


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits (N, classes) float32, targets (N,) int64 and N distinct keys, in the same order.

    Targets of multi-label data are (N, classes) float32 of 0 and 1. Raises BadInput when the shapes do not fit, a key
    comes twice, or a target is no class of the logits.
    """

    logits: Tensor
    targets: Tensor
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.keys)
        require_keys(self.keys)
        accepted = [(n,), tuple(self.logits.shape)]
        if self.logits.ndim != 2 or self.logits.shape[0] != n or tuple(self.targets.shape) not in accepted:
            shapes = f"logits {tuple(self.logits.shape)}, targets {tuple(self.targets.shape)}"
            raise BadInput(f"predictions of {n} keys need logits ({n}, classes) and targets ({n},), got {shapes}")
        classes = self.logits.shape[1]
        if self.targets.ndim == 2:
            if not bool(((self.targets == 0) | (self.targets == 1)).all()):
                raise BadInput("multi-label targets must be 0 or 1")
            return
        wrong = ((self.targets < 0) | (self.targets >= classes)).nonzero().flatten()
        if len(wrong):
            i = int(wrong[0])
            raise BadInput(
                f"target {int(self.targets[i])} of key {self.keys[i]!r} is no class of a runner with {classes} classes"
            )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def task(self) -> Task:
        """What the targets are: one class an image, or several."""
        return MultiLabel() if self.targets.ndim == 2 else Classification()

    @property
    def answers(self) -> Tensor:
        """The class of the largest logit (N,) int64; multi-label: which have probability > 1/2, (N, classes) bool."""
        found: Tensor = self.task.answers(self.logits)
        return found

    def ordered_by(self, keys: tuple[str, ...]) -> Predictions:
        """The same predictions in the order of `keys`. Raises BadInput naming the first key that only one side has."""
        if keys == self.keys:
            return self
        order = places(self.keys, keys)
        return Predictions(self.logits[order], self.targets[order], keys)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically."""
        path = Path(path)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / "part"
            save_file(
                {"logits": self.logits.contiguous(), "targets": self.targets.contiguous()},
                part,
                metadata={"format": _FORMAT, "keys": json.dumps(self.keys)},
            )
            part.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Read what `save` wrote. Raises CheckpointError for a truncated, foreign or inconsistent file."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    found = metadata.get("format", "none")
                    raise CheckpointError(f"{path} holds no predictions: format {_FORMAT!r} expected, found {found!r}")
                logits, targets = file.get_tensor("logits"), file.get_tensor("targets")
            keys = json.loads(metadata["keys"])
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                raise CheckpointError(f"{path} holds no list of keys")
            kind = torch.int64 if targets.ndim == 1 else torch.float32
            if logits.dtype != torch.float32 or targets.dtype != kind:
                raise CheckpointError(f"{path}: logits must be float32 and targets int64 (or one float32 a class)")
            return cls(logits, targets, tuple(keys))
        except FileNotFoundError:
            raise BadInput(f"no predictions at {path}") from None
        except (SafetensorError, BadInput, KeyError, ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read as predictions: {error}") from error


def places(known: Sequence[str], keys: Sequence[str]) -> list[int]:
    """Where each of `keys` is among the known ones, which are the same in another order.

    Raises BadInput naming the first key that only one side has.
    """
    rows = {key: i for i, key in enumerate(known)}
    missing = next((key for key in keys if key not in rows), None)
    if missing is not None:
        raise BadInput(f"predictions cannot be paired: key {missing!r} is missing on one side")
    if len(keys) != len(known):
        extra = min(set(known) - set(keys), key=rows.__getitem__)
        raise BadInput(f"predictions cannot be paired: key {extra!r} is missing on one side")
    return [rows[key] for key in keys]


def require_keys(keys: Sequence[str]) -> None:
    """Raise BadInput for no key, or one that comes twice."""
    if not keys:
        raise BadInput("predictions must hold at least one image")
    if len(set(keys)) != len(keys):
        twice = next(key for key, times in Counter(keys).items() if times > 1)
        raise BadInput(f"key {twice!r} comes twice: each image counts once")


def predict(
    runner: Runner,
    loader: Iterable[Batch],
    *,
    outputs: Sequence[int] | None = None,
    class_names: str = "by-name",
) -> Predictions:
    """Run every batch of a loader (eval mode, inference mode) and keep the logits.

    outputs: which of the runner's outputs stands for each class of the targets. By default those that a loader's data
    set and the runner call the same (`data.match_classes`, with `class_names`), else each for its own.

    Raises BadInput for an empty loader, for classes that do not fit, for an output that is not (B, classes), and for
    logits that are not finite; the text names keys of the batch.
    """
    return predict_all({"runner": runner}, loader, outputs={"runner": outputs}, class_names=class_names)["runner"]


def predict_all(
    runners: Mapping[str, Runner],
    loader: Iterable[Batch],
    *,
    outputs: Mapping[str, Sequence[int] | None] | None = None,
    class_names: str = "by-name",
) -> dict[str, Predictions]:
    """`predict` for several runners in one pass over the data, so that each image is decoded once."""
    chosen = {name: list(indices) for name, indices in (outputs or {}).items() if indices is not None}
    unmatched = {name: runner for name, runner in runners.items() if name not in chosen}
    chosen |= {name: list(indices) for name, indices in matched_outputs(unmatched, loader, class_names).items()}
    logits: dict[str, list[Tensor]] = {name: [] for name in runners}
    targets: list[Tensor] = []
    keys: list[str] = []
    with evaluating(*runners.values()), torch.inference_mode():
        for batch in loader:
            targets.append(batch.targets.cpu())
            keys.extend(batch.keys)
            for name, runner in runners.items():
                answered = _named(name, runner, batch)
                logits[name].append(answered[:, chosen[name]] if name in chosen else answered)
    if not keys:
        raise BadInput("loader gave no batch: there is nothing to predict")
    # Clones made outside inference mode are ordinary tensors.
    truth = torch.cat(targets).clone()
    return {name: Predictions(torch.cat(parts).clone(), truth, tuple(keys)) for name, parts in logits.items()}


def matched_outputs(
    runners: Mapping[str, Runner], data: object, class_names: str, *, log: Callable[[str], object] | None = None
) -> dict[str, tuple[int, ...]]:
    """Of the runners that do not have just the data's classes in their order: the output that stands for each.

    data: a data set, or a loader of one; nothing is known of other loaders. `log` is called with what was matched, by
    default as warnings, and then only where an answer of one of them changes. Raises BadInput for classes that a runner
    does not have.
    """
    from leanvit.data.dataset import require_labels
    from leanvit.data.matching import matched_with, other_kind

    dataset = dataset_of(data)
    if dataset is None:
        return {}
    require_labels(dataset, "accuracy")
    matches = {name: matched_with(one, dataset, class_names=class_names) for name, one in runners.items()}
    found = {name: matched.positions for name, matched in matches.items() if not matched.same}
    # beside a model whose names are in another order, one without names is news
    every = log is not None or bool(found) or class_names == "by-position"
    notes: dict[str, str] = {}
    for name, runner in runners.items():
        if matches[name].note and every:
            notes.setdefault(matches[name].note, name)
        if kind := other_kind(runner, dataset):
            notes.setdefault(kind, name)
    for line, name in notes.items():
        (log or warnings.warn)(f"{name}: {line}")
    return found


def dataset_of(data: object) -> Any:
    """The data set itself, or that of a loader of `leanvit.data`; None for other loaders."""
    from leanvit.data.loading import Loader

    if isinstance(data, Loader):
        return data.dataset
    return data if hasattr(data, "classes") else None


def _named(name: str, runner: Runner, batch: Batch) -> Tensor:
    try:
        return logits_of(runner, batch.images, batch.keys)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
