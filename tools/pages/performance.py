"""The page of speed and accuracy, made from the benchmarks' results.

`python -m pages.performance [docs/performance.md]` reads benchmarks/results; a test holds the page to it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from leanvit.files import write_atomic
from pages import performance_tables as tables
from pages.performance_tables import Content

INTRO = """# How fast, how accurate

The architectures that leanvit builds itself ([their pages](methods/index.md)), the [token methods](tokens.md) side by
side, pruning, compositions and training, measured on a CPU. Made by `python -m pages.performance` from
`benchmarks/results/`; the machine stands beside each table, and the command makes it anew on yours. Speeds are float32
in PyTorch where nothing else is said; candidates take turns on the same input, a time is the median of the rounds, and
a ratio is taken inside each round before its median and quartiles. Results that speak against a paper's claim stand
here like the others.
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
        timed = content.get("settings", {}).get("threads", machine["threads"])  # training may take more of them
        threads = "1 thread" if timed == 1 else f"{timed} threads"
        yield f"Measured on {machine['cpu']} with {threads} of torch, by"
        yield f"{', '.join(f'`{one}`' for one in made)}: `benchmarks/results/{file.name}`.\n"


def page(results: Path) -> str:
    """The page as markdown. `results`: folder of the benchmarks' JSON files; those that are missing are said."""
    return "\n".join([INTRO, *(line for section in SECTIONS for line in section.lines(results))])


