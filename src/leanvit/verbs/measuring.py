"""`measure`: models side by side on the same images, in one or more runtimes, in turns."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanvit.deploy import export, load_artefact
from leanvit.errors import BadInput, unknown
from leanvit.files import write_atomic
from leanvit.measure import Comparison, compare
from leanvit.report.token_maps import TOKENS, trace_tokens
from leanvit.verbs.exporting import artefact_folder
from leanvit.verbs.folders import Stopwatch, new_file, require_whole
from leanvit.verbs.models import Loaded, Say, as_runner, load_model, open_split, require_fit, silent

RUNTIMES = ("torch", "openvino", "onnx")


@dataclass(frozen=True)
class Measured:
    """A comparison, and the file that holds it."""

    comparison: Comparison
    file: Path | None

    def to_json(self) -> dict[str, Any]:
        return {
            "file": None if self.file is None else str(self.file),
            "comparison": json.loads(self.comparison.to_json()),
        }


def measure(
    run: str | Path,
    data: str,
    *,
    against: Sequence[str | Path] = (),
    runtimes: Sequence[str] = ("torch",),
    latency_batch: int = 8,
    rounds: int = 15,
    convert: bool = False,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | Path | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    say: Say = silent,
    command: str = "",
) -> Measured:
    """Compare a model with others: accuracy with intervals, latency in interleaved rounds, MACs, memory, size.

    Args:
        run: run folder or timm name. `against`: others; the first of them is the baseline.
        data: data spec; its `val` split is measured.
        runtimes: of `RUNTIMES`; each model gets a row in each. What a run has not exported is exported for the
            measurement, at `latency_batch`, and thrown away after it.
        convert: see `train`.
        model_args, pretrained, weights: for the timm names among them.
        out: file; default: `measure.json` of the run folder, or `measure-2.json` and so on when there is one.

    Raises:
        BadInput: before any work starts.
    """
    watch = Stopwatch("measure", command)
    runtimes = tuple(dict.fromkeys(runtimes))
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise unknown("runtime", runtime, RUNTIMES)
    require_whole("--batch", latency_batch, least=1)
    require_whole("--rounds", rounds, least=3)
    validation = open_split(data, "val", limit=limit, say=say)
    loaded = [_load(spec, model_args, pretrained, weights) for spec in (*against, run)]
    for one in loaded:
        require_fit(one, validation, convert=convert, adaptable=False)
    _require_one_size(loaded)
    own = loaded[-1]
    default = own.folder / "measure.json" if own.folder else None
    file = None if default is None and out is None else new_file(out, default, overwrite=overwrite)

    with _runners(loaded, runtimes, latency_batch, say) as lines:
        comparison = compare(
            lines.runners,
            validation.cached(),
            latency_batch=latency_batch,
            rounds=rounds,
            files=lines.files,
            progress=say,
        )
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, comparison.to_json().encode())
    if own.folder is not None and os.access(own.folder, os.W_OK):  # with --out, the run may be read-only
        if not (own.folder / TOKENS).exists():
            maps = trace_tokens(own.model, validation, own.preprocess, name=own.name)
            write_atomic(own.folder / TOKENS, maps.to_json().encode())
        inside = file is not None and file.parent == own.folder
        watch.record(own.folder, wrote=file.name if inside and file else "")
    return Measured(comparison, file)


def _require_one_size(loaded: Sequence[Loaded]) -> None:
    sizes = [one.preprocess.input_size for one in loaded]
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{one.base} {'x'.join(map(str, size))}" for one, size in zip(loaded, sizes, strict=True))
        raise BadInput(f"models are compared at one input size (channels x height x width), these take {listed}")


def _load(
    spec: str | Path, model_args: Mapping[str, Any] | None, pretrained: bool, weights: str | Path | None
) -> Loaded:
    """Arguments of timm names go to the timm names only."""
    if Path(spec).is_dir():
        return load_model(spec)
    return load_model(spec, model_args=model_args, pretrained=pretrained, weights=weights)


@dataclass
class _Lines:
    """Runners by the name of their row, and the files behind them."""

    runners: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


@contextmanager
def _runners(loaded: Sequence[Loaded], runtimes: Sequence[str], batch: int, say: Say) -> Iterator[_Lines]:
    """A runner for each model in each runtime: all models in the first runtime, then all in the next."""
    names = _row_names(loaded)
    lines = _Lines()
    with ExitStack() as stack:
        for runtime in runtimes:
            for name, one in zip(names, loaded, strict=True):
                if runtime == "torch":
                    lines.runners[name] = as_runner(one.model, one.preprocess)
                    weights = _weights_of(one)
                    lines.files |= {name: weights} if weights else {}
                    continue
                path = _artefact(one, runtime, batch, stack, say)
                key = f"{name} ({runtime})"
                lines.runners[key] = load_artefact(path)
                lines.files[key] = path
        yield lines


def _weights_of(one: Loaded) -> Path | None:
    return next(one.folder.glob("weights-*.safetensors"), None) if one.folder else None


def _artefact(one: Loaded, runtime: str, batch: int, stack: ExitStack, say: Say) -> Path:
    if one.folder is not None and (path := artefact_folder(one.folder, runtime)).exists():
        return path
    say(f"{one.name}: exporting to {runtime} for the measurement, batch {batch}")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leanvit-")))
    export(one.model, folder / runtime, to=runtime, preprocess=one.preprocess, batch=batch)
    return folder / runtime


def _row_names(loaded: Sequence[Loaded]) -> list[str]:
    """The models' names; folders tell two alike apart. Raises `BadInput` if a model is there twice."""
    names = [one.name for one in loaded]
    clear = [n if names.count(n) == 1 else f"{n} [{one.base}]" for n, one in zip(names, loaded, strict=True)]
    twice = next((n for n in clear if clear.count(n) > 1), None)
    if twice:
        raise BadInput(f"{twice} is given twice: a model is compared with others, not with itself")
    return clear
