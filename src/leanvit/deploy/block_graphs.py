"""Models of other widths as a runtime runs them: halves of blocks in a stack, what is outside the blocks, whole models.

Their weights are random: times do not depend on them. At int8 the quantizers get their ranges from one random batch.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenModel, OpenViT
from leanvit.anatomy.arithmetic.quant_ops import ObserverOps, QuantOps
from leanvit.anatomy.arithmetic.quantizers import ActQuantizer, SignedActQuantizer, WeightQuantizer
from leanvit.anatomy.parts.blocks import Mlp
from leanvit.anatomy.state import State
from leanvit.anatomy.surgery.widths import set_attention_widths, set_embed_width, set_mlp_width
from leanvit.deploy.runtimes import Options, open_runtime, require_runtime, runtime_module
from leanvit.deploy.tracing import trace
from leanvit.errors import Refused, unknown
from leanvit.measure.latency_table import BlockShape

Call = Callable[[Tensor], Any]


@dataclass(frozen=True)
class RuntimeSpec:
    """How a runtime's name is run: the backend (None: torch itself), the precision of what is float, int8 or not."""

    backend: str | None
    float_precision: str = "f32"
    rounded: bool = False

    @property
    def precision(self) -> str:
        return "int8" if self.rounded else self.float_precision


RUNTIME_SPECS = {
    "torch": RuntimeSpec(None),
    "openvino": RuntimeSpec("openvino"),
    "openvino-bf16": RuntimeSpec("openvino", "bf16"),
    "openvino-int8": RuntimeSpec("openvino", rounded=True),
    "onnx": RuntimeSpec("onnx"),
    "onnx-int8": RuntimeSpec("onnx", rounded=True),
}


def runtime_spec(runtime: str) -> RuntimeSpec:
    """Raises `BadInput` (no such runtime), `MissingExtra` (not installed), `Refused` (this processor lacks it)."""
    if runtime not in RUNTIME_SPECS:
        raise unknown("runtime", str(runtime), RUNTIME_SPECS)
    spec = RUNTIME_SPECS[runtime]
    if spec.backend is not None:
        require_runtime(spec.backend)
    if spec.float_precision == "bf16":
        from leanvit.deploy.openvino import bf16_runs

        if not bf16_runs():
            raise Refused(f"{runtime}: this processor does not multiply bf16")
    return spec


def require_plain(model: OpenModel) -> OpenViT:
    """Raises `Refused` unless a table can be made for this model."""
    if not isinstance(model, OpenModel):
        raise Refused(f"a latency table is made for a model opened by leanvit.open_model, not {type(model).__name__}")
    what = "a latency table is made for a plain pre-norm ViT"
    if not model.plain:
        raise Refused(f"{what}; this is a {type(model).__name__}: its blocks differ in more than widths")
    for block in model.blocks:
        if not block.plain or not block.attn.plain:
            raise Refused(f"{what}; {block.name} is not a plain block")
        if not isinstance(block.mlp, Mlp):
            raise Refused(f"{what}; the MLP of {block.name} is a {type(block.mlp).__name__}")
    if getattr(model, "attn_pool", None) is not None or not len(model.blocks):
        raise Refused(f"{what}, with blocks and without attention pooling")
    if model.exits is not None:
        raise Refused(
            f"{what}; this one has early exits ({model.exits.source}): make the table of the model before them"
        )
    if not model.ops.float_weights:
        raise Refused("a latency table is made for the float model: give it before int8, and name an int8 runtime")
    return cast(OpenViT, model)


