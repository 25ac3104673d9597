"""Golden cases of DCT-HistoTransformer: the transform (there is no official code to compare the network with)."""

from __future__ import annotations

from torch import Tensor

from leanvit.backbones.dct_histo.dct import SeparableMap
from parity.cases import Case, handler


@handler("dct_histo", "dct2")
def dct2(case: Case) -> None:
    grid, k = (case.spec["H"], case.spec["W"]), case.spec["k"]
    x, output = case.part("input")["x"], case.part("output")
    low = mapped(SeparableMap(grid, (k, k)), x)
    found = {
        "dct": mapped(SeparableMap(grid, grid), x),
        "lowpass": low,
        "idct_zero_padded": mapped(SeparableMap(grid, (k, k), inverse=True), low),
        "idct_small": mapped(SeparableMap((k, k), (k, k), inverse=True), low),
    }
    for name, want in output.items():
        case.check(name, found[name], want)
    small = mapped(SeparableMap(grid, (k, k), domain="spatial"), x)  # the same, with the map's mean
    scale = k / (grid[0] * grid[1]) ** 0.5
    case.check("idct_small by the resampling matrix", small / scale, output["idct_small"])
    back = mapped(SeparableMap(grid, (k, k), domain="spatial", inverse=True), small)
    case.check("idct_zero_padded by the resampling matrix", back, output["idct_zero_padded"])


def mapped(transform: SeparableMap, x: Tensor) -> Tensor:
    """Of a map with its channels before its places, (B, C, H, W)."""
    return transform(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
