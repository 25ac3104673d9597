"""The page of speed and accuracy of architectures and token methods, made from the benchmarks' results.

`python -m leanvit.report.performance [docs/performance.md]` reads benchmarks/results; a test holds the page to it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanvit.files import write_atomic
from leanvit.report.docs_pages import markdown_table

Content = Mapping[str, Any]  # of a result file

INTRO = """# How fast, how accurate

The architectures that leanvit builds itself ([their pages](methods/index.md)) and the [token methods](tokens.md) side
by side, measured on a CPU. Made by
`python -m leanvit.report.performance` from `benchmarks/results/`; the machine stands beside each table, and the command
makes it anew on yours. Speeds are float32 in PyTorch; candidates take turns on the same input, a time is the median of
the rounds, and a ratio is taken inside each round before its median and quartiles. Results that speak against a paper's
claim stand here like the others.
"""


@dataclass(frozen=True)
class Section:
    """What one benchmark has to say."""

    title: str
    about: str
    script: str
    arguments: str  # of a whole run
    tables: Callable[[Content], Iterator[str]]
    named: str = ""  # of the file benchmarks/results/<named>.json, where it is not the script's name

    @property
    def result(self) -> str:
        """Name of the results' file, without its suffix."""
        return self.named or self.script

    def lines(self, results: Path) -> Iterator[str]:
        yield f"\n## {self.title}\n"
        yield f"{self.about}\n"
        file, command = results / f"{self.result}.json", f"python benchmarks/{self.script}.py {self.arguments}".strip()
        if not file.is_file():
            yield f"Not measured yet: `{command}` makes the figures.\n"
            return
        content = json.loads(file.read_text(encoding="utf-8"))
        machine = content["environment"]
        yield from self.tables(content)
        made = content.get("commands") or [content["command"]]
        yield f"Measured on {machine['cpu']} with {machine['threads']} threads of torch, by"
        yield f"{', '.join(f'`{one}`' for one in made)}: `benchmarks/results/{file.name}`.\n"


def page(results: Path) -> str:
    """The page as markdown. `results`: folder of the benchmarks' JSON files; those that are missing are said."""
    return "\n".join([INTRO, *(line for section in SECTIONS for line in section.lines(results))])


# --- speed ----------------------------------------------------------------------------------------------------------


def _throughput(content: Content) -> Iterator[str]:
    anchor = content["settings"]["anchor"]
    for batch in _distinct(content["rows"], "batch"):
        yield f"\nBatch {batch}:\n"
        yield from markdown_table(
            ("size", "model", "by", "parameters", "MACs", "images a second", f"× `{anchor}` (quartiles)"),
            [
                (
                    row["group"],
                    f"`{row['model']}`",
                    row["by"],
                    _millions(row["params"]),
                    f"{row['macs'] / 1e9:.2f} G",
                    f"{row['images_per_s']:.1f}",
                    _ratio(row["faster_than_anchor"]),
                )
                for row in content["rows"]
                if row["batch"] == batch
            ],
        )


def _attention(content: Content) -> Iterator[str]:
    yield from markdown_table(
        ("grid", "channels", "batch", "attention", "MACs", "ms", "HiLo is faster by (quartiles)"),
        [
            (
                row["grid"],
                row["channels"],
                row["batch"],
                row["attention"],
                f"{row['macs'] / 1e6:.1f} M",
                f"{row['median_ms']:.3f}",
                _ratio(row["hilo_is_faster"]),
            )
            for row in content["rows"]
        ],
    )
    macs = {(row["grid"], row["attention"]): row["macs"] for row in content["rows"]}
    yield "\nThe paper's claims for one layer on a CPU, beside how many times fewer MACs HiLo has:\n"
    yield from markdown_table(
        ("HiLo against", "grid", "batch", "fewer MACs", "claimed", "found (quartiles)", "verdict"),
        [
            (
                claim["attention"],
                claim["grid"],
                claim["batch"],
                f"{macs[claim['grid'], claim['attention']] / macs[claim['grid'], 'hilo']:.2f}",
                f"{claim['claimed']:.2f}",
                _ratio([claim["quartiles"][0], claim["found"], claim["quartiles"][1]]),
                claim["verdict"],
            )
            for claim in content["claims"]
        ],
    )


