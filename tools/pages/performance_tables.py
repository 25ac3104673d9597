"""Tables of docs/performance.md: the content of a benchmark's result file as lines of markdown, a function for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from pages.docs_pages import markdown_table

Content = Mapping[str, Any]  # of a result file


# --- speed ----------------------------------------------------------------------------------------------------------


def throughput(content: Content) -> Iterator[str]:
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


def attention(content: Content) -> Iterator[str]:
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


def transcriptions(content: Content) -> Iterator[str]:
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


def small_data(content: Content) -> Iterator[str]:
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


def masks(content: Content) -> Iterator[str]:
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


def token_methods(content: Content) -> Iterator[str]:
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
    """Mean over seeds, and the least and the most where they differ."""
    found = row.get(column)
    if not found:
        return ""
    if found["min"] == found["max"]:
        return format(found["mean"], form)
    return f"{found['mean']:{form}} ({found['min']:{form}} … {found['max']:{form}})"


def token_speed(content: Content) -> Iterator[str]:
    yield from markdown_table(
        ("batch", "runtime", "method", "MACs", "ms", "times as fast (quartiles)", "time saved / MACs saved", "asked"),
        [
            (
                row["batch"],
                row["runtime"],
                row["method"],
                f"{row['macs_ratio']:.3f}",
                f"{row['median_ms']:.1f}",
                _spread(row["speedup"]),
                "" if row["efficiency"] is None else f"{row['efficiency']:.2f}",
                "" if row["asked"] is None else f"{row['asked']:g}",
            )
            for row in content["rows"]
        ],
    )


def exit_heads(content: Content) -> Iterator[str]:
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


def stream(content: Content) -> Iterator[str]:
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


# --- pruning and compositions ---------------------------------------------------------------------------------------


def compositions(content: Content) -> Iterator[str]:
    """Methods alone and together on a reference: accuracy, MACs and speed."""
    settings = content["settings"]
    yield f"{settings['recover_images']:,} images of recovery and {settings['val_images']:,} of validation, batch 8. "
    yield "Speeds are means over seeds, of times as fast as the dense network in the same runtime:\n"
    speeds = {
        "PyTorch": "torch f32: speedup vs dense f32",
        "OpenVINO f32": "openvino f32: speedup vs dense f32",
        "OpenVINO int8, dense too": "openvino int8: speedup vs dense int8",
        "OpenVINO int8, dense f32": "openvino int8: speedup vs dense f32",
    }
    yield from markdown_table(
        ("methods", "MACs", "top-1 off the shelf, %", "recovered, %", "change, points", *speeds),
        [
            (
                name,
                f"{row['macs_ratio']['mean']:.3f}",
                *(_mean(row, column) for column in ("off_the_shelf_top1_percent", "top1_percent")),
                _mean(row, "change_points", "+.2f"),
                *(f"{row[key]['mean']:.2f}" if row.get(key) else "" for key in speeds.values()),
            )
            for name, row in content["summary"].items()
        ],
    )
    yield "\nWhat the papers lead to expect:\n"
    yield from markdown_table(
        ("claim", "figures, means", "holds"),
        [(one["claim"], _named(one["figures"]), "yes" if one["holds"] else "no") for one in content["trends"]],
    )


def pruning(content: Content) -> Iterator[str]:
    """NViT and its rivals at equal cost."""
    rows = {name: row for name, row in content["summary"].items() if "top1_percent" in row}
    speeds = ("torch f32, batch 64: speedup", "openvino f32, batch 1: speedup")
    yield from markdown_table(
        ("network", "seeds", "MACs", "training images", "top-1 at once, %", "at the end, %", "change, points", *speeds),
        [
            (
                name,
                row["top1_percent"]["seeds"],
                f"{row['macs_ratio']['mean']:.3f}",
                f"{row['trained_images']['mean']:,.0f}",
                *(_mean(row, column) for column in ("one_shot_top1_percent", "top1_percent")),
                _mean(row, "change_points", "+.2f"),
                *(_mean(row, speed) for speed in speeds),
            )
            for name, row in rows.items()
        ],
    )
    for name, lead in content["summary"].items():
        if name not in rows:
            yield f"\n{name} ({lead['best'].partition(' (')[0]}): {lead['points']:+.2f} points, of means over seeds."
    lost = sorted({row["method"] for row in content["rows"] if not row["reload_ok"]})
    yield f"\nNot loaded again without a pickled module: {', '.join(lost) or 'none'}.\n"


def composed(content: Content) -> Iterator[str]:
    """The composed recipe's speed on shapes, and its accuracy and own speed on a reference."""
    speed = next(row for row in content["rows"] if row["part"] == "speed")
    sketch = speed["sketch_speed"]["speedup_vs"]["dense int8"]
    ratios = {"dense int8": [1.0, 1.0, 1.0], **speed["speedup_vs"]}
    yield f"`{speed['model']}` of random weights, batch {speed['batch']}:\n"
    yield from markdown_table(
        ("network", "MACs", "ms", "the recipe is faster by (quartiles)"),
        [
            (name, macs, f"{speed['median_ms'][name]:.1f}", _spread(ratios[name]) if name != "ours int8" else "")
            for name, macs in (
                ("ours int8", f"{speed['ours']['macs_ratio']:.3f}"),
                ("sketch int8", f"{speed['sketch']['macs_ratio']:.3f}"),
                ("dense int8", "1"),
            )
        ],
    )
    yield "\nA change of runtime, and of precision, is a fact of its own: "
    yield "beside the dense network in PyTorch at f32, which "
    yield f"takes {speed['median_ms']['eager fp32']:.1f} ms, the recipe in OpenVINO at int8 is faster by "
    yield f"{_spread(ratios['eager fp32'])}.\n"
    yield f"\nThe sketch is {_spread(sketch)} times as fast as dense int8 in the same run.\n"
    accuracies = [row for row in content["rows"] if row["part"] == "accuracy"]
    if not accuracies:
        return
    study = content["settings"]["accuracy"]
    yield "The same recipe on the reference, judged by the answers of OpenVINO int8 on "
    yield f"{study['val_images']:,} images:\n"
    yield from markdown_table(
        ("seed", "MACs", "training images", "off the shelf, %", "recovered, %", "change, points", "× dense int8"),
        [
            (
                row["seed"],
                f"{row['macs_ratio']:.3f}",
                f"{row['trained_images']:,}",
                f"{row['off_the_shelf_top1_percent']:.2f}",
                f"{row['top1_percent']:.2f}",
                f"{row['change_points']:+.2f}",
                _spread(row["speed"]["speedup_vs"]["dense int8"]),
            )
            for row in accuracies
        ],
    )


