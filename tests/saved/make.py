"""Small runs of every method and architecture, saved by the code of their day: `python tests/saved/make.py`.

Makes the rows of `RUNS` that `tests/saved/runs/` lacks: NAME.zip, the run folder, and NAME.json, what it loads as. A
run that is there is never made again: that today's code loads what earlier code saved is what `test_saved_runs.py` is
for. Some methods learn from a few digits, so another machine makes other values.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import Tensor, nn

import leanvit.backbones  # noqa: F401 (registers leanvit's)
from leanvit.data import Preprocess, open_dataset
from leanvit.recipe import Data, Root, compress, load_run, make_method, save
from leanvit.recipe.store import Run

FOLDER = Path(__file__).parent / "runs"
PERIOD = 251  # of the noise that weights are made of: zip files of it are small


@dataclass(frozen=True)
class Saved:
    """What is saved: a timm model and the methods, by slug and knobs, that are applied to it in order."""

    name: str
    kwargs: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    stored_as: str = ""


def vit(name: str = "vit_tiny_patch16_224", stored_as: str = "", *, more: Any = None, **methods: Any) -> Saved:
    """16 patches of 4x4 pixels, two blocks; of timm's plain ViTs and their kin."""
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    return Saved(name, {**small, "num_classes": 5, **(more or {})}, methods, stored_as)


def swin(stored_as: str = "", *, name: str = "swin_tiny_patch4_window7_224", more: Any = None, **methods: Any) -> Saved:
    """8x8 tokens in windows of 4, then 4x4."""
    small = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": [2, 1], "num_heads": [2, 2]}
    return Saved(name, {**small, "mlp_ratio": 2.0, "num_classes": 5, **(more or {})}, methods, stored_as)


def model(name: str, stored_as: str = "float16", *, methods: Any = None, **kwargs: Any) -> Saved:
    """Any other one."""
    return Saved(name, {**kwargs, "num_classes": 5}, methods or {}, stored_as)


def t2t(name: str, **more: Any) -> Saved:
    """Images of 32 pixels: 2x2 tokens."""
    small = {"img_size": 32, "embed_dim": 16, "num_heads": 2, "token_dim": 8, "mlp_ratio": 2.0}
    return model(name, **(small | more))


