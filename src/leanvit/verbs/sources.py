"""MODEL names with a source: `hf-hub:OWNER/NAME`, `timm/NAME`, `local-dir:FOLDER`. Weights and settings come with them.

What is built is the plain architecture with constructor arguments: a run of it needs neither network nor folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg
from torch import nn

from leanvit.data import Preprocess
from leanvit.errors import BadInput, CheckpointError, LeanvitError
from leanvit.models.registry import require_model
from leanvit.verbs.weights import Held, read_weights

HUB, LOCAL, TIMM = "hf-hub:", "local-dir:", "timm/"
ACCEPTED = f"{HUB}OWNER/NAME, {LOCAL}FOLDER"
CONFIG = "config.json"
WEIGHTS = (  # in the order in which timm looks for them
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_OF_DATA = ("num_classes", "in_chans")  # arguments that adapting to data chooses
_KEPT = ("architecture", "classifier", "first_conv", "url", "file", "hf_hub_id", "source", "state_dict", "custom_load")


@dataclass(frozen=True)
class Sourced:
    """A model as its source describes it."""

    spec: str
    name: str  # timm's, of the architecture
    label: str  # what to call it: the last part of the name
    kwargs: dict[str, Any]
    settings: dict[str, Any]  # of timm's pretrained_cfg: mean, std, crop, ...
    labels: tuple[str, ...]  # names of its classes, where it has them
    weights: Callable[[], Held] = field(repr=False)

    def adaptable(self) -> dict[str, Any]:
        """The arguments without those that data chooses."""
        return {key: value for key, value in self.kwargs.items() if key not in _OF_DATA}

    def describe(self, *models: nn.Module) -> None:
        """Put its settings into models that were built of it."""
        for model in models:
            described: Any = model
            described.pretrained_cfg = described.default_cfg = {**described.pretrained_cfg, **self.settings}
        try:
            for model in models:
                Preprocess.of(model)
        except (BadInput, AssertionError, TypeError, ValueError, KeyError, IndexError) as error:
            raise CheckpointError(
                f"MODEL {self.spec}: {CONFIG} holds settings of images that do not fit: {error}"
            ) from error


def has_source(spec: str | Path) -> bool:
    """Whether a MODEL is a name with a source; a folder of the path `timm/NAME` is a folder."""
    if not isinstance(spec, str):
        return False
    source = spec.split(":")[0].lower().replace("_", "-") + ":"
    return source in (HUB, LOCAL) or (spec.startswith(TIMM) and not Path(spec).exists())


def sourced(spec: str) -> Sourced:
    """What a name with a source stands for; its weights are read when they are asked for.

    Raises:
        BadInput: no such folder, or no name behind the source. LeanvitError: the hub cannot be reached, or has no such
            model. CheckpointError: it is no model of timm, or its settings are damaged.
    """
    source, _, name = spec.partition(":") if ":" in spec else (HUB, "", spec)
    if not name.strip():
        raise BadInput(f"MODEL {spec!r} has no name behind its source; accepted: {ACCEPTED}")
    if source.lower().replace("_", "-") + ":" == LOCAL:
        return _local(spec, Path(name))
    return _of_hub(spec, name)


def _local(spec: str, folder: Path) -> Sourced:
    if not folder.is_dir():
        raise BadInput(f"MODEL {spec}: there is no folder {folder}")
    path = folder / CONFIG
    if not path.is_file():
        hint = f"; it is a run folder: give {folder}" if (folder / "leanvit.json").is_file() else ""
        raise BadInput(f"MODEL {spec}: the folder holds no {CONFIG}, which timm writes beside weights{hint}")

    def weights() -> Held:
        found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if found is None:
            raise BadInput(f"MODEL {spec}: the folder holds no weights; looked for: {', '.join(WEIGHTS)}")
        return read_weights(found, option="MODEL")

    return _described(spec, folder.resolve().name, path, weights)


def _of_hub(spec: str, name: str) -> Sourced:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")

    def fetched(file: str) -> Path | None:
        """The file in the cache of the hub's client; None where the model has none of that name."""
        try:
            with _quiet():
                return Path(hf_hub_download(repository, file, revision=revision or None))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise _unreachable(spec, error) from error
            return None
        except Exception as error:  # the hub's client and the network raise many kinds; all mean that it cannot be had
            raise _unreachable(spec, error) from error

    def weights() -> Held:
        for file in WEIGHTS:
            if (path := fetched(file)) is not None:
                return read_weights(path, option="MODEL")
        raise BadInput(f"MODEL {spec}: it has no weights that timm would take; looked for: {', '.join(WEIGHTS)}")

    config = fetched(CONFIG)
    if config is None:
        raise BadInput(f"MODEL {spec}: it has no {CONFIG}, so it is no model of timm")
    return _described(spec, repository.split("/")[-1], config, weights)


def _unreachable(spec: str, error: Exception) -> LeanvitError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return LeanvitError(f"MODEL {spec}: no network or no such model: {first}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's own lines on each new try."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _described(spec: str, label: str, path: Path, weights: Callable[[], Held]) -> Sourced:
    config = _read_config(spec, path)
    nested = config.get("pretrained_cfg")
    settings = dict(nested if isinstance(nested, Mapping) else config)  # older files have one level
    name = config.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name.split(".")[0]):
        if isinstance(name, str):
            require_model(name, kind=f"MODEL {spec}: architecture")
        else:
            raise CheckpointError(f"MODEL {spec}: {CONFIG} names no architecture of timm: it is of another library")
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, Mapping):
        raise CheckpointError(
            f"MODEL {spec}: model_args of {CONFIG} is a {type(arguments).__name__}; accepted: an object"
        )
    for key in ("num_classes", "label_names"):
        if key in config:
            settings[key] = config[key]
    known = {each.name for each in fields(PretrainedCfg)} - {*_KEPT}
    settings = {key: value for key, value in settings.items() if key in known and value is not None}
    kwargs = {**_implied(str(name), settings), **{str(key): value for key, value in arguments.items()}}
    return Sourced(spec, str(name), label, kwargs, settings, _labels(settings), weights)


def _read_config(spec: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"MODEL {spec}: {CONFIG} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"MODEL {spec}: {CONFIG} is a {type(config).__name__}; accepted: a JSON object")
    return config


def _implied(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that timm takes from the settings, where they are not those of the architecture."""
    default = timm.get_pretrained_cfg(name, allow_unregistered=False)
    usual = {} if default is None else default.to_dict()
    size, known = settings.get("input_size"), usual.get("input_size", (3, 224, 224))
    found: dict[str, Any] = (
        {"num_classes": settings.get("num_classes")} if settings.get("num_classes", -1) != -1 else {}
    )
    if isinstance(size, list | tuple) and len(size) == 3:
        if size[0] != known[0]:
            found["in_chans"] = size[0]
        if settings.get("fixed_input_size") and list(size[1:]) != list(known[1:]):
            found["img_size"] = list(size[1:])
    return found


def _labels(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes in order; a table by number must have every number."""
    names = settings.get("label_names")
    if isinstance(names, Mapping):
        names = [names.get(str(i), names.get(i)) for i in range(len(names))]
    if (
        isinstance(names, list | tuple)
        and all(isinstance(n, str) and n for n in names)
        and len(set(names)) == len(names)
    ):
        return tuple(names)
    return ()