def _transcriptions(content: Content) -> Iterator[str]:
    yield from markdown_table(
        ("model", "side", "batch", "images a second", "× the transcription", "largest difference of an output"),
        [
            (
                f"`{row['model']}`",
                row["side"],
                row["batch"],
                f"{row['images_per_s']:.1f}",
                f"{row['speedup_vs_transcription']:.2f}",
                f"{row['largest_difference']:.0e}",
            )
            for row in content["rows"]
        ],
    )


# --- accuracy -------------------------------------------------------------------------------------------------------


def _small_data(content: Content) -> Iterator[str]:
    rows = content["rows"]
    for family in _distinct(rows, "family"):
        own = [row for row in rows if row["family"] == family]
        yield f"\n`{family}`:\n"
        yield from markdown_table(
            ("model", "parameters", "top-1 in %, seed by seed", "mean", "seconds of training, mean"),
            [_trained([row for row in own if row["model"] == model]) for model in _distinct(own, "model")],
        )
    yield "\nThe whole model against the others of its pair:\n"
    yield from markdown_table(
        ("against", "points, seed by seed", "mean", "asked", "holds"),
        [
            (trend["than"], _listed(trend["points"], "+.2f"), f"{trend['mean']:+.2f}", *_verdict(trend))
            for trend in content["trends"]
        ],
    )


def _trained(rows: list[Any]) -> tuple[str, ...]:
    found = [row["top1_percent"] for row in rows]
    seconds = sum(row["train_seconds"] for row in rows) / len(rows)
    mean = f"{sum(found) / len(found):.2f}"
    return rows[0]["model"], _millions(rows[0]["params"]), _listed(found, ".2f"), mean, f"{seconds:.0f}"


def _verdict(trend: Content) -> tuple[str, str]:
    """What was asked of a trend, and whether it holds; empty where nothing was."""
    if trend["holds"] is None:
        return "", ""
    return f"{trend['asked_at_least']:+.1f} or more", "yes" if trend["holds"] else "no"


def _masks(content: Content) -> Iterator[str]:
    changes = content["changes"]
    yield from markdown_table(
        ("ViT with", "top-1 in %, seed by seed", "mean", "points over the mean-pooled twin without a mask"),
        [
            (
                row["side"],
                _listed(row["top1_percent"], ".2f"),
                f"{row['mean']:.2f}",
                f"{changes[row['side']]:+.2f}" if row["side"] in changes else "",
            )
            for row in content["rows"]
        ],
    )


# --- token methods --------------------------------------------------------------------------------------------------


def _token_methods(content: Content) -> Iterator[str]:
    settings = content["settings"]
    yield f"`{settings['model']}` at {settings['macs']:g} of its MACs, {settings['limit']:,} images of each split, "
    yield f"epochs of recovery: {settings['recover_epochs']}.\n"
    told = content["summary"]
    yield from markdown_table(
        ("method", "MACs", "top-1 off the shelf, %", "at the end, %", "change, points", "speed-ups, seed 0"),
        [
            (
                name,
                f"{row['macs_ratio']['mean']:.3f}",
                _mean(row, "off_the_shelf_top1_percent"),
                _mean(row, "top1_percent"),
                _mean(row, "change_points", "+.2f"),
                ", ".join(
                    f"{key.removeprefix('speedup, ')} {found['mean']:.2f}"
                    for key, found in row.items()
                    if key.startswith("speedup, ") and found
                ),
            )
            for name, row in told.items()
        ],
    )
    yield "\nWhat the papers lead to expect, in points seed by seed:\n"
    yield from _claims(content["trends"])


