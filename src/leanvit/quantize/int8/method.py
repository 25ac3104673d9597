"""Static W8A8: calibration, quantizers in place, and the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from leanvit.anatomy import OpenModel
from leanvit.anatomy.arithmetic.quant_ops import OPERANDS, ObserverOps, QuantOps
from leanvit.anatomy.arithmetic.quantizers import RANGES, ActQuantizer, SignedActQuantizer, WeightQuantizer, range_rule
from leanvit.anatomy.sparse import is_sparse, mark_sparse
from leanvit.errors import BadInput, Refused, nearest
from leanvit.knobs import DISTINCT, Choice, Count, Words, check, check_fields, knob
from leanvit.recipe.learning import Data, whole_of
from leanvit.recipe.protocol import Structure
from leanvit.recipe.registry import method

BITS = 8
_ACTIVATION: dict[str, Callable[[], nn.Module]] = {"u8": ActQuantizer, "i8": SignedActQuantizer}


@dataclass
class Calibration:
    """What `learn` hands to `fold` on the model itself: ranges by (site, operand), float weights by site."""

    ranges: dict[tuple[str, str], tuple[float, float]]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class _Site:
    site: str
    kind: Annotated[str, Choice(OPERANDS)]
    operands: Mapping[str, Annotated[str, Choice(_ACTIVATION)]]

    def __post_init__(self) -> None:
        if {*self.operands} != {*OPERANDS[self.kind]}:
            given = ", ".join(self.operands) or "none"
            raise BadInput(f"operands of {self.site!r} are {given}; accepted: {', '.join(OPERANDS[self.kind])}")


@dataclass(frozen=True)
class _Structure:
    sites: tuple[_Site, ...]

    def __post_init__(self) -> None:
        check("site", [row.site for row in self.sites], Annotated[tuple[str, ...], DISTINCT])


_Patterns = Annotated[tuple[str, ...], Words("a list of patterns of site names, such as head, blocks.0.* or *.fc2")]


@method("int8")
@dataclass(frozen=True)
class Int8:
    """Knobs of the method."""

    calibration: Annotated[str, Choice(RANGES)] = knob("percentile", "how an activation's range is chosen")
    images: Count = knob(256, "calibration images")
    products: bool = knob(True, "round the operands of q·kᵀ and weights·v too")
    skip: _Patterns = knob((), "sites kept float", example=("head",))

    structure_model: ClassVar[type] = _Structure
    requires: ClassVar[frozenset[str]] = frozenset({"float"})
    destroys: ClassVar[frozenset[str]] = frozenset({"float"})
    needs_data: ClassVar[bool] = True
    trainable_after: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check_fits(self, model: OpenModel, data: Data | None) -> None:
        """Raise `BadInput` for a `skip` pattern that fits no site."""
        if self.skip:
            _without(dict.fromkeys((*model.sites(), *model.products()), ""), self.skip)

    def learn(self, model: OpenModel, data: Data) -> Structure:
        """Calibrate. Returns {"sites": [{"site", "kind", "operands": {name: "u8" or "i8"}}, ...]}.

        u8 is affine unsigned, i8 symmetric signed. An operand of a product is u8 only if it was never negative (the
        softmax): int8 kernels of attention know no zero point.

        Raises:
            BadInput: a `skip` pattern that fits no site, or a data set without images.
            Refused: a site whose activations are not finite (named).
        """
        observed = observe(model, data, self.images, products=self.products)
        kept = _without(observed.kinds, self.skip)
        rule = range_rule(self.calibration)
        ranges = {
            key: rule(seen.sample(), seen.low, seen.high, BITS)
            for key, seen in observed.seen.items()
            if key[0] in kept and _finite(key, seen.low, seen.high)
        }
        weights = {site: _weight(module).detach() for site, module in observed.modules.items() if site in kept}
        model.calibration = Calibration(ranges, weights)  # type: ignore[assignment]
        return {
            "sites": [
                {"site": site, "kind": kind, "operands": _formats(site, kind, ranges)} for site, kind in kept.items()
            ]
        }

    def shape(self, model: OpenModel, structure: Structure) -> None:
        """Install empty quantizers and take the float weights of quantized modules away."""
        modules = model.sites()
        quantizers: dict[str, dict[str, nn.Module]] = {}
        for row in structure["sites"]:
            site, operands = row["site"], row["operands"]
            quantizers[site] = {name: _ACTIVATION[form]() for name, form in operands.items() if name != "weight"}
            if "weight" in operands:
                if site not in modules:
                    raise BadInput(
                        f"the plan quantizes site {site!r}, which this model lacks: {nearest(site, modules)}"
                    )
                weight = _weight(modules[site])
                rounded = WeightQuantizer(tuple(weight.shape))
                if is_sparse(modules[site], "weight"):  # zeros stay zeros
                    mark_sparse(rounded, "values")
                quantizers[site]["weight"] = rounded
                modules[site].register_parameter("weight", None)
        device = next(model.parameters()).device
        ops = QuantOps(quantizers).to(device)
        model.set_ops(ops.train(model.training))

    def fold(self, model: OpenModel, structure: Structure, before: Mapping[str, Tensor]) -> None:
        """Fill the quantizers from `model.calibration`. Raises `Refused` if `learn` has not run on this model."""
        calibration = vars(model).pop("calibration", None)
        if calibration is None:
            raise Refused("int8 has no calibration to fold: learn(model, data) must run first, on the same model")
        ops: QuantOps = model.ops
        for (site, operand), (low, high) in calibration.ranges.items():
            ops.at(site)[operand].set_range(low, high)
        for site, weight in calibration.weights.items():
            ops.at(site)["weight"].set_weight(weight)

    def tied_to(self, structure: Structure) -> dict[str, str]:
        """The whole make: rounded weights are neither resized nor trained, and ranges were observed in that model."""
        return {"make": "its weights are rounded, its ranges were calibrated on it"} if structure["sites"] else {}

    def achieved(self, model: OpenModel, structure: Structure) -> dict[str, Any]:
        """{"quantized": sites rounded, "float": sites of weights left float, "weight_bits": mean over all weights}."""
        rows = describe(model)
        counts = {kind: sum(r["bits"] == kind for r in rows if r["operand"] == "weight") for kind in (BITS, 32)}
        bits = [(r["bits"], r["elements"]) for r in rows if r["operand"] == "weight"]
        total = sum(n for _, n in bits)
        mean = sum(b * n for b, n in bits) / total
        return {"quantized": counts[BITS], "float": counts[32], "weight_bits": round(mean, 3)}

    def check(self, model: OpenModel, structure: Structure) -> list[str]:
        """Operands that the plan rounds and the model does not."""
        rounded = {(row["site"], row["operand"]) for row in describe(model) if row["bits"] == BITS}
        planned = [(row["site"], operand) for row in structure["sites"] for operand in row["operands"]]
        left = [one for one in planned if one not in rounded]
        if not left:
            return []
        return [f"{len(left)} of {len(planned)} operands are not in {BITS} bits, first {left[0][1]} of {left[0][0]}"]


@torch.no_grad()
def observe(model: OpenModel, data: Data, images: int, *, products: bool) -> ObserverOps:
    """Run training images through the model, or the whole around it, in eval mode, observing every site of the model,
    behind every early exit too."""
    observer = ObserverOps(products=products)
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with model.whole_depth(), model.using(observer):
            for batch in data.images(images):
                whole_of(model, data)(batch.to(device))
    finally:
        model.train(training)
    if not observer.kinds:
        raise BadInput("calibration saw no images: the data set is empty")
    return observer


def describe(model: OpenModel) -> list[dict[str, Any]]:
    """What is rounded how: one row for each operand of each site.

    Keys: `site`, `kind` (conv, linear, matmul), `operand`, `bits` (32 where float), `scheme`, `granularity`, `elements`
    (of a weight, else None). Float sites of weights are listed too, and float products of a traced model; what is never
    a site (norms, softmax, GELU, residual sums) is float.
    """
    ops = model.ops if isinstance(model.ops, QuantOps) else QuantOps({})
    rows: list[dict[str, Any]] = []
    for site, module in model.sites().items():
        kind = "linear" if isinstance(module, nn.Linear) else "conv"
        quantizers = dict(ops.at(site) or {})
        rows += [_row(site, kind, o, quantizers.get(o), getattr(module, "weight", None)) for o in OPERANDS[kind]]
    products = {site: dict(ops.at(site)) for site in ops.names() if "a" in ops.at(site)}
    for site in dict.fromkeys((*model.products(), *products)):
        quantizers = products.get(site, {})
        rows += [_row(site, "matmul", operand, quantizers.get(operand), None) for operand in ("a", "b")]
    return rows


def _row(site: str, kind: str, operand: str, q: Any, weight: Tensor | None) -> dict[str, Any]:
    stored = getattr(q, "values", weight) if operand == "weight" else None
    return {
        "site": site,
        "kind": kind,
        "operand": operand,
        "bits": 32 if q is None else q.bits,
        "scheme": "float" if q is None else q.scheme,
        "granularity": "" if q is None else q.granularity,
        "elements": None if stored is None else stored.numel(),
    }


def _formats(site: str, kind: str, ranges: dict[tuple[str, str], tuple[float, float]]) -> dict[str, str]:
    if kind != "matmul":
        return {"input": "u8", "weight": "i8"}
    return {operand: "i8" if ranges[site, operand][0] < 0 else "u8" for operand in OPERANDS[kind]}


def _without(kinds: dict[str, str], skip: tuple[str, ...]) -> dict[str, str]:
    for pattern in skip:
        if not any(fnmatchcase(site, pattern) for site in kinds):
            raise BadInput(f"skip pattern {pattern!r} fits no site: {nearest(pattern, kinds)}")
    return {site: kind for site, kind in kinds.items() if not any(fnmatchcase(site, p) for p in skip)}


def _finite(key: tuple[str, str], low: float, high: float) -> bool:
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise Refused(f"calibration: {key[1]!r} of {key[0]} took values from {low} to {high}; it cannot be quantized")
    return True


def _weight(module: nn.Module) -> Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise Refused("a weight to quantize is gone: the model is quantized already")
    return weight
