"""The steps of a compression that trains, kept in `RUN/steps/` while it is under way, so that a killed one goes on.

    steps/about.json     what is compressed, how and on what (sealed); written first, compared when it is resumed
    steps/1-nvit/        the resumable state of the training under way, then the partial lean model as a run folder
    steps/2-recovery/    likewise; of a calibration or search that keeps its units (`Data.units`) also `units/`

A step is done when its folder holds a run. What is temporary in a model is in such a run too (its plan is unfinished).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanvit.anatomy import OpenModel
from leanvit.data.identity import changes
from leanvit.errors import BadInput, CheckpointError, LeanvitError, Refused
from leanvit.files import Sealed, read_sealed, sealed_text, write_atomic
from leanvit.recipe.kept_units import UNITS
from leanvit.recipe.roots import Root
from leanvit.recipe.store import JSON_NAME, load_run, save
from leanvit.training.checkpoint import LOG
from leanvit.training.world import join_world

STEPS = "steps"
ABOUT = Path(STEPS) / "about.json"
_KIND = "leanvit-steps"
_FORMAT = 1


class _AboutFile(Sealed):
    about: dict[str, Any]


class Steps:
    """The steps in one run folder. Of several processes, which all make the same calls, the first one writes."""

    def __init__(self, run: Path, about: Mapping[str, Any], *, resume: bool) -> None:
        """Begin them, or take them up again.

        about: JSON data that must be equal for a compression to be resumed.

        Raises:
            BadInput: there is nothing to resume, it is of another compression (each difference is named), an
                unfinished one is in the way, or the folder cannot be written.
            CheckpointError: the description is damaged.
        """
        self.folder = run / STEPS
        self._began = not resume
        self._made = not run.exists()
        self._about = json.loads(json.dumps(about))
        self._world = join_world()
        with self._world.together():
            if resume:
                self._compare(run)
            elif self._world.first:
                self._write(run)

    def _write(self, run: Path) -> None:
        if (run / ABOUT).is_file():
            raise BadInput(
                f"out={str(run)!r} holds an unfinished compression: give resume=True to continue it, another "
                "folder, or remove it first (recipe.clear_steps)"
            )
        try:
            clear_steps(run)  # what was left when they were removed and the process was killed
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise BadInput(f"out={str(run)!r} cannot be written: {error.strerror or error}") from error
        content = {"kind": _KIND, "format": _FORMAT, "about": self._about}
        write_atomic(run / ABOUT, sealed_text(content))

    def _compare(self, run: Path) -> None:
        path, saved = run / ABOUT, saved_about(run)
        if saved is None:
            raise BadInput(f"resume=True, but there is nothing to resume: {path} does not exist")
        was, now = ({k: v for k, v in about.items() if k != "data"} for about in (saved, self._about))
        differing = [*differences(was, now), *changes(saved.get("data"), self._about.get("data"))]
        if differing:
            raise BadInput(f"resume=True, but {path} is of another compression: {'; '.join(differing)}")
        self._about = saved  # an older version told less of its data: steps that are done carry the digest of that

    def at(self, number: int, label: str) -> Path:
        """The folder of a step, counted from 1."""
        return self.folder / f"{number}-{label}"

    def is_done(self, number: int, label: str) -> bool:
        return self._world.from_first((self.at(number, label) / JSON_NAME).is_file)

    def begin(self, number: int) -> None:
        """Before a step runs or goes on: remove later ones, which would stand on something else than it will give."""
        with self._world.together():
            for path in self.folder.iterdir() if self._world.first else ():
                before, dash, _ = path.name.partition("-")
                if dash and before.isdecimal() and int(before) > number:
                    shutil.rmtree(path)

    def keep(self, number: int, label: str, model: OpenModel) -> None:
        """Save the model after a step; the state of its training goes, its log stays."""
        with self._world.together():
            if self._world.first:
                self._keep(self.at(number, label), model)

    def _keep(self, folder: Path, model: OpenModel) -> None:
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        save(model, folder, info={"steps": self.digest, "frozen": frozen}, overwrite=True)
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def load(self, number: int, label: str, root: Root, slugs: list[str]) -> OpenModel:
        """The model after a step that is done. Raises `CheckpointError` if it is damaged or of something else."""
        folder = self.at(number, label)
        with self.advised(number, label):
            run = load_run(folder)
            history = run.model.history
            same_root = json.dumps(history.root.to_json()) == json.dumps(root.to_json())
            same = same_root and run.info.get("steps") == self.digest
            if not same or [plan.slug for plan in history.plans] != slugs:
                raise CheckpointError(f"{folder} is not a step of this compression")
        frozen = run.info.get("frozen", [])
        for name, p in run.model.named_parameters():
            p.requires_grad_(name not in frozen)
        return run.model

    @contextmanager
    def advised(self, number: int, label: str) -> Iterator[None]:
        """What is raised inside for a damaged file also says how to do the step again."""
        try:
            yield
        except CheckpointError as error:
            folder = self.at(number, label)
            raise CheckpointError(f"{error}. To do this step again, remove {folder} and resume") from error

    @contextmanager
    def gone_if_refused(self) -> Iterator[None]:
        """Steps that were begun here go when what is inside refuses its input before anything was kept in them."""
        try:
            yield
        except (BadInput, Refused):
            if self._world.first and self._began and not self._keeps_something():
                clear_steps(self.folder.parent)
                if self._made:
                    with suppress(OSError):  # something else lies in it
                        self.folder.parent.rmdir()
            raise

    def _keeps_something(self) -> bool:
        from leanvit.training.checkpoint import STATE  # brings the data's libraries

        kept = (JSON_NAME, STATE.name)
        return any(path.name in kept or path.parent.parent.name == UNITS for path in self.folder.glob("*/**/*"))

    @property
    def digest(self) -> str:
        """sha256 of what the compression is of: steps and units that carry another one are not its own."""
        return hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()


def saved_about(run: Path) -> dict[str, Any] | None:
    """What the unfinished compression in a run folder is of; None where there is none.

    Raises `CheckpointError` if the description is damaged.
    """
    if not (run / ABOUT).is_file():
        return None
    advice = f"Remove {run / STEPS} to begin anew"
    return read_sealed(run / ABOUT, _AboutFile, kind=_KIND, newest=_FORMAT, changed=advice).about


def clear_steps(run: str | Path) -> None:
    """Remove the steps of a run folder: when all that they were kept for is saved. No steps: nothing happens."""
    (Path(run) / ABOUT).unlink(missing_ok=True)  # first: half of the steps are not to be resumed
    try:
        shutil.rmtree(Path(run) / STEPS)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LeanvitError(f"cannot remove {Path(run) / STEPS}: {error.strerror or error}") from error


def last_log(run: str | Path) -> bytes:
    """The log of the last training among the steps (JSON lines); empty if there is none."""
    logs = sorted(Path(run).glob(f"{STEPS}/*/{LOG}"), key=lambda path: int(path.parent.name.partition("-")[0]))
    return logs[-1].read_bytes() if logs else b""


def fingerprint(model: nn.Module) -> str:
    """sha256 of a model's tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def differences(was: Any, now: Any, name: str = "") -> Iterator[str]:
    """In words, where two JSON values differ: `recovery.lr was 0.1 and is now 0.2`."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**was, **now}:
            yield from differences(was.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(was, list) and isinstance(now, list):
        for i, (a, b) in enumerate(zip_longest(was, now)):
            yield from differences(a, b, f"{name}[{i}]")
    elif was != now:
        yield f"{name} was {_short(was)} and is now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