def _claims(trends: list[Content]) -> Iterator[str]:
    yield from markdown_table(
        ("claim", "points", "verdict"),
        [(one["claim"], _listed(one["points"], "+.2f"), one["verdict"]) for one in trends],
    )


def _mean(row: Content, column: str, form: str = ".2f") -> str:
    """Mean over seeds, and the least and the most."""
    found = row.get(column)
    if not found:
        return ""
    return f"{found['mean']:{form}} ({found['min']:{form}} … {found['max']:{form}})"


def _token_speed(content: Content) -> Iterator[str]:
    yield from markdown_table(
        ("batch", "runtime", "method", "MACs", "ms", "times as fast (quartiles)", "time saved / MACs saved", "asked"),
        [
            (
                row["batch"],
                row["runtime"],
                row["method"],
                f"{row['macs_ratio']:.3f}",
                f"{row['median_ms']:.1f}",
                _ratio([row["speedup"][1], row["speedup"][0], row["speedup"][2]]),
                "" if row["efficiency"] is None else f"{row['efficiency']:.2f}",
                "" if row["asked"] is None else f"{row['asked']:g}",
            )
            for row in content["rows"]
        ],
    )


def _exit_heads(content: Content) -> Iterator[str]:
    settings = content["settings"]
    yield f"`{settings['model']}`, {settings['limit']:,} training images, {settings['epochs']} epochs of the heads, "
    yield "the backbone frozen. Top-1 (%) of the heads, each on all validation images, and of the end:\n"
    first, told = content["rows"][0], content["summary"]
    columns = [f"top1 after block {layer}" for layer in first["layers"]]
    yield from markdown_table(
        ("heads", *(f"after block {layer}" for layer in first["layers"])),
        [(name, *(_mean(row, column) for column in columns)) for name, row in told.items()],
    )
    yield "\nUnder the rule, with the threshold that held-out training images chose:\n"
    yield from markdown_table(
        ("heads", "depth / mean exit", "MACs saved, times", "points lost", "above random exits, points (median)"),
        [
            (
                name,
                *(_mean(row, column) for column in ("depth_over_mean_exit", "speedup_macs", "points_lost")),
                _mean(row, "above_random"),
            )
            for name, row in told.items()
        ],
    )
    yield "\nWhat is expected, in points seed by seed:\n"
    yield from _claims(content["trends"])


def _stream(content: Content) -> Iterator[str]:
    top1 = content["top1_percent"]
    answers = "random weights" if top1 is None else f"{top1['lgvit']:.1f} % against {top1['dense']:.1f} dense"
    yield from markdown_table(
        ("model", "runtime", "images", "top-1", "depth / mean exit", "counted", "measured", "measured / counted"),
        [
            (
                content["model"],
                content["runtime"],
                content["images"],
                answers,
                f"{content['depth_over_mean_exit']:.2f}",
                f"{content['counted_speedup']:.2f}",
                _ratio(
                    [content["measured_quartiles"][0], content["measured_speedup"], content["measured_quartiles"][2]]
                ),
                f"{content['measured_over_counted']:.2f}, {content['verdict']}",
            )
        ],
    )


