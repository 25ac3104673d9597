"""The page of the architectures' figures: current, and what the results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pages.performance import SECTIONS, page

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MACHINE = {"environment": {"cpu": "a CPU", "threads": 2}, "command": "python benchmarks/it.py"}
FOUND: dict[str, dict[str, Any]] = {
    "backbone_throughput": {
        "settings": {"anchor": "deit"},
        "commands": ["python benchmarks/backbone_throughput.py", "again"],
        "rows": [
            {"group": "5 M", "model": "t2t_vit_7", "by": "leanvit", "batch": batch, "params": 4_260_000}
            | {"macs": 1_147_000_000, "images_per_s": 20.0 * batch, "faster_than_anchor": [0.9, 1.1, 1.3]}
            for batch in (1, 32)
        ],
    },
    "attention_cost": {
        "rows": [
            {"grid": "14x14", "channels": 384, "batch": 1, "attention": "windows 7x7", "macs": 2e8}
            | {"median_ms": 1.5, "hilo_is_faster": [1.0, 1.2, 1.5]},
            {"grid": "14x14", "channels": 384, "batch": 1, "attention": "hilo", "macs": 1e8}
            | {"median_ms": 1.25, "hilo_is_faster": [1.0, 1.0, 1.0]},
        ],
        "claims": [
            {"attention": "windows 7x7", "grid": "14x14", "batch": 1, "claimed": 1.6, "found": 1.2}
            | {"quartiles": [1.0, 1.5], "verdict": "refuted"}
        ],
    },
    "plain_speed": {
        "rows": [
            {"model": "litv2_small", "side": "leanvit, fused", "batch": 1, "images_per_s": 9.04}
            | {"speedup_vs_transcription": 1.345, "largest_difference": 2e-6}
        ]
    },
    "small_data": {
        "rows": [
            {"family": "dhvt", "model": "DHVT", "seed": seed, "params": 540_000, "top1_percent": top1}
            | {"train_seconds": 60.0}
            for seed, top1 in enumerate((44.0, 46.0))
        ],
        "trends": [
            {"than": "plain", "points": [5.0, -1.0], "mean": 2.0, "asked_at_least": 6.0, "holds": False},
            {"than": "wide", "points": [1.0, 1.0], "mean": 1.0, "asked_at_least": None, "holds": None},
        ],
    },
    "gmm_mask_small_data": {
        "rows": [
            {"side": "twin", "top1_percent": [30.0], "mean": 30.0},
            {"side": "gmm", "top1_percent": [33.0, 35.0], "mean": 34.0},
        ],
        "changes": {"gmm": 4.0},
    },
    "token_methods": {
        "settings": {"model": "leanvit/one", "macs": 0.65, "limit": 3000, "recover_epochs": 1},
        "summary": {
            "baseline": {"macs_ratio": {"mean": 1.0}, "top1_percent": {"mean": 75.0, "min": 74.0, "max": 76.0}},
            "evit": {
                "macs_ratio": {"mean": 0.6545},
                "off_the_shelf_top1_percent": {"mean": 68.3, "min": 67.0, "max": 69.0},
                "top1_percent": {"mean": 70.2, "min": 69.0, "max": 71.0},
                "change_points": {"mean": -4.7, "min": -5.0, "max": -4.0},
                "speedup, torch f32": {"mean": 1.39},
            },
        },
        "trends": [{"claim": "EViT above random tokens", "points": [-1.17, 1.2], "verdict": "seeds disagree"}],
    },
    "lgvit_heads": {
        "settings": {"model": "leanvit/one", "limit": 10_000, "epochs": 4},
        "rows": [{"layers": [2, 3]}],
        "summary": {
            "linear": {
                "top1 after block 2": {"mean": 50.0, "min": 49.0, "max": 51.0},
                "top1 after block 3": {"mean": 75.0, "min": 75.0, "max": 75.0},
                "depth_over_mean_exit": {"mean": 1.4, "min": 1.4, "max": 1.4},
                "speedup_macs": {"mean": 1.25, "min": 1.2, "max": 1.3},
                "points_lost": {"mean": 0.7, "min": 0.5, "max": 0.9},
                "above_random": {"mean": 3.5, "min": 3.0, "max": 4.0},
            }
        },
        "trends": [{"claim": "heads above linear ones", "points": [2.0, 1.5], "verdict": "holds"}],
    },
    "lgvit_stream": {
        "model": "one",
        "runtime": "openvino",
        "images": 600,
        "top1_percent": {"dense": 77.0, "lgvit": 76.5},
        "depth_over_mean_exit": 1.2,
        "counted_speedup": 1.1,
        "measured_speedup": 1.0,
        "measured_quartiles": [0.9, 1.0, 1.1],
        "measured_over_counted": 0.91,
        "verdict": "reproduced",
    },
    "token_methods_speed": {
        "rows": [
            {"batch": 8, "runtime": "torch", "method": "evit", "macs_ratio": 0.63, "median_ms": 91.2}
            | {"speedup": [1.5, 1.4, 1.6], "efficiency": 0.96, "asked": 0.95}
        ]
    },
    "composed_deit_small": {
        "settings": {"accuracy": {"val_images": 10_000}},
        "rows": [
            {"part": "speed", "model": "deit_small", "batch": 8, "ours": {"macs_ratio": 0.2}}
            | {"sketch": {"macs_ratio": 0.3}, "sketch_speed": {"speedup_vs": {"dense int8": [2.9, 2.8, 3.0]}}}
            | {"median_ms": {"ours int8": 65.0, "sketch int8": 90.0, "dense int8": 230.0, "eager fp32": 800.0}}
            | {
                "speedup_vs": {
                    "sketch int8": [1.4, 1.3, 1.5],
                    "dense int8": [3.5, 3.4, 3.6],
                    "eager fp32": [12, 11, 13],
                }
            },
            {"part": "accuracy", "seed": 0, "macs_ratio": 0.25, "trained_images": 200_000, "change_points": -1.25}
            | {"off_the_shelf_top1_percent": 58.0, "top1_percent": 73.75}
            | {"speed": {"speedup_vs": {"dense int8": [2.7, 2.6, 2.8]}}},
        ],
    },
    "reference_runs": {
        "settings": {"recover_images": 5000, "val_images": 5000},
        "summary": {
            "evit": {
                "macs_ratio": {"mean": 0.66},
                "top1_percent": {"mean": 71.0, "min": 71.0, "max": 71.0},
                "torch f32: speedup vs dense f32": {"mean": 1.36},
            }
        },
        "trends": [{"claim": "evit above tome", "holds": False, "figures": {"evit": 71.0, "other": 75.3, "seeds": 3}}],
    },
    "nvit_vs_torch_pruning": {
        "rows": [{"method": "nvit", "reload_ok": True}, {"method": "torch-pruning, global", "reload_ok": False}],
        "summary": {
            "nvit (equal macs)": {
                "macs_ratio": {"mean": 0.5},
                "trained_images": {"mean": 15_232.0},
                "top1_percent": {"mean": 74.4, "min": 74.2, "max": 74.7, "seeds": 3},
            },
            "nvit minus best torch-pruning, equal macs": {"points": 0.5, "best": "torch-pruning, global (equal macs)"},
        },
    },
    "latency_tables": {
        "rows": [
            {"model": "deit", "runtime": "openvino", "batch": 8, "entries": 77, "measuring_s": 222.2}
            | {"held_out": {"1": {"median_error": 0.0348, "worst_error": 0.109, "rows": [{}, {}, {}]}}}
        ]
    },
    "train_speed": {
        "rows": [
            {
                "case": "vit/light/fp32/workers0",
                "images_per_s": {"timm": [90.0, 80.0, 85.0], "leanvit": [95.0, 85.0, 90.0]},
            }
            | {"leanvit_vs_timm": {"median": 1.06, "turns": [1.06, 1.06, 1.05]}}
        ]
    },
}


def test_the_committed_page_is_current() -> None:
    committed = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert committed == page(RESULTS), "run: python -m pages.performance"


def test_every_section_says_the_figures_or_how_to_make_them(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert text.count("Not measured yet: ") == len(SECTIONS)
    assert {section.script for section in SECTIONS} == set(FOUND)
    for section in SECTIONS:
        assert (ROOT / "benchmarks" / f"{section.script}.py").is_file()
        assert f"`python benchmarks/{section.script}.py" in text
        found = FOUND[section.result if section.result in FOUND else section.script]
        (tmp_path / f"{section.result}.json").write_text(json.dumps({**MACHINE, **found}))
    text = page(tmp_path)
    assert "Not measured yet" not in text and text.count("Measured on a CPU with 2 threads") == len(SECTIONS)
    for line in (
        "| 5 M | `t2t_vit_7` | leanvit | 4.26 M | 1.15 G | 640.0 | 1.10 (0.90 … 1.30) |",
        "by\n`python benchmarks/backbone_throughput.py`, `again`: `benchmarks/results/backbone_throughput.json`",
        "| 14x14 | 384 | 1 | windows 7x7 | 200.0 M | 1.500 | 1.20 (1.00 … 1.50) |",
        "| windows 7x7 | 14x14 | 1 | 2.00 | 1.60 | 1.20 (1.00 … 1.50) | refuted |",
        "| `litv2_small` | leanvit, fused | 1 | 9.0 | 1.34 | 2e-06 |",
        "| DHVT | 0.54 M | 44.00, 46.00 | 45.00 | 60 |",
        "| plain | +5.00, -1.00 | +2.00 | +6.0 or more | no |",
        "| wide | +1.00, +1.00 | +1.00 |  |  |",
        "| twin | 30.00 | 30.00 |  |",
        "| gmm | 33.00, 35.00 | 34.00 | +4.00 |",
        "| evit | 0.654 | 68.30 (67.00 … 69.00) | 70.20 (69.00 … 71.00) | -4.70 (-5.00 … -4.00) | torch f32 1.39 |",
        "| EViT above random tokens | -1.17, +1.20 | seeds disagree |",
        "| linear | 50.00 (49.00 … 51.00) | 75.00 |",
        "| linear | 1.40 | 1.25 (1.20 … 1.30) | 0.70 (0.50 … 0.90) | 3.50 (3.00 … 4.00) |",
        "| heads above linear ones | +2.00, +1.50 | holds |",
        "| one | openvino | 600 | 76.5 % against 77.0 dense | 1.20 | 1.10 | 1.00 (0.90 … 1.10) | 0.91, reproduced |",
        "| deit | openvino | 8 | 77 | 222 | any | 3 | 3.5 | 10.9 |",
        "| 8 | torch | evit | 0.630 | 91.2 | 1.50 (1.40 … 1.60) | 0.96 | 0.95 |",
    ):
        assert line in text, line


def test_one_result_that_is_missing_leaves_the_others(tmp_path: Path) -> None:
    for script, found in FOUND.items():
        (tmp_path / f"{script}.json").write_text(json.dumps({**MACHINE, **found}))
    (tmp_path / "small_data.json").unlink()
    assert page(tmp_path).count("Not measured yet: `python benchmarks/small_data.py CIFAR10_FOLDER`") == 1


def test_pruning_says_who_leads_and_what_does_not_load_again(tmp_path: Path) -> None:
    (tmp_path / "nvit_vs_torch_pruning.json").write_text(json.dumps({**MACHINE, **FOUND["nvit_vs_torch_pruning"]}))
    text = page(tmp_path)
    assert "equal macs (torch-pruning, global): +0.50 points" in text
    assert "without a pickled module: torch-pruning, global." in text
    assert "| nvit (equal macs) | 3 | 0.500 |" in text


def test_a_composition_shows_its_ratios_and_its_accuracy(tmp_path: Path) -> None:
    (tmp_path / "composed_deit_small.json").write_text(json.dumps({**MACHINE, **FOUND["composed_deit_small"]}))
    text = page(tmp_path)
    assert "| dense int8 | 1 | 230.0 | 3.50 (3.40 … 3.60) |" in text
    assert "| eager fp32" not in text, "another runtime's is no speed-up"
    assert "takes 800.0 ms, the recipe in OpenVINO at int8 is faster by \n12.00 (11.00 … 13.00)." in text
    assert "| 0 | 0.250 | 200,000 | 58.00 | 73.75 | -1.25 | 2.70 (2.60 … 2.80) |" in text


def test_threads_are_those_that_were_timed(tmp_path: Path) -> None:
    found = FOUND["reference_runs"]
    timed = {**found, "settings": {**found["settings"], "threads": 1}}
    (tmp_path / "reference_runs.json").write_text(json.dumps({**MACHINE, **timed}))
    assert "Measured on a CPU with 1 thread of torch" in page(tmp_path)