@torch.no_grad()
def block_shapes(model: OpenViT) -> list[BlockShape]:
    """The widths and sequence lengths of a model's blocks, seen in one run on one image of its own size."""
    seen: list[int] = []
    hooks = [b.attn.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1])) for b in model.blocks]
    like = next(model.parameters())
    try:
        _, state = model.trace(torch.zeros(1, *model.input_size(), device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return [
        BlockShape(tokens, b.attn.heads, b.attn.qk_dim, b.attn.v_dim, b.mlp.fc2.in_features, attn_tokens=before)
        for b, tokens, before in zip(model.blocks, state.tokens, seen, strict=True)
    ]


class HalfBlocks(nn.Module):
    """The attention halves, or the MLP halves, of a model's blocks one after another: (B, N, C) -> (B, C).

    Without blocks only the mean over tokens is left, which keeps the output small.
    """

    def __init__(self, model: OpenViT, which: str) -> None:
        super().__init__()
        self.model, self.which = model, which

    def forward(self, x: Tensor, ops: Any = None) -> Tensor:
        state = State(
            ops=ops or self.model.ops, grid=self.model.patch_embed.grid_size, num_prefix=self.model.num_prefix_tokens
        )
        for block in self.model.blocks:
            if self.which == "attention":
                x, state = block.attended(x, state, frozenset())
            else:
                x, state = block.transformed(x, state)
        return x.mean(dim=1)


def skeleton(model: OpenViT, depth: int) -> OpenViT:
    """A copy of a model with its first `depth` blocks, in eval mode, without what methods put into them."""
    made = copied(model, depth)
    for block in made.blocks:
        block.add_slots()
        block.attn.terms = ()
    return made


def copied(model: OpenViT, depth: int | None = None) -> OpenViT:
    """A copy of a model with its first `depth` blocks (None: all) in eval mode."""
    blocks = nn.ModuleList(copy.deepcopy(block) for block in model.blocks[:depth])
    return copy.deepcopy(model, {id(model.blocks): blocks, id(model._source): (None,)}).eval()


def half_blocks(
    model: OpenViT, *, half: str, embed: int, heads: int = 1, qk: int = 1, v: int = 1, mlp: int = 1
) -> HalfBlocks:
    """The halves of copies of a model's blocks, at these widths. The other half is made as small as it can be."""
    made = copy.deepcopy(model)
    for block in made.blocks:
        set_attention_widths(block.attn, heads=heads, qk_dim=qk, v_dim=v)
        set_mlp_width(block.mlp, mlp)
    if embed != made.embed_dim:
        set_embed_width(made, embed)
    return HalfBlocks(randomised(made), half).eval()


def reshaped(model: OpenViT, embed: int, shapes: Sequence[BlockShape]) -> OpenViT:
    """A copy of a whole model whose blocks have these widths (the sequence lengths follow from the model)."""
    made = skeleton(model, len(shapes))
    for block, shape in zip(made.blocks, shapes, strict=True):
        set_attention_widths(block.attn, heads=shape.heads, qk_dim=shape.qk, v_dim=shape.v)
        set_mlp_width(block.mlp, shape.mlp)
    if embed != made.embed_dim:
        set_embed_width(made, embed)
    return randomised(made)


@torch.no_grad()
def randomised(model: OpenViT) -> OpenViT:
    """Fill every matrix with noise that keeps activations of order one: zeros would make all scores alike."""
    keyed = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.ndim > 1:
            noise = torch.randn(p.shape, generator=keyed) / p[0].numel() ** 0.5
            p.copy_(noise)
    return model


@torch.no_grad()
def rounded(runs: Any, model: OpenViT, x: Tensor) -> None:
    """Make the arithmetic of a model int8, as `leanvit.quantize.int8.method` does, with the ranges of `runs(x)`."""
    observer = ObserverOps()
    runs(x, ops=observer)
    quantizers: dict[str, dict[str, nn.Module]] = {site: {} for site in observer.kinds}
    for (site, operand), seen in observer.seen.items():
        signed = observer.kinds[site] == "matmul" and seen.low < 0
        quantizer = SignedActQuantizer() if signed else ActQuantizer()
        quantizer.set_range(seen.low, seen.high)
        quantizers[site][operand] = quantizer
    for site, module in observer.modules.items():
        weight: Any = module.weight
        quantizers[site]["weight"] = held = WeightQuantizer(tuple(weight.shape))
        held.set_weight(weight)
        module.register_parameter("weight", None)
    model.set_ops(QuantOps(quantizers).eval())


def opened(runs: Any, model: OpenViT, x: Tensor, spec: RuntimeSpec, threads: int | None) -> Call:
    """A callable of tensors like `x` that runs `runs` (whose operators are `model`'s) in a runtime, at x's batch."""
    if spec.backend is None:
        return runs
    if spec.rounded:
        rounded(runs, model, x)
    with torch.no_grad():
        program = trace(runs, tuple(x.shape[1:]), len(x))
    with tempfile.TemporaryDirectory(prefix="leanvit-") as folder:
        runtime_module(spec.backend).write_files(program, Path(folder))
        options = Options(precision=spec.float_precision, threads=threads)
        call = open_runtime(spec.backend, Path(folder), options)
    return lambda images: call(images.numpy())


@contextmanager
def torch_threads(spec: RuntimeSpec, threads: int | None) -> Iterator[None]:
    """Torch's own number of threads, where torch runs the graphs."""
    before = torch.get_num_threads()
    if spec.backend is None and threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