SECTIONS = (
    Section(
        "Beside timm's light models",
        "Images of 224x224. Every model is timed in its deployed form (`fuse()`, timm's reparameterisation, norms "
        "folded into convolutions); parameters are those of training. `mobilevitv2` and `fastvit` were published at "
        "256 pixels.",
        "backbone_throughput",
        "",
        tables.throughput,
    ),
    Section(
        "One layer of attention",
        "[HiLo](methods/litv2.md) against the other ways to make attention cheap, at equal width, on the grids of a "
        "224x224 image.",
        "attention_cost",
        "",
        tables.attention,
    ),
    Section(
        "Against a straight transcription",
        "The same networks written as the papers' formulas stand, with shared weights.",
        "plain_speed",
        "--threads 2 --batch 1 --batch 32 --out benchmarks/results/plain_speed.json",
        tables.transcriptions,
    ),
    Section(
        "On little data",
        "Small models, few images of CIFAR-10, few epochs: what a part of an architecture gives, held against what is "
        "asked of it. What is trained, and for how long, stands in the script.",
        "small_data",
        "CIFAR10_FOLDER",
        tables.small_data,
    ),
    Section(
        "A mask on the scores, on little data",
        "A ViT with a [Gaussian mixture mask](methods/gmm_mask.md), with an elementwise one, and without; 3,000 images "
        "of CIFAR-10, 5 epochs.",
        "gmm_mask_small_data",
        "--data CIFAR10_FOLDER",
        tables.masks,
    ),
    Section(
        "Token methods at equal MACs",
        "Off the shelf and after the same short recovery, on a small reference. Means over the seeds, with the least "
        "and the most.",
        "token_methods",
        "cifar10 --model leanvit/cifar10_vit",
        tables.token_methods,
    ),
    Section(
        "Token methods with modules that learn from nothing",
        "SiT and STViT begin with modules that know nothing, so all get a longer recovery here, at a higher rate; SiT "
        "without its distillation and averaged windows are their controls.",
        "token_methods",
        "cifar10 --model leanvit/cifar10_vit --method evit --method sit --method sit:token_weight=0,logit_weight=0 "
        "--method stvit --method stvit:generation=average --tolerance 0.05 --limit 10000 --recover-epochs 3 "
        "--recover-lr 5e-4 --no-controls --torch-only --out benchmarks/results/token_methods_longer.json",
        tables.token_methods,
        named="token_methods_longer",
    ),
    Section(
        "DiffRate after a longer search",
        "Rates that are learned with frozen weights against uniform ones.",
        "token_methods",
        "cifar10 --model leanvit/cifar10_vit --limit 5000 --method diffrate:max_steps=800,amp=bf16 "
        "--method diffrate:search=prune --method diffrate:search=merge "
        "--out benchmarks/results/token_methods_search.json",
        tables.token_methods,
        named="token_methods_search",
    ),
    Section(
        "Early exits",
        "[LGViT](methods/lgvit.md)'s heads against plain linear ones at the same blocks, and its rule against letting "
        "as many images leave blindly.",
        "lgvit_heads",
        "cifar10 --model leanvit/cifar10_vit",
        tables.exit_heads,
    ),
    Section(
        "Early exits, image by image",
        "Counted speed-up (mean MACs, heads included) beside the measured one; a small network on small images, so "
        "what comes with every graph weighs much.",
        "lgvit_stream",
        "cifar10 --model leanvit/cifar10_vit --images 5000 --lgvit points=1,epochs=3,amp=bf16",
        tables.stream,
    ),
    Section(
        "Early exits of a usual size, image by image",
        "The same on photos at 224x224. Untrained: its cost alone is of interest, and 15 % of the images that reach an "
        "exit leave there.",
        "lgvit_stream",
        "imagenet_sample --untrained deit_small_patch16_224 --stream 200 "
        "--out benchmarks/results/lgvit_stream_deit_small.json",
        tables.stream,
        named="lgvit_stream_deit_small",
    ),
    Section(
        "Time saved, MACs saved",
        "Token methods on DeiT-S shapes at one share of its MACs. `cut` is the control: tokens sliced off for nothing, "
        "to the lengths that the method leaves.",
        "token_methods_speed",
        "",
        tables.token_speed,
    ),
    Section(
        "Composed for speed",
        "[NViT](methods/nvit.md) to half of the latency, then [EViT](methods/evit.md) at 0.7, then int8: the recipe "
        "`examples/composed.toml`, in OpenVINO. The sketch is the control, uniform widths that nobody searched for (4 "
        "heads of 48, MLPs of 640) with the same EViT and int8. The recovery is ten passes over the training images, "
        "about half of what the reference was trained with; the dense network, its teacher, gets no more training.",
        "composed_deit_small",
        "cifar10 --model leanvit/cifar10_vit --recover-images 50000 --recover-epochs 10 --lr 5e-4",
        tables.composed,
    ),
    Section(
        "Methods and compositions on a reference",
        "Each alone, and together, recovered from the same teacher on the same images.",
        "reference_runs",
        "cifar10 --model leanvit/cifar10_vit",
        tables.compositions,
    ),
    Section(
        "Pruning against torch-pruning",
        "[NViT](methods/nvit.md) and the group Taylor criterion of torch-pruning, from the same network, with as many "
        "training images each; and a narrower network trained from nothing on more images, a twentieth of what the "
        "reference saw. Latency is that of PyTorch at batch 64; these rows were made two at a time on one machine.",
        "nvit_vs_torch_pruning",
        "cifar10 --model leanvit/cifar10_vit --reference-images 1050000 --scratch-images 50000 --recover-images 5000 "
        "--val-images 5000",
        tables.pruning,
    ),
    Section(
        "Latency tables",
        "What a table of a model's blocks predicts for whole models of random widths, which it has not seen, against "
        "the clock: widths on multiples of 8, and any. `cifar` is the ViT of `leanvit/cifar10_vit`.",
        "latency_tables",
        "--model deit --runtime openvino-int8 --tables FOLDER --out benchmarks/results/latency_tables.json",
        tables.latency_tables,
    ),
    Section(
        "Training against timm's script",
        "Whole processes in turns: same model, images, batch, augmentation, optimiser, precision, workers, threads.",
        "train_speed",
        "--timm-script FILE --cifar10 FOLDER --photos SPEC",
        tables.training,
    ),
)


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/performance.md")
    write_atomic(path, page(path.resolve().parents[1] / "benchmarks" / "results").encode())


if __name__ == "__main__":
    main()
