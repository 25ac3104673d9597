"""Feature recalibration distillation (FRD, SiT section 3.3): a slimmed student learns its dense model's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit.anatomy import OpenModel, open_model
from leanvit.anatomy.parts.slimming import reset_linear
from leanvit.data import Batch, Preprocess, keyed
from leanvit.errors import BadInput, Refused
from leanvit.tasks import Classification, Task
from leanvit.tasks.objectives import two_heads
from leanvit.training import Loss, Objective
from leanvit.training.parallel import is_sharded


class ReverseSlimming(nn.Module):
    """Reverse token slimming module (RTSM): (B, slots, C) -> (B, patches, C).

    An MLP over the tokens, of width 4 · patches, without a residual; then an MLP over the channels with one.
    """

    def __init__(self, slots: int, patches: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.mlp1 = Mlp(slots, 4 * patches, patches)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp2 = Mlp(width, 4 * width)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """As those of token slimming: linears from a normal of width 0.02 cut at +-2, biases 0."""
        for linear in (self.mlp1.fc1, self.mlp1.fc2, self.mlp2.fc1, self.mlp2.fc2):
            reset_linear(linear, generator)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp1(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp2(self.norm2(x))


class FeatureRecalibration(Objective):
    """L = base + token_weight · (1 / depth) Σ MSE(RTSM_i(student's tokens), teacher's tokens) + logit_weight · T² KL.

    Tokens are the patch tokens of the residual stream behind block i (the student's: behind the slimming that follows
    it), without a norm. RTSM_i is the identity where the student has as many as the teacher. `base` is cross-entropy
    (binary for multi-label data), KL is that of the teacher's softened distribution, as in `SoftDistillation`.

    The reverse modules are this objective's own parameters (`rtsm`): a group of their own, at `lr_scale` times the
    peak rate and the same least one, all of it decayed. The model runs block by block (`trace`), so `compile` has no
    effect on it.

    Args:
        student: opened, slimmed; what it is trained as.
        teacher: dense, of the same depth, width and image size; put in eval mode, run without gradient, never saved.
        rtsm: without reverse modules only blocks of equal token counts are compared; the sum is over these.

    Raises:
        Refused: a teacher of another depth, width or number of patches, or one that reduces tokens itself.
    """

    def __init__(
        self,
        student: OpenModel,
        teacher: nn.Module,
        *,
        teacher_preprocess: Preprocess,
        token_weight: float = 2.0,
        logit_weight: float = 2.0,
        temperature: float = 1.0,
        rtsm: bool = True,
        lr_scale: float = 5.0,
        label_smoothing: float = 0.0,
        task: Task | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.task = task = task or Classification()
        self.token_weight, self.logit_weight, self.lr_scale, self.seed = token_weight, logit_weight, lr_scale, seed
        self.logits: Any = task.distillation(
            teacher,
            preprocess=teacher_preprocess,
            alpha=0.5,  # the weights here are this objective's
            temperature=temperature,
            label_smoothing=label_smoothing,
        )
        self._teacher: tuple[Any] = (teacher,)
        self.depth = 1
        self.compared: tuple[int, ...] = ()
        self.rtsm = nn.ModuleDict()
        if not token_weight:
            return
        opened = check_pair(student, teacher)
        self._teacher, self.depth = (opened.eval(),), len(student.blocks)
        counts, given = token_counts(student), token_counts(opened)
        self.rtsm = reverse_modules(counts, given, int(student.embed_dim), seed=seed) if rtsm else self.rtsm  # type: ignore[arg-type]
        same = (i for i, (a, b) in enumerate(zip(counts, given, strict=True)) if a == b)
        self.compared = tuple(range(self.depth)) if rtsm else tuple(same)

    def extra_repr(self) -> str:
        weights = f"token_weight={self.token_weight}, logit_weight={self.logit_weight}, lr_scale={self.lr_scale}"
        return f"{weights}, compared={self.compared}, seed={self.seed}"

    def bind(self, model: nn.Module, preprocess: Preprocess) -> None:
        """Refuse a model that is not opened, or lies in shares (FSDP2), and what plain distillation refuses."""
        if not isinstance(model, OpenModel):
            raise BadInput(f"the student is a {type(model).__name__}; accepted: an opened model (open_model)")
        if is_sharded(model):
            raise BadInput(
                "parallel='fsdp2' is not accepted: sit's distillation reads tokens inside of the model; use ddp"
            )
        self.logits.bind(model, preprocess)

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """One group, all of it decayed, `lr_scale` times as fast; none without reverse modules."""
        params = list(self.rtsm.parameters())
        return [{"params": params, "weight_decay": weight_decay, "peak_scale": self.lr_scale}] if params else []

    def forward(self, model: Any, batch: Batch, step: int, context: Mapping[str, Any]) -> Loss:
        """Parts: `base`, `tokens` and `distillation`, each before its weight."""
        tap = frozenset(_name(i) for i in self.compared)
        logits, state = model.trace(batch.images, **{**context, "tap": tap | frozenset(context.get("tap", ()))})
        class_logits, distilled_logits = two_heads(logits)
        base = self.logits.base.of(class_logits, batch.targets)
        if not (self.token_weight or self.logit_weight):
            return Loss(base, {"base": base.detach()})
        taught, known = self.ask_teacher(batch.images, tap)
        divergence = self.logits.term(distilled_logits.float(), taught.float())
        distance = self.distance(_patches(state, self.compared), known, base)
        total = base + self.token_weight * distance + self.logit_weight * divergence
        parts = {"base": base, "tokens": distance, "distillation": divergence}
        return Loss(total, {name: part.detach() for name, part in parts.items()})

    @torch.no_grad()
    def ask_teacher(self, images: Tensor, tap: frozenset[str]) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, classes), and patch tokens (B, patches, C) behind each compared block."""
        if not tap:
            return self.logits.ask_teacher(images), []
        logits, state = self._teacher[0].to(images.device).trace(images, tap=tap)
        return logits, _patches(state, self.compared)

    def distance(self, student: Sequence[Tensor], teacher: Sequence[Tensor], like: Tensor) -> Tensor:
        """(1 / depth) times the sum of mean squared errors over the compared blocks, a float32 scalar."""
        total = torch.zeros_like(like, dtype=torch.float32)
        for i, tokens, known in zip(self.compared, student, teacher, strict=True):
            total = total + F.mse_loss(self.recalibrated(i, tokens, known.shape[1]).float(), known.float())
        return total / self.depth

    def recalibrated(self, block: int, tokens: Tensor, patches: int) -> Tensor:
        """The student's tokens behind a block as (B, patches, C). Raises `BadInput` where the image size changed."""
        if str(block) in self.rtsm:
            tokens = self.rtsm[str(block)](tokens)
        if tokens.shape[1] != patches:
            raise BadInput(
                f"the teacher has {patches} patch tokens behind block {block}, the student's make {tokens.shape[1]}: "
                "the reverse modules are built for one image size"
            )
        return tokens


def check_pair(student: OpenModel, teacher: nn.Module) -> OpenModel:
    """The teacher, opened. Raises `Refused` unless its tokens can be compared with the student's block by block."""
    opened = open_model(teacher)
    if opened.reduces_tokens:
        raise Refused(
            "sit compares tokens with a dense teacher's, and this teacher reduces tokens: give its dense root"
        )
    facts: dict[str, list[Any]] = {
        "blocks": [len(model.blocks) for model in (student, opened)],
        "channels": [model.embed_dim for model in (student, opened)],
        "patches": [model.patches() for model in (student, opened)],
    }
    for what, (ours, theirs) in facts.items():
        if ours != theirs:
            raise Refused(
                f"sit compares tokens block by block, and the teacher has {theirs} {what}, the model {ours}: give its "
                "dense root, or token_weight=0"
            )
    return opened


def reverse_modules(slots: Sequence[int], patches: Sequence[int], width: int, *, seed: int = 0) -> nn.ModuleDict:
    """A reverse module for each block (by its number) behind which student and teacher differ in their counts."""
    made = nn.ModuleDict()
    for i, (few, all_) in enumerate(zip(slots, patches, strict=True)):
        if few != all_:
            module = ReverseSlimming(few, all_, width)
            module.reset_parameters(keyed.generator(seed, "rtsm", i))
            made[str(i)] = module
    return made


@torch.no_grad()
def token_counts(model: OpenModel) -> list[int]:
    """Patch tokens behind each block, steps behind it included, of an image of the model's own size."""
    training = model.training
    like = next(model.parameters())
    images = torch.zeros(1, *model.input_size(), device=like.device, dtype=like.dtype)
    _, state = model.eval().trace(images, tap=frozenset(_name(i) for i in range(len(model.blocks))))
    model.train(training)
    return [tokens.shape[1] for tokens in _patches(state, range(len(model.blocks)))]


def _patches(state: Any, blocks: Sequence[int]) -> list[Tensor]:
    return [state.taps[_name(i)][:, state.num_prefix :] for i in blocks]


def _name(block: int) -> str:
    return f"blocks.{block}"
