"""Tracer: two anchors and stitches between them (SN-Netv2, arXiv 2307.00154) as one run, one anchor pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from golden import Case, cases
from leanvit import Data, NViT, Preprocess, compose, compress, load, open_dataset, save
from leanvit.anatomy.composite import Composite, OpenPart, Wiring, part, wiring
from leanvit.knobs import Index
from leanvit.recipe import Root


@part("tracer_stitches")
class Stitches(OpenPart):
    """Linears from one width to the other, `counts` of them each way."""

    def __init__(self, widths: tuple[int, int], counts: tuple[int, int]) -> None:
        super().__init__()
        ways = ((widths[0], widths[1]), (widths[1], widths[0]))
        self.ways = nn.ModuleList(
            nn.ModuleList(nn.Linear(*way) for _ in range(count)) for way, count in zip(ways, counts, strict=True)
        )

    def forward(self, way: int, number: int, x: Any) -> Any:
        return self.ops.linear(f"ways.{way}.{number}", self.ways[way][number], x)  # type: ignore[index]


@wiring("tracer_snnet")
@dataclass(frozen=True)
class SNNet(Wiring):
    """Routes through two anchors: rows of (anchor, first block, last block, stitch behind it or -1), flat."""

    routes: tuple[tuple[int, ...], ...]
    route: Index = 0

    main: ClassVar[str] = "small"
    required: ClassVar[tuple[str, ...]] = ("large", "stitches")
    keeps: ClassVar[Mapping[str, frozenset[str]]] = dict.fromkeys(("small", "large"), frozenset({"width"}))

    def run(self, model: Composite, images: Any, **context: Any) -> Any:
        flat = self.routes[context.pop("route", self.route)]
        anchors: Any = [model.parts["small"], model.parts["large"]]
        x: Any = None
        for which, first, last, stitch in zip(*[iter(flat)] * 4, strict=True):
            anchor = anchors[which]
            state = anchor.start(images, **context)
            if x is None:
                x, state = anchor.embed(images, state)
            x, state = anchor.run(x, state, first, last + 1)
            if stitch >= 0:
                x = model.parts["stitches"](which, stitch, x)
        return anchor.classify(x, state)

    def outputs(self, parts: Mapping[str, nn.Module]) -> int:
        return int(parts["small"].num_classes)  # type: ignore[arg-type]


def stitched(anchors: list[dict[str, Any]], routes: Any, counts: tuple[int, int]) -> Composite:
    shared = ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size", "img_size", "num_classes", "in_chans")
    roots = [Root("deit3_small_patch16_224", {k: v for k, v in one.items() if k in shared}) for one in anchors]
    kwargs = {"widths": [one["embed_dim"] for one in anchors], "counts": list(counts)}
    parts = {"small": roots[0], "large": roots[1], "stitches": Root("tracer_stitches", kwargs)}
    return compose(SNNet(routes=routes), parts).eval()


@cases("snnet", "forward")
def test_every_route_of_the_official_code(case: Case, tmp_path: Path) -> None:
    meta, weights = case.meta, case.group("weights/")
    chosen = [meta["stitch_configs"][str(i)] for i in meta["all_cfgs_used"]]
    depths = [one["depth"] for one in meta["anchors"]]
    routes = []
    for one in chosen:
        spans = one.get("route", [[0, depths[one["comb_id"][0]]]])
        rows = zip(one["comb_id"], spans, one.get("stitch_layer_ids", [-1]), strict=True)
        routes.append([n for which, span, stitch in rows for n in (which, *span, stitch)])
    counts = [len({k.split(".")[2] for k in weights if k.startswith(f"stitch_layers.{way}.")}) for way in (0, 1)]
    model = stitched(meta["anchors"], tuple(map(tuple, routes)), (counts[0], counts[1]))
    # low-rank updates are issue H's: in the cases' weights they are merged
    model.load_state_dict({_named(key): tensor for key, tensor in weights.items() if "lora" not in key})
    save(model, tmp_path / "run")
    again, images = load(tmp_path / "run"), case.group("input/")["x"]
    assert len(routes) > 8
    for number, wanted in enumerate(meta["all_cfgs_used"]):
        logits = again(images, route=number)
        torch.testing.assert_close(logits, case.group("output/")[f"logits_cfg{wanted}"], **meta["tolerance"])


def _named(key: str) -> str:
    """An official name as one of ours."""
    if not key.startswith("stitch"):
        anchor = {"0": "small", "1": "large"}[key.split(".")[1]]
        return f"{anchor}.{key.split('.', 2)[2]}".replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
    _, way, number, _, kind = key.split(".")
    return f"stitches.ways.{way}.{number}.{kind}"


def test_one_anchor_is_pruned_and_the_run_keeps_all_routes(tmp_path: Path) -> None:
    small = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "in_chans": 1}
    small |= {"num_classes": 10}
    routes = ((0, 0, 1, -1), (1, 0, 1, -1), (0, 0, 0, 0, 1, 1, 1, -1), (1, 0, 0, 0, 0, 1, 1, -1))
    model = stitched([small, {**small, "embed_dim": 48}], routes, (1, 1))
    data = Data(open_dataset("digits", "train").limited(32), Preprocess.of(model))
    nvit = NViT(params=0.8, interval=2, max_steps=4, batch_size=8, mlp_group=4, v_group=2, qk_group=2, head_group=1)
    lean = compress(model, [nvit], data, part="large")
    assert [(plan.slug, plan.part) for plan in lean.history.plans] == [("nvit", "large")]
    save(lean, tmp_path / "lean")
    again, images = load(tmp_path / "lean"), torch.randn(3, 1, 8, 8)
    answers: list[Tensor] = [again(images, route=route) for route in range(4)]
    assert all(torch.equal(answers[i], lean(images, route=i)) for i in range(4))
    assert torch.equal(answers[1], lean.parts["large"](images)) and not torch.equal(answers[2], answers[3])
