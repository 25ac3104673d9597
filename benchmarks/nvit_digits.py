"""NViT's score against weight magnitude and chance: MLP units of a small ViT are masked by one global ranking.

    python benchmarks/nvit_digits.py            # a few minutes on one core

A ViT (48 channels, 4 blocks, 16 tokens) learns 1,200 of the embedded digits for 16 epochs with each of 3 seeds. Then a
share of all MLP units is closed at once, without fine-tuning, and the rest validated. Writes
benchmarks/results/nvit_digits.json.
"""

from __future__ import annotations

import copy
import json
import statistics

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

import bench
from bench import Column, Table
from leanvit.anatomy import OpenModel, open_model
from leanvit.data import Preprocess, keyed, loader, open_dataset
from leanvit.prune.nvit.groups import all_open, closed_below, groups, threshold
from leanvit.prune.nvit.masking import close_units
from leanvit.prune.nvit.saliency import divisors, scores
from leanvit.prune.nvit.units import Layout, layout
from leanvit.training import FitConfig, fit, top1_accuracy

OPTIONS = bench.parser(__doc__)
ABOUT = bench.About(
    "NViT's score against weight magnitude and chance",
    "Top-1 on 359 digits after a share of all MLP units is masked by one global ranking, without fine-tuning; means "
    "over 3 seeds. The whole network: {dense:.1f} %.",
    (Table("means", ("name", "0.5", "0.7", "0.85")),),
    {
        "name": Column("ranking"),
        **{str(share): Column(f"{100 * share:.0f} % of the units masked", "%", ".1f") for share in (0.5, 0.7, 0.85)},
    },
)
SEEDS, SHARES = (0, 1, 2), (0.5, 0.7, 0.85)
SHAPE = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 48, "depth": 4, "num_heads": 4}
PREPROCESS = Preprocess(
    input_size=(1, 8, 8), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1.0, crop_mode="center"
)


def trained(seed: int) -> OpenModel:
    with keyed.global_rng(seed, "weights"):
        model = open_model(timm.create_model("vit_tiny_patch16_224", **SHAPE))
    config = FitConfig(epochs=16, batch_size=64, lr=1e-3, warmup_epochs=1, seed=seed)
    return fit(model, open_dataset("digits", "train", limit=1200), preprocess=PREPROCESS, config=config).model


def saliency(model: OpenModel, units: Layout, seed: int) -> Tensor:
    """Mean over the batches of an epoch of the squared signed sums."""
    total, weights = torch.zeros(units.total), dict(model.named_parameters())
    data = open_dataset("digits", "train", limit=1200)
    for batch in loader(data, PREPROCESS, batch_size=64, seed=seed, train=True, augment=None):
        model.zero_grad()
        F.cross_entropy(model(batch.images), batch.targets).backward()
        gradients = {name: p.grad for name, p in weights.items() if p.grad is not None}
        total += scores(units, weights, gradients, divisors(len(model.blocks)))
    return total


@torch.no_grad()
def magnitude(model: OpenModel) -> Tensor:
    """Squared norm of each unit's row of fc1."""
    rows = [torch.cat([b.mlp.fc1.weight, b.mlp.fc1.bias[:, None]], dim=1) for b in model.blocks]
    return torch.cat([row.square().sum(dim=1) for row in rows])


def accuracy_without(model: OpenModel, units: Layout, ranking: Tensor, share: float) -> float:
    """Top-1 after the lowest `share` of all units is closed."""
    ranked = groups(units, ranking, all_open(units), {"mlp": 1})
    gates = closed_below(units, ranked, all_open(units), threshold(ranked, round(share * units.total)))
    masked = copy.deepcopy(model)
    close_units(units, dict(masked.named_parameters()), gates)
    return 100 * top1_accuracy(masked, open_dataset("digits", "val"), preprocess=PREPROCESS)


def one_seed(seed: int) -> dict[str, float | dict[str, list[float]]]:
    model = trained(seed)
    units = layout(model, ("mlp",))
    rankings = {
        "score": saliency(model, units, seed),
        "magnitude": magnitude(model),
        "random": torch.rand(units.total, generator=keyed.generator(seed, "random")),
    }
    dense = 100 * top1_accuracy(model, open_dataset("digits", "val"), preprocess=PREPROCESS)
    found = {name: [accuracy_without(model, units, r, share) for share in SHARES] for name, r in rankings.items()}
    return {"dense": dense, "after": found}


def main() -> None:
    OPTIONS.parse_args()
    runs = [one_seed(seed) for seed in SEEDS]
    means = {
        name: {str(share): statistics.mean(run["after"][name][i] for run in runs) for i, share in enumerate(SHARES)}
        for name in ("score", "magnitude", "random")
    }
    dense = statistics.mean(run["dense"] for run in runs)
    what = "top-1 in % on 359 digits after a share of all MLP units is masked, mean over seeds; no fine-tuning"
    bench.write_result(bench.RESULTS / "nvit_digits.json", ABOUT, what=what, dense=dense, means=means, seeds=runs)
    print(json.dumps({"dense": dense, **means}, indent=1))


if __name__ == "__main__":
    main()