def latency_tables(content: Content) -> Iterator[str]:
    """How well tables predict whole models of held-out widths."""
    yield from markdown_table(
        ("model", "runtime", "batch", "entries", "measured in, s", "widths", "models", "median error, %", "worst, %"),
        [
            (
                row["model"],
                row["runtime"],
                row["batch"],
                row["entries"],
                f"{row['measuring_s']:.0f}",
                "any" if multiple == "1" else f"multiples of {multiple}",
                len(held["rows"]),
                f"{100 * held['median_error']:.1f}",
                f"{100 * held['worst_error']:.1f}",
            )
            for row in content["rows"]
            for multiple, held in row["held_out"].items()
        ],
    )


def training(content: Content) -> Iterator[str]:
    """Samples a second of training beside timm's script."""
    yield from markdown_table(
        ("model / augmentation / precision / workers", "timm, images/s", "leanvit, images/s", "leanvit × timm, turns"),
        [
            (
                row["case"].replace("/", " / "),
                *(f"{median(row['images_per_s'][side]):.1f}" for side in ("timm", "leanvit")),
                f"{row['leanvit_vs_timm']['median']:.2f} ({_listed(row['leanvit_vs_timm']['turns'], '.2f')})",
            )
            for row in content["rows"]
        ],
    )


# --- cells ----------------------------------------------------------------------------------------------------------


def _distinct(rows: list[Any], column: str) -> list[Any]:
    return list(dict.fromkeys(row[column] for row in rows))


def _ratio(quartiles: list[float]) -> str:
    """q25, median and q75 of a ratio."""
    low, median, high = quartiles
    return f"{median:.2f} ({low:.2f} … {high:.2f})"


def _spread(found: list[float]) -> str:
    """Median, q25 and q75 of a ratio, as benchmarks of a reference write it."""
    return _ratio([found[1], found[0], found[2]])


def _named(figures: Mapping[str, Any]) -> str:
    """Figures by name; the number of seeds is no figure."""
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items() if name != "seeds")


def _listed(values: list[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"
