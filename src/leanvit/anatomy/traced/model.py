"""The second level: a model opened as a graph of operations instead of blocks (hybrids of convolution and attention).

Nothing here knows an architecture. timm's own forward is recorded (`traced_graph.py`) once for each kind of call
(which method, image size, dtype, modes of its modules) and replayed through an op set (`traced_run.py`), so quantizers
and other arithmetic reach every convolution, linear, product, norm, softmax, activation and sum, each by a site that
the graph gives. There are no blocks: methods that work on tokens do not apply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leanvit.anatomy.arithmetic.ops import Ops
from leanvit.anatomy.model import OpenModel
from leanvit.anatomy.state import State
from leanvit.anatomy.traced.graph import Graph, record
from leanvit.anatomy.traced.running import run_graph
from leanvit.errors import BadInput, LeanvitError, Refused

COPIED = (  # public attributes that timm's tools and users read
    "num_classes",
    "in_chans",
    "img_size",
    "global_pool",
    "num_features",
    "head_hidden_size",
    "embed_dim",
    "feature_info",
    "pretrained_cfg",
    "default_cfg",
    "_model_args",
    "distilled_training",
)
SHARED = (  # those that may change while the model is open
    "num_classes",
    "global_pool",
    "num_features",
    "head_hidden_size",
    "distilled_training",
)


REACHED_BY_PATH = (  # names that a child may have, too: as attributes they tell what methods ask of any model
    "blocks",
    "block",
    "grid",
    "plain",
    "windowed",
    "isotropic",
    "hierarchical",
)


class OpenTraced(OpenModel):
    """A model run as its recorded graph. Children, parameters and buffers are those of the timm model."""

    family = "traced"
    blocks = ()  # of the model's parts; a child of this name is reached by its path
    PROBES = (1, 3)  # the graph must hold for any batch

    def __init__(self, *, source: Any, size: tuple[int, int, int]) -> None:
        """`source`: the timm model, whose forward is recorded. `size`: (C, H, W) of its images."""
        attributes = {key: getattr(source, key) for key in COPIED if key in vars(source)}
        super().__init__(attributes=attributes, source=source)
        self.num_prefix_tokens = 0
        self.grad_checkpointing = False
        self._size = size
        self._graphs: dict[Any, Graph] = {}
        self._adopt(source)
        self.training = source.training

    # --- running -----------------------------------------------------------------

    def start(self, images: Any, **context: Any) -> State:
        """The state at the door. There is no grid of patches."""
        ops = context.pop("ops", None) or self.ops
        return State(ops=ops, grid=(0, 0), num_prefix=0, **context)

    def embed(self, images: Any, state: State) -> tuple[Any, State]:
        """Nothing: the whole graph runs in `classify`."""
        return images, state

    def run(self, x: Any, state: State, start: int = 0, stop: int | None = None) -> tuple[Any, State]:
        """Nothing: there are no blocks."""
        return x, state

    def classify(self, x: Any, state: State) -> tuple[Any, State]:
        """The graph: images (B, C, H, W) to logits (B, classes). Raises `BadInput` for a size that it cannot take."""
        return self._call("forward", x, state.ops), state

    def trace_maps(
        self, images: Any, indices: int | Sequence[int] | None = None, *, norm: bool = False, **context: Any
    ) -> tuple[tuple[Any, ...], State]:
        """Maps as timm's class gives them, recorded like its forward; and the state, which knows nothing of them."""
        options = {"norm": norm, "stop_early": True, "output_fmt": "NCHW", "intermediates_only": True}
        taken, state = self._taken_maps(indices), self.start(images, **context)
        return tuple(self._call("forward_intermediates", images, state.ops, indices=taken, **options)), state

    def _map_levels(self) -> list[tuple[int, tuple[int, int]]]:
        stages = getattr(self, "feature_info", None) if hasattr(self.source, "forward_intermediates") else None
        return [(int(row["num_chs"]), (int(row["reduction"]),) * 2) for row in stages or ()]

    def graph(self, method: str, x: Any, kwargs: Mapping[str, Any] | None = None) -> Graph:
        """The recorded graph of `method(x, **kwargs)` in the model's present modes."""
        kwargs = dict(kwargs or {})
        shape = tuple(int(n) for n in x.shape[1:])
        kind = x.device.type
        amp = kind != "meta" and torch.is_autocast_enabled(kind)
        key = (method, repr(kwargs), shape, x.dtype, x.device, amp, self._modes())
        if key not in self._graphs:
            self._graphs[key] = self._recorded(method, x, kwargs)
        return self._graphs[key]

    def retrace(self) -> None:
        """Forget the recorded graphs: after surgery that changed widths which timm's forward knows as numbers."""
        self._graphs.clear()

    def _call(self, method: str, x: Any, ops: Ops, **kwargs: Any) -> Any:
        return run_graph(self.graph(method, x, kwargs), self, ops, x)

    def _recorded(self, method: str, x: Tensor, kwargs: Mapping[str, Any]) -> Graph:
        shape = tuple(int(n) for n in x.shape[1:])
        try:
            return record(self.synchronised(), method, x, kwargs)
        except LeanvitError:
            raise
        except Exception as error:  # timm's own assertion, or a shape that does not fit
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if method in ("forward", "forward_intermediates") and shape != self._size:
                raise BadInput(f"images are {_times(shape)}, the model takes {_times(self._size)}: {reason}") from error
            raise Refused(f"{method} of {type(self.source).__name__} cannot be recorded: {reason}") from error

    def _modes(self) -> tuple[Any, ...]:
        """What a forward may branch on: which modules there are, each one's mode, distilled training."""
        modules = [m for name, child in self.named_children() if name != "ops" for m in child.modules()]
        modes = tuple((type(m), m.training) for m in modules)
        return (self.training, getattr(self, "distilled_training", False), modes)

    # --- the timm model beneath ---------------------------------------------------

    @property
    def source(self) -> Any:
        """The timm model, which shares every child."""
        return self._source[0]

    def synchronised(self) -> Any:
        """The timm model with this one's children, tensors, modes and settings."""
        source = self.source
        for name in source._modules:
            source._modules[name] = self._modules[name]
        for table in ("_parameters", "_buffers"):
            for name in getattr(source, table):
                getattr(source, table)[name] = getattr(self, table)[name]
        for key in SHARED:
            if key in vars(source):
                setattr(source, key, getattr(self, key))
        source.training = self.training
        return source

    def _adopt(self, source: Any) -> None:
        for name, child in source.named_children():
            if name not in REACHED_BY_PATH:
                self._refuse_taken(name)
            self._modules[name] = child
        for name, p in source._parameters.items():
            self._refuse_taken(name)
            self.register_parameter(name, p)
        for name, b in source._buffers.items():
            self._refuse_taken(name)
            self.register_buffer(name, b, persistent=name not in source._non_persistent_buffers_set)

    def _refuse_taken(self, name: str) -> None:
        if name not in self._modules and (hasattr(type(self), name) or name in vars(self)):
            raise Refused(f"the model has a part called {name!r}, a name that an opened model uses itself")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raises `Refused`: a graph of single operations has no blocks to run again."""
        if enable:
            raise Refused("gradient checkpointing runs blocks again, and a traced model has none")

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a path. Children are looked up as children: those of `REACHED_BY_PATH` are no attributes."""
        first, _, rest = target.partition(".")
        if first not in self._modules:
            return super().get_submodule(target)
        child: Any = self._modules[first]
        return child.get_submodule(rest)

    # --- what a timm model offers ------------------------------------------------

    def forward_features(self, images: Tensor) -> Any:
        """The feature map or tokens before the head, as timm defines them."""
        return self._call("forward_features", images, self.ops)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Pool and classify the result of `forward_features`."""
        return self._call("forward_head", x, self.ops, pre_logits=pre_logits)

    def forward_intermediates(self, x: Tensor, indices: int | list[int] | None = None, **options: Any) -> Any:
        """Feature maps of some stages, as timm defines them for this architecture (and its options)."""
        if not hasattr(self.source, "forward_intermediates"):
            raise Refused(f"timm's {type(self.source).__name__} has no forward_intermediates")
        return self._call("forward_intermediates", x, self.ops, indices=indices, **options)

    def get_classifier(self) -> Any:
        return self.synchronised().get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, randomly initialised classifier; 0 classes: none."""
        source, like = self.synchronised(), next(self.parameters())
        source.reset_classifier(num_classes, global_pool)
        self._adopt(source)
        for name in source._modules:
            self.get_submodule(name).to(device=like.device, dtype=like.dtype)
        for key in SHARED:
            if key in vars(source):
                setattr(self, key, getattr(source, key))
        self.classes = ()
        self.train(self.training)

    def set_distilled_training(self, enable: bool = True) -> None:
        if not hasattr(self, "distilled_training"):
            raise Refused(f"{type(self.source).__name__} has no distillation head")
        self.distilled_training = enable

    def no_weight_decay(self) -> set[str]:
        decays = getattr(self.source, "no_weight_decay", None)
        return set(decays()) if decays else set()

    def lr_scales(self) -> dict[str, float]:
        """Factors on the learning rate by parameter, where the architecture has some."""
        scales = getattr(self.source, "lr_scales", None)
        return dict(scales()) if scales else {}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: timm's."""
        return self.source.group_matcher(coarse=coarse)

    def layer_ids(self) -> dict[str, int]:
        """Layers by parameter, where the architecture states its own (`training.layer_groups`)."""
        states = getattr(self.source, "layer_ids", None)
        return dict(states()) if states else {}

    # --- what methods and the recipe use -----------------------------------------

    def traits(self) -> frozenset[str]:
        """As every model's, without a grid: what there is of tokens lies inside the graph."""
        return super().traits() - {"full_grid", "class_token"}

    def grid(self) -> tuple[int, int]:
        """Raises `Refused`: what there is of patches lies inside the graph."""
        raise Refused("a traced model has no grid of patches of its own")

    def sites(self) -> dict[str, nn.Module]:
        """Every convolution and linear that the graph runs, by site."""
        return {s.site: self.get_submodule(s.target) for s in self._steps() if s.kind in ("conv", "linear")}

    def products(self) -> list[str]:
        """Sites of every product of two computed values; fused attention counts as its two."""
        found = []
        for step in self._steps():
            if step.kind == "matmul":
                found.append(step.site)
            elif step.kind == "attention":
                found += [f"{step.site}.matmul1", f"{step.site}.matmul2"]
        return found

    def _steps(self) -> Iterator[Any]:
        like = next(p for p in self.parameters() if p.is_floating_point())
        probe = torch.empty(1, *self.probe_size(), dtype=like.dtype, device=like.device)
        yield from self.graph("forward", probe).steps

    def make(self) -> dict[str, Any]:
        return super().make() | {key: getattr(self, key) for key in ("global_pool",) if key in vars(self)}

    def input_size(self) -> tuple[int, int, int]:
        return self._size


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
