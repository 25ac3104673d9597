"""Whether a model fits the data, before the first step; and the constructor arguments that make it fit."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from leanvit.cards import Input, input_of, models
from leanvit.data.decode import CHANNELS
from leanvit.data.depth import range_text
from leanvit.data.matching import matched_with
from leanvit.data.preprocess import SMALL_SIDE, Preprocess, channels_of, input_size_of
from leanvit.data.specs import parse_spec
from leanvit.data.stream import AnyDataset
from leanvit.errors import BadInput
from leanvit.models.registry import require_model

MAX_ENLARGEMENT = 2.0  # images that have to grow more, per side, do not fit: most of the tokens would be made up
TOKENS = 64  # tokens that a small image is cut into: an 8x8 grid, enough for token reduction to have a choice

# timm's modules whose models take both img_size and patch_size; of papers' models their cards say what they take
_PLAIN_FAMILIES = {"beit", "deit", "eva", "vision_transformer", "vision_transformer_relpos"}
_WINDOW_FAMILIES = {"swin_transformer", "swin_transformer_v2"}  # these take window_size too


def check_fits(
    model: nn.Module,
    preprocess: Preprocess,
    dataset: AnyDataset,
    *,
    convert: bool = False,
    class_names: str = "by-name",
    trains: bool = False,
    classes: bool = True,
) -> None:
    """Raise BadInput that lists every mismatch of resolution, channels and classes, with the argument that mends it.

    Resolution: `preprocess` must give what the model takes, and the data's images may grow at most twofold per side.
    Channels: those of `preprocess` and of the data must be the model's. Classes: those of the data, where it has
    labels, are among those of the model (`classes.match_classes`); `trains`: a model without names needs as many.
    Without `classes`, outputs are none of the data's classes.
    With `convert`, what preprocessing can bridge is accepted: images enlarged, grey repeated or colour averaged away.
    """
    problems = [
        *_input_problems(model, preprocess),
        *([] if convert else _image_problems(model, preprocess, dataset)),
        *_channel_problems(preprocess, dataset, convert=convert),
        *_range_problems(preprocess, dataset),
        *(_class_problems(model, dataset, class_names, trains) if classes else ()),
    ]
    if problems:
        name = _model_name(model)
        raise BadInput(f"model {name} does not fit data {dataset.spec!r}:\n" + "\n".join(f"  - {p}" for p in problems))


def adapted_kwargs(name: str, kwargs: dict[str, Any], dataset: AnyDataset) -> dict[str, Any]:
    """Constructor arguments for `timm.create_model(name, **kwargs)` that fit the data; what the caller gave is kept.

    Always `in_chans`, and `num_classes` where the data has labels. Resolution only for plain ViTs without pretrained
    weights whose images would have to grow more than twofold: then the images' own size is used, cut into about 64
    tokens if they are small (at most 64 pixels; 32x32 -> patch 4, 8x8 -> patch 1: a token a pixel, rather than pixels
    made up by enlarging), and rounded up to a multiple of the model's patch otherwise. Pretrained weights keep their
    resolution.

    Of a paper's models its card says what they take (`leanvit.cards.Input`): patches of some sizes, sides that are
    multiples of what mergings come to, or tokens a fixed number of pixels apart; then small images are enlarged up to
    twofold, further where the model takes none as small.
    A model in windows (Swin) that gets another resolution also gets the `fitting_window` of its grids.

    Raises BadInput for a name that timm does not know.
    """
    import timm

    require_model(name, kind="model")
    classes = {"num_classes": len(dataset.classes)} if dataset.classes else {}
    fitted = {**classes, "in_chans": dataset.channels, **kwargs}
    if kwargs.get("pretrained"):
        return fitted
    family = timm.models.model_entrypoint(name).__module__.split(".")[-1]
    card = models().get(name.split(".")[0])
    taken = None if card is None else card.input
    if family in _PLAIN_FAMILIES | _WINDOW_FAMILIES or (taken is not None and taken.layout == "plain"):
        fitted |= _resolution(name, kwargs, dataset)
        if family in _WINDOW_FAMILIES and "img_size" in fitted and "window_size" not in kwargs:
            patch, size = _pair(fitted.get("patch_size") or _default_patch(name)), _pair(fitted["img_size"])
            grid = (size[0] // patch[0], size[1] // patch[1])
            fitted["window_size"] = fitting_window(grid, _default_window(name), len(kwargs.get("depths", range(4))))
    elif taken is not None and _too_small(dataset.image_size, name, kwargs):
        fitted |= _size_taken(taken, dataset.image_size, kwargs, _default_patch(name))
    return fitted


def _size_taken(taken: Input, size: tuple[int, int], given: dict[str, Any], patch: int) -> dict[str, Any]:
    """`img_size`, and `patch_size` where it is not given, of a paper's models for images of `size`.

    patch: what the model has by default; images of more than 64 pixels keep it.
    """
    if taken.layout == "strided":
        return {"img_size": _compact(strided_size(size, taken.stride, taken.least))}
    if "patch_size" in given or max(size) > SMALL_SIDE:
        patch, chosen = given.get("patch_size", patch), {}
    else:
        own = taken.patches
        patch = min(own, key=lambda p: _distance(size[0] * size[1] / p**2)) if own else small_grid(size)[1]
        chosen = {"patch_size": patch}
    step = patch * (2 ** (len(given.get("depths", range(4))) - 1) if taken.doubles else 1)
    return {"img_size": _compact((_up(size[0], step), _up(size[1], step))), **chosen}


def fitting_window(grid: tuple[int, int], most: int, stages: int) -> int:
    """The window side from half of `most` to `most` that pads least over the grids of all stages, the largest of these.

    `grid` (h, w) is halved from stage to stage; a window larger than a grid shrinks to it, as in Swin.
    """

    def padded(window: int) -> int:
        total, (height, width) = 0, grid
        for _ in range(stages):
            total += _up(height, min(window, height)) * _up(width, min(window, width))
            height, width = -(-height // 2), -(-width // 2)
        return total

    return min(range(most, (most - 1) // 2, -1), key=padded)


def strided_size(size: tuple[int, int], stride: int, least: int = 1) -> tuple[int, int]:
    """(H, W) for images of `size` and tokens `stride` pixels apart.

    Small images grow up to twofold, to the multiple of the stride below; others are rounded up. No side is below
    `least`, a multiple of the stride.
    """
    if max(size) > SMALL_SIDE:
        height, width = _up(size[0], stride), _up(size[1], stride)
    else:
        height, width = (max(stride, 2 * side // stride * stride) for side in size)
    return max(least, height), max(least, width)


def small_grid(size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """((H, W), patch) for small images of `size` (h, w): about 64 tokens.

    The common divisor of both sides whose token count is nearest to 64 (at most twice or half of it); if there is
    none, patches of an eighth of the mean side, and the image rounded up to a multiple of them.
    """
    height, width = size
    divisors = [p for p in range(1, min(size) + 1) if height % p == 0 and width % p == 0]
    patch = min(divisors, key=lambda p: _distance(height * width / p**2))
    if _distance(height * width / patch**2) <= math.log(2):
        return size, patch
    patch = max(1, round(math.sqrt(height * width / TOKENS)))
    return (_up(height, patch), _up(width, patch)), patch


def _too_small(size: tuple[int, int], name: str, kwargs: dict[str, Any]) -> bool:
    """Whether images would have to grow more than twofold to the model's own size, and none was given."""
    return "img_size" not in kwargs and _enlargement(size, _default_size(name)) > MAX_ENLARGEMENT