SECTIONS = (
    Section(
        "Beside timm's light models",
        "Images of 224x224. Every model is timed in its deployed form (`fuse()`, timm's reparameterisation, norms "
        "folded into convolutions); parameters are those of training. `mobilevitv2` and `fastvit` were published at "
        "256 pixels.",
        "backbone_throughput",
        "",
        _throughput,
    ),
    Section(
        "One layer of attention",
        "[HiLo](methods/litv2.md) against the other ways to make attention cheap, at equal width, on the grids of a "
        "224x224 image.",
        "attention_cost",
        "",
        _attention,
    ),
    Section(
        "Against a straight transcription",
        "The same networks written as the papers' formulas stand, with shared weights.",
        "plain_speed",
        "--threads 2 --batch 1 --batch 32 --out benchmarks/results/plain_speed.json",
        _transcriptions,
    ),
    Section(
        "On little data",
        "Small models, few images of CIFAR-10, few epochs: what a part of an architecture gives, held against what is "
        "asked of it. What is trained, and for how long, stands in the script.",
        "small_data",
        "CIFAR10_FOLDER",
        _small_data,
    ),
    Section(
        "A mask on the scores, on little data",
        "A ViT with a [Gaussian mixture mask](methods/gmm_mask.md), with an elementwise one, and without; 3,000 images "
        "of CIFAR-10, 5 epochs.",
        "gmm_mask_small_data",
        "--data CIFAR10_FOLDER",
        _masks,
    ),
    Section(
        "Token methods at equal MACs",
        "Off the shelf and after the same short recovery, on a small reference. Means over the seeds, with the least "
        "and the most.",
        "token_methods",
        "cifar10 --model leanvit/cifar10_vit",
        _token_methods,
    ),
    Section(
        "Token methods with modules that learn from nothing",
        "SiT and STViT begin with modules that know nothing, so all get a longer recovery here, at a higher rate; SiT "
        "without its distillation and averaged windows are their controls.",
        "token_methods",
        "cifar10 --model leanvit/cifar10_vit --method evit --method sit --method sit:token_weight=0,logit_weight=0 "
        "--method stvit --method stvit:generation=average --tolerance 0.05 --limit 10000 --recover-epochs 3 "
        "--recover-lr 5e-4 --no-controls --torch-only --out benchmarks/results/token_methods_longer.json",
        _token_methods,
        named="token_methods_longer",
    ),
    Section(
        "DiffRate after a longer search",
        "Rates that are learned with frozen weights against uniform ones.",
        "token_methods",
        "cifar10 --model leanvit/cifar10_vit --limit 5000 --method diffrate:max_steps=800,amp=bf16 "
        "--method diffrate:search=prune --method diffrate:search=merge "
        "--out benchmarks/results/token_methods_search.json",
        _token_methods,
        named="token_methods_search",
    ),
    Section(
        "Early exits",
        "[LGViT](methods/lgvit.md)'s heads against plain linear ones at the same blocks, and its rule against letting "
        "as many images leave blindly.",
        "lgvit_heads",
        "cifar10 --model leanvit/cifar10_vit",
        _exit_heads,
    ),
    Section(
        "Early exits, image by image",
        "Counted speed-up (mean MACs, heads included) beside the measured one; a small network on small images, so "
        "what comes with every graph weighs much.",
        "lgvit_stream",
        "cifar10 --model leanvit/cifar10_vit --images 5000 --lgvit points=1,epochs=3,amp=bf16",
        _stream,
    ),
    Section(
        "Early exits of a usual size, image by image",
        "The same on photos at 224x224. Untrained: its cost alone is of interest, and 15 % of the images that reach an "
        "exit leave there.",
        "lgvit_stream",
        "imagenet_sample --untrained deit_small_patch16_224 --stream 200 "
        "--out benchmarks/results/lgvit_stream_deit_small.json",
        _stream,
        named="lgvit_stream_deit_small",
    ),
    Section(
        "Time saved, MACs saved",
        "Token methods on DeiT-S shapes at one share of its MACs. `cut` is the control: tokens sliced off for nothing, "
        "to the lengths that the method leaves.",
        "token_methods_speed",
        "",
        _token_speed,
    ),
)


# --- cells ----------------------------------------------------------------------------------------------------------


def _distinct(rows: list[Any], column: str) -> list[Any]:
    return list(dict.fromkeys(row[column] for row in rows))


def _ratio(quartiles: list[float]) -> str:
    """q25, median and q75 of a ratio."""
    low, median, high = quartiles
    return f"{median:.2f} ({low:.2f} … {high:.2f})"


def _listed(values: list[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/performance.md")
    write_atomic(path, page(path.resolve().parents[1] / "benchmarks" / "results").encode())


if __name__ == "__main__":
    main()