DEIT, EVA, EVA02 = "deit_tiny_distilled_patch16_224", "eva_giant_patch14_224", "eva02_base_patch14_224"
WIDE = {"embed_dim": 32, "num_heads": 4}  # something to cut
FEW_STEPS = {"interval": 1, "max_steps": 4, "prune_per_step": 2, "batch_size": 4, "embed_group": 4, "mlp_group": 4}
CUT = {"macs": 0.8, "head_group": 1, "qk_group": 2, "v_group": 2, **FEW_STEPS}
EXITS = {"epochs": 0, "held_out": 0}
LVVIT = {"img_size": 32, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
DCT_HISTO = {"img_size": 64, "dims": [8, 8, 16], "depths": [1, 1, 1], "num_heads": [1, 1, 2]}
DHVT = {"img_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
INT8 = {"int8": {"images": 8}}

RUNS = {
    # each method by itself, in float32 and rounded
    "evit": vit(evit={"keep_rate": 0.5, "blocks": [0]}),
    "evit-distilled": vit(DEIT, "float16", evit={"tokens": [9, 5], "fuse": False}),
    "tome": vit(tome={"r": 3}),
    "tome-swin": swin("float16", tome={"r": 2}),
    "tome-beit": vit("beit_base_patch16_224", "float16", tome={"r": [2, 4], "prop_attn": False}),
    "diffrate": vit(diffrate={"prune": [17, 10], "merge": [14, 8]}),
    "diffrate-eva": vit(EVA02, "float16", diffrate={"prune": [15, 12], "merge": [13, 12]}),
    "sit": vit(sit={"stages": [1, 1]}),
    "sit-eva": vit(EVA, "bfloat16", sit={"stages": [1, 1], "tokens": [5]}),
    "stvit": vit(more={"depth": 4}, stvit={"samples": 2, "after": 1}),
    "stvit-swin": swin("float16", more={"img_size": 32, "depths": [1, 6]}, stvit={"samples": 2}),
    "int8": vit(**INT8),
    "int8-swin": swin("float16", **INT8),
    "int8-relative": vit("vit_relpos_base_patch16_clsgap_224", "float16", **INT8),
    "nvit": vit(more=WIDE, nvit=CUT),
    "nvit-exact": vit(stored_as="float16", more=WIDE, nvit={**CUT, "emb_norm": "exact"}),
    "nvit-swin": swin("float16", nvit={**CUT, "kinds": ["mlp", "qk"]}),
    "lgvit": vit(more={"depth": 3}, lgvit={**EXITS, "threshold": 0.985, "exits": [1, 2], "heads": ["lph_dw", "gah2"]}),
    "lgvit-swin": swin(
        "float16", lgvit={**EXITS, "exits": [1, 2], "heads": ["linear"] * 2, "rule": "patience", "threshold": 1}
    ),
    "gmm_mask": vit(gmm_mask={"num_kernels": 3, "init": "paper"}),
    "gmm_mask-swin": swin("float16", gmm_mask={"mask": "elm", "blocks": [0]}),
    # compositions
    "nvit-evit-int8": vit(more=WIDE, nvit=CUT, evit={"keep_rate": 0.6, "blocks": [0]}, **INT8),
    "gmm_mask-tome-int8": vit(
        DEIT, more={"depth": 3}, gmm_mask={"blocks": [1], "init": "paper"}, tome={"r": [3, 0, 0]}, **INT8
    ),
    "lgvit-int8": vit(
        "deit3_small_patch16_224",
        "float16",
        lgvit={**EXITS, "threshold": 0.6, "exits": [1], "heads": ["lph_pw"]},
        **INT8,
    ),
    # hybrids of timm, as traced graphs
    "int8-levit": model(
        "levit_128s",
        img_size=32,
        embed_dim=[16, 16, 16],
        key_dim=8,
        depth=[1, 1, 1],
        num_heads=[1, 2, 2],
        methods=INT8,
    ),
    "int8-cait": model("cait_xxs24_224", img_size=32, embed_dim=16, depth=2, num_heads=2, methods=INT8),
    # architectures of ours, dense and with methods
    "dct_histo": model("dct_histo_tiny", **DCT_HISTO),
    "dct_histo-int8": model("dct_histo_tiny", **DCT_HISTO, methods=INT8),
    "dhvt": model("dhvt_tiny_cifar_patch4", **DHVT),
    "dhvt-int8": model("dhvt_tiny_cifar_patch4", **DHVT, methods=INT8),
    "dualtoken_vit": model(
        "dualtoken_vit_small", img_size=64, dims=[8, 8, 16], depths=[1, 1, 1], num_heads=[2, 2, 2], token_side=2
    ),
    "revit": model("revit_tiny", img_size=16, patch_size=4, embed_dim=104),
    "litv2": model("litv2_small", img_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], mlp_ratio=1.0),
    "lv_vit-evit": model("lvvit_small", **LVVIT, methods={"evit": {"keep_rate": 0.5, "blocks": [1]}}),
    "lv_vit-slim": model("sit_large", **LVVIT, stage_blocks=[2, 1]),
    "stvit_r": model(
        "stvit_r_swin_tiny",
        img_size=64,
        embed_dim=8,
        depths=[1, 6],
        num_heads=[1, 2],
        semantic_stage=1,
        window_size=4,
        samples=2,
        mlp_ratio=1.0,
    ),
    "t2t_vit-tome": t2t("t2t_vit_7", depth=2, methods={"tome": {"r": 1}}),
    "t2t_vit-softmax": t2t("t2t_vit_t_14", depth=1),
    "t2t_vit-se": t2t("t2t_vit_14_se", depth=1),
    "t2t_vit-ghost-int8": t2t("t2t_vit_16_ghost", depth=1, mlp_ratio=3.0, methods=INT8),
    "t2t_vit-dense": t2t("t2t_vit_dense", depths=[1, 1], growth=8),
    "masked-vit": model("gmm_vit_cifar", img_size=16, embed_dim=16, depth=2, num_heads=2),
    "masked-cait": model("gmm_cait_cifar", img_size=16, embed_dim=16, depth=2, num_heads=2, head_dim=8),
    "masked-pit": model("elm_pit_cifar", img_size=16, base_dims=[8] * 3, depth=[1, 1, 1], heads=[1, 2, 2]),
    "masked-t2t": model("gmm_t2t_cifar", img_size=16, embed_dim=16, depth=2, num_heads=2, token_dim=8),
    "masked-swin": model("gmm_swin_cifar", img_size=16, embed_dim=8, depths=[1, 1], num_heads=[1, 2]),
}


def noise(tensor: Tensor, offset: int) -> Tensor:
    values = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0))
    return values[(torch.arange(tensor.numel()) + 7 * offset) % PERIOD].view(tensor.shape)


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Every parameter and statistic at a size that keeps activations of order one, so that a wrong detail shows."""
    values = [*model.named_parameters(), *(row for row in model.named_buffers() if "running" in row[0])]
    for offset, (name, tensor) in enumerate(values):
        some = noise(tensor, offset)
        if name.endswith("running_var"):
            tensor.copy_(some.abs() + 0.5)
        elif tensor.ndim == 1 and name.endswith(("weight", "gamma", "gamma_1", "gamma_2")):
            tensor.copy_(0.6 + 0.3 * some)  # norms and layer scales
        else:
            tensor.copy_(some * (1.5 / tensor[0].numel() ** 0.5 if tensor.ndim in (2, 4) else 0.5))
    return model.eval()


@torch.no_grad()
def move_new(lean: nn.Module, dense: nn.Module) -> None:
    """Noise on the parameters that methods added: at their initial values many of them change nothing."""
    known = dict(dense.named_parameters())
    for offset, (name, parameter) in enumerate(lean.named_parameters()):
        if name not in known:
            parameter.add_(0.1 * noise(parameter, offset))


def make(name: str) -> None:
    """Save one run and what it loads as."""
    row = RUNS[name]
    torch.manual_seed(0)
    root = Root(row.name, dict(row.kwargs))
    dense = compress(randomised(timm.create_model(row.name, **row.kwargs)), [], root=root)
    methods = [make_method(slug, knobs) for slug, knobs in row.methods.items()]
    preprocess = Preprocess(dense.probe_size(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic", 0.9, "center")
    digits = open_dataset("digits", "train", limit=32, classes=[str(digit) for digit in range(5)])
    lean = compress(dense, methods, Data(digits, preprocess, batch_size=8))
    move_new(lean, dense)
    FOLDER.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        save(lean, folder, stored_as=row.stored_as)
        text = json.dumps(described(load_run(folder)), indent=0)
        shutil.make_archive(str(FOLDER / name), "zip", folder)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def described(run: Run) -> dict[str, Any]:
    """What a loaded run is, as JSON: its history, names, preprocessing, tensors and logits."""
    history = run.model.history
    return {
        "root": history.root.to_json(),
        "plans": [plan.to_json() for plan in history.plans],
        "classes": list(run.model.classes),
        "preprocess": None if run.preprocess is None else run.preprocess.to_json(),
        "tensors": {key: digest(tensor) for key, tensor in run.model.state_dict().items()},
        "logits": exact_logits(run),
    }


def digest(tensor: Tensor) -> str:
    """Dtype, shape and the sha256 of the values, shortened to 64 bits."""
    values = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    shape = "x".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape} {hashlib.sha256(values).hexdigest()[:16]}"


def images(run: Run) -> Tensor:
    """Two images of noise, (2, C, H, W), float32 in [-1, 1), the same on every machine."""
    size = run.model.probe_size()
    numbers = torch.arange(1, 2 * math.prod(size) + 1) * 2654435761 % 2**32
    return (numbers.double() / 2**31 - 1).float().view(2, *size)


@torch.no_grad()
def exact_logits(run: Run) -> list[list[float]]:
    """Logits of `images`, computed in float64: a CPU's own order of sums is not seen, nor rounded up by int8."""
    return run.model.double()(images(run).double()).tolist()


if __name__ == "__main__":
    for lacking in [name for name in RUNS if not (FOLDER / f"{name}.json").is_file()]:
        make(lacking)
        print(f"{lacking}: {(FOLDER / f'{lacking}.zip').stat().st_size / 1024:.1f} KiB")
