"""Which token holds each patch of some real images, after every block that reduced tokens. Kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from leanvit.errors import BadInput, CheckpointError
from leanvit.files import read_strict, write_atomic
from leanvit.runs.layout import TOKENS
from leanvit.runs.thumbnails import encoded_pixels

if TYPE_CHECKING:
    from leanvit.anatomy import OpenModel
    from leanvit.data import AnyDataset, Preprocess

FORMAT = 2
IMAGES = 6
MOST_TOKENS = 10**7
SIDE = 224  # pixels of a picture's longer side


@dataclass(frozen=True)
class Picture:
    """One image as the model saw it, before normalisation."""

    key: str
    target: int
    answer: int
    image: str  # base64 of PNG or JPEG


@dataclass(frozen=True)
class Reduction:
    """Where patches are after a block that reduced tokens: `owners[image][patch]` is a token's index, -1: dropped."""

    block: int
    source: str  # slug of the method
    tokens: int  # sequence length after the block
    owners: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TokenMaps:
    """Token counts of a model, and where the patches of some images went."""

    name: str
    grid: tuple[int, int]  # patches (rows, columns)
    num_prefix: int
    tokens: tuple[int, ...]  # sequence length in each block's MLP
    reductions: tuple[Reduction, ...]
    pictures: tuple[Picture, ...]
    format: int = FORMAT

    # How pydantic reads the JSON, nested dataclasses included.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "extra": "forbid"}

    def __post_init__(self) -> None:
        numbers = (*self.grid, self.num_prefix, *self.tokens, *(r.tokens for r in self.reductions))
        if min(self.grid) < 1 or not all(0 <= n <= MOST_TOKENS for n in numbers):
            raise BadInput(f"token maps count from 0 to {MOST_TOKENS} tokens, in a grid of 1 and more")
        patches = self.grid[0] * self.grid[1]
        for reduction in self.reductions:
            if len(reduction.owners) != len(self.pictures) or any(len(o) != patches for o in reduction.owners):
                raise BadInput(
                    f"token maps of block {reduction.block} need {len(self.pictures)} images of {patches} patches"
                )

    def to_json(self) -> str:
        """JSON text; `from_json` gives equal maps back."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> TokenMaps:
        """Read `to_json`'s text, or format 1's, strictly. Raises `CheckpointError`."""
        try:
            maps = read_strict(cls, _newest(text), "not token maps")
        except BadInput as error:
            raise CheckpointError(f"not token maps: {error}") from None
        if maps.format != FORMAT:
            raise CheckpointError(f"token maps of format {maps.format}; this leanvit reads format {FORMAT}")
        return maps


def trace_tokens(
    model: OpenModel, dataset: AnyDataset, preprocess: Preprocess, *, name: str, count: int = IMAGES
) -> TokenMaps:
    """Run `count` images, even over the classes, block by block and note where every patch goes.

    The model is run in eval mode, without gradients. A model that reduces nothing, or that tells no classes of images
    apart, gets its token counts only; so does one on data without labels. Of a model of parts the tokens are those of
    its main part.
    """
    import torch

    from leanvit.anatomy.composite import Composite
    from leanvit.data import loader
    from leanvit.measure.runners import as_taken

    chosen = dataset.limited(count).cached()  # read once: what cannot be read is left out here and in the pictures
    batch = next(iter(loader(chosen, preprocess, batch_size=len(chosen))))
    judged = model.classifies and dataset.labelled
    training = model.training
    model.eval()
    with torch.inference_mode():
        x = as_taken(model, batch.images.to(next(model.parameters()).device))
        state = model.start(x, trace=True)
        tokens, state = model.embed(x, state)
        length, grid, reductions = tokens.shape[1], state.grid, []
        for i, block in enumerate(model.blocks):
            tokens, state = model.run(tokens, state, i, i + 1)
            if tokens.shape[1] != length:
                length = tokens.shape[1]
                owners = state.owners(len(batch), tokens.device)
                reductions.append(Reduction(i, _source(block), length, _tuples(owners.tolist())))
        if judged and isinstance(model, Composite):  # whose outputs come of its wiring
            logits = model(x)
        elif judged:
            logits, state = model.classify(tokens, state)
    model.train(training)
    answers = logits.argmax(dim=-1).tolist() if judged else []
    reductions = reductions if judged else []
    return TokenMaps(
        name=name,
        grid=(grid[0], grid[1]),  # of the patches; a hierarchical net's own grid gets coarser
        num_prefix=state.num_prefix,
        tokens=state.tokens,
        reductions=tuple(reductions),
        pictures=_pictures(chosen, preprocess, dict(zip(batch.keys, answers, strict=True))) if reductions else (),
    )


def keep_tokens(folder: Path, model: OpenModel, dataset: AnyDataset, preprocess: Preprocess, *, name: str) -> None:
    """Write the maps of a model, as `trace_tokens` gives them, into its run folder."""
    maps = trace_tokens(model, dataset, preprocess, name=name)
    write_atomic(folder / TOKENS, maps.to_json().encode())


def _source(block: Any) -> str:
    sources = dict.fromkeys(step.source for step in block.steps() if step.reduces and step.source)
    return " + ".join(sources) or block.source or "patch merging"  # between the stages of a hierarchical net


def _tuples(rows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in rows)


def _shown_class(target: Any) -> int:
    """The class; of several labels the first (0 if there is none)."""
    return target if isinstance(target, int) else int(target.argmax())


def _pictures(dataset: AnyDataset, preprocess: Preprocess, answers: Mapping[str, int]) -> tuple[Picture, ...]:
    transform = preprocess.u8_transform()
    return tuple(
        Picture(
            sample.key,
            _shown_class(sample.target),
            answers[sample.key],
            encoded_pixels(transform(sample.image), side=SIDE),
        )
        for sample in dataset
        if sample.key in answers  # the loader leaves out what preprocessing cannot take
    )


def _newest(text: str | bytes) -> str | bytes:
    """Format 1, which called an image `png`, as format 2; any other text as it is."""
    try:
        content = json.loads(text)
        if content["format"] != 1:
            return text
        named = [{"image" if key == "png" else key: value for key, value in p.items()} for p in content["pictures"]]
        return json.dumps({**content, "format": FORMAT, "pictures": named})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return text