def _default_size(name: str) -> tuple[int, ...]:
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    return config.input_size[1:] if config is not None else (224, 224)


def _resolution(name: str, kwargs: dict[str, Any], dataset: AnyDataset) -> dict[str, Any]:
    if {"img_size", "patch_size"} <= kwargs.keys():
        return {}
    given = kwargs.get("img_size")
    size = _pair(given) if given is not None else dataset.image_size
    if given is None and not _too_small(dataset.image_size, name, kwargs):
        return {}
    if "patch_size" in kwargs or max(size) > SMALL_SIDE:
        if given is not None:
            return {}
        patch = kwargs.get("patch_size") or _default_patch(name)
        vertical, horizontal = _pair(patch)
        return {"img_size": _compact((_up(size[0], vertical), _up(size[1], horizontal)))}
    fitted, patch = small_grid(size)
    return {"patch_size": patch} if given is not None else {"img_size": _compact(fitted), "patch_size": patch}


def _input_problems(model: nn.Module, preprocess: Preprocess) -> list[str]:
    channels, height, width = preprocess.input_size
    problems = []
    size = input_size_of(model)
    if size is not None and size != (height, width) and not _any_size(model, (height, width)):
        problems.append(
            f"resolution: the model takes {size[0]}x{size[1]}, preprocess gives {height}x{width}: build the model "
            f"with img_size={_compact((height, width))}, or use Preprocess.of(model)"
        )
    taken = channels_of(model)
    if taken is not None and taken != channels:
        problems.append(
            f"channels: the model takes {taken}, preprocess gives {channels}: build the model with "
            f"in_chans={channels}, or use Preprocess.of(model)"
        )
    return problems


def _image_problems(model: nn.Module, preprocess: Preprocess, dataset: AnyDataset) -> list[str]:
    height, width = preprocess.input_size[1:]
    problems = []
    growth = _enlargement(dataset.image_size, (height, width))
    if growth > MAX_ENLARGEMENT:
        own_height, own_width = dataset.image_size
        mend = f"img_size={_compact(dataset.image_size)}"
        taken = _taken(getattr(model, "source", model))
        if taken is not None and taken.layout != "plain":
            own = _size_taken(taken, dataset.image_size, {}, _stem_patch(model))
            mend = ", ".join(f"{name}={value}" for name, value in own.items())
        elif max(dataset.image_size) <= SMALL_SIDE:
            fitted, patch = small_grid(dataset.image_size)
            mend = f"img_size={_compact(fitted)}, patch_size={patch}"
        problems.append(
            f"resolution: images of {own_height}x{own_width} would be enlarged {growth:.3g}x to {height}x{width}: "
            f"build the model with {mend}"
        )
    return problems


def _channel_problems(preprocess: Preprocess, dataset: AnyDataset, *, convert: bool) -> list[str]:
    """Grey and colour can be converted, and a fourth channel left out; none can be made up."""
    channels = preprocess.input_size[0]
    if dataset.channels == channels or (convert and channels in (1, 3)):
        return []
    declared = f", or read {channels} of the images: --data '...?channels={channels}'" if channels in CHANNELS else ""
    return [
        f"channels: the images have {dataset.channels}, the model's input {channels}: build the model with "
        f"in_chans={dataset.channels}{declared if dataset.channels != 1 else ''}"
    ]


def _range_problems(preprocess: Preprocess, dataset: AnyDataset) -> list[str]:
    """A range that was taken from the values of other images than those of the training; a stated one is accepted."""
    trained = preprocess.pixel_range
    found = None if trained is None else dataset.pixel_range
    if trained is None or found is None or found == trained or "range" in parse_spec(dataset.spec).options:
        return []
    return [
        f"range: the model was trained on pictures with values {range_text(trained)}, the values of these were taken "
        f"as {range_text(found)}: give the data ?range={range_text(trained)} (or its own, if it is another)"
    ]


def _class_problems(model: nn.Module, dataset: AnyDataset, class_names: str, trains: bool) -> list[str]:
    # what needs classes refuses a set without labels, and a model of other outputs, by name
    if not dataset.classes or not getattr(model, "classifies", True):
        return []
    try:
        matched_with(model, dataset, class_names=class_names, exact=trains)
    except BadInput as error:
        return [str(error)]
    return []


def _any_size(model: nn.Module, size: tuple[int, int]) -> bool:
    """Whether the patch embedding takes images of another size than it was built for (timm's dynamic_img_size)."""
    stem = getattr(model, "patch_embed", None)
    if getattr(stem, "strict_img_size", True):
        return False
    vertical, horizontal = _pair(getattr(stem, "patch_size", 1))
    fits = size[0] % vertical == 0 and size[1] % horizontal == 0
    return fits or bool(getattr(stem, "dynamic_img_pad", False))


def _taken(model: nn.Module) -> Input | None:
    """What the paper of a model, or of one of its parts, says of its images; None where none does."""
    return next(filter(None, (input_of(type(part)) for part in (model, *model.children()))), None)


def _stem_patch(model: nn.Module) -> int:
    size: Any = getattr(getattr(model, "patch_embed", None), "patch_size", 4)
    return int(size[0] if isinstance(size, Sequence) else size)


def _model_name(model: nn.Module) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    return (config.get("architecture") if isinstance(config, dict) else None) or type(model).__name__


def _default_patch(name: str) -> int:
    found = re.search(r"patch(\d+)", name)
    if found:
        return int(found.group(1))
    card = models().get(name.split(".")[0])
    if card is not None and card.input is not None:
        return card.input.patch
    return 4 if name.startswith("swin") else 16


def _default_window(name: str) -> int:
    found = re.search(r"window(?:\d+to)?(\d+)", name)
    return int(found.group(1)) if found else 7


def _enlargement(size: tuple[int, int], target: tuple[int, ...]) -> float:
    return max(target[0] / size[0], target[1] / size[1])


def _distance(tokens: float) -> float:
    return abs(math.log(tokens / TOKENS))


def _up(side: int, patch: int) -> int:
    return math.ceil(side / patch) * patch


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _compact(size: tuple[int, int]) -> int | tuple[int, int]:
    return size[0] if size[0] == size[1] else size
