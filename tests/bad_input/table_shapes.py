"""Shapes that do not fit: image sizes and patches, channels, classes, batches, lists and the model's depth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from wrong import NAME, Case, Cli, tiny

from leanvit.data import Preprocess, adapted_kwargs, check_fits, open_dataset
from leanvit.deploy import export, read_artefact
from leanvit.deploy.running import Runner
from leanvit.deploy.runtimes import Options
from leanvit.errors import LeanvitError
from leanvit.measure import compare, count, paired_latency
from leanvit.recipe import Plan, Root, create, load, load_run, reapply
from leanvit.recipe.compressing import Recovery, compress
from leanvit.recipe.learning import Data
from leanvit.recipe.text import parse_with
from leanvit.training import CrossEntropy, FitConfig, Objective, WholeBatch, fit

TOO_LARGE = {
    "embed_dim": 12,
    "depth": 1,
    "num_heads": 1,
    "img_size": 32,
    "patch_size": 8,
    "in_chans": 1,
    "num_classes": 10,
}


def _create(name: str, says: tuple[str, ...], **kwargs: object) -> Case:
    return Case(name, lambda: create(Root(NAME, {"embed_dim": 12, "depth": 1, "num_heads": 1, **kwargs})), says)


def _t2t(name: str, model: str, says: tuple[str, ...], **kwargs: object) -> Case:
    small = {"img_size": 32, "embed_dim": 16, "num_heads": 2, "token_dim": 8}
    return Case(f"t2t {name}", lambda: create(Root(f"t2t_vit_{model}", {**small, **kwargs})), says)


def _own(name: str, says: tuple[str, ...], **kwargs: object) -> Case:
    """One of leanvit's own architectures."""
    given = ", ".join(f"{key}={value}" for key, value in kwargs.items())
    return Case(f"{name} {given}", lambda: create(Root(name, kwargs)), says)


def _preprocess(name: str, says: tuple[str, ...], **fields: object) -> Case:
    given = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), **fields}
    return Case(f"preprocess {name}", lambda: Preprocess(**given), says)  # type: ignore[arg-type]


def _fits(run: str, data: str, **kwargs: bool) -> None:
    one = load_run(run)
    assert one.preprocess is not None
    check_fits(one.model, one.preprocess, open_dataset(data), **kwargs)


def _runner() -> Runner:
    return Runner(read_artefact("artefact"), lambda x: np.zeros((len(x), 10), np.float32), Options())


def _fit(run: str, data: str) -> None:
    one = load_run(run)
    assert one.preprocess is not None
    fit(one.model, open_dataset(data), preprocess=one.preprocess, config=FitConfig(batch_size=2))


def _recover(batch: int) -> None:
    one = load_run("run")
    assert one.preprocess is not None
    data = Data(open_dataset("digits", "train", limit=10), one.preprocess)
    compress(one.model, [parse_with("evit")], data, recovery=Recovery(batch_size=batch))


def _maps(name: str, says: tuple[str, ...], size: int = 32, indices: object = None) -> Case:
    """Feature maps of a model of one block, for images of 32x32."""
    sizes = {"embed_dim": 12, "depth": 1, "num_heads": 1, "img_size": 32}
    images = torch.zeros(1, 3, size, size)
    return Case(f"maps {name}", lambda: create(Root(NAME, sizes)).maps(images, indices), says)  # type: ignore[arg-type]


CASES = [
    *(
        _maps(f"{indices!r}", ("indices is", r"how many of the last of 1 maps \(1 to 1\), or a list"), indices=indices)
        for indices in (0, 2, True, 1.5, "last", [], [1], [None])
    ),
    _maps("of another size", ("images are 48x48, the model takes 32x32",), size=48),
    _create("patch larger than image", ("img_size=8", "cannot run"), img_size=8, patch_size=16),
    _create("heads that do not divide", ("num_heads=5", "divisible"), num_heads=5),
    _create("image size of three", ("img_size", "cannot build"), img_size=[8, 8, 8]),
    _create("image size text", ("img_size=small", "cannot build"), img_size="small"),
    _create("channels text", ("in_chans=rgb", "cannot build"), in_chans="rgb"),
    _t2t("image of 40", "7", ("img_size is 40", "multiples of 16"), img_size=40),
    _t2t("image text", "7", ("img_size is 'small'", "multiples of 16"), img_size="small"),
    _t2t("image of three", "7", (r"img_size is \(32, 32, 32\)", r"a side or \(H, W\)"), img_size=[32, 32, 32]),
    _t2t("tokens type", "7", ("tokens_type is 'convolution'", "'performer', 'transformer'"), tokens_type="convolution"),
    _t2t("token dim 0", "7", ("token_dim is 0", "whole number, 1 or more"), token_dim=0),
    _t2t("token dim text", "t_14", ("token_dim is 'wide'", "whole number, 1 or more"), token_dim="wide"),
    _t2t("heads", "7", ("num_heads is 3, which does not divide the width 16",), num_heads=3),
    _t2t("channels text", "7", ("in_chans is 'rgb'", "whole number, 1 or more"), in_chans="rgb"),
    _t2t("mlp nan", "7", ("mlp_ratio is nan", "a number above 0"), mlp_ratio=float("nan")),
    _t2t("drop path 1", "7", ("drop_path_rate is 1", "below 1"), drop_path_rate=1),
    _t2t("pool", "7", ("global_pool is 'max'", "token or avg"), global_pool="max"),
    _t2t("positions", "7", ("resize_positions is 'cubic'", "interpolate or sinusoid"), resize_positions="cubic"),
    _t2t("precision", "7", ("fp32_tokenizer is 'yes'", "true or false"), fp32_tokenizer="yes"),
    _t2t("stable", "7", ("stable_exp is 1", "true or false"), stable_exp=1),
    _t2t("ghost ratio", "16_ghost", ("mlp_ratio is 2", "3, and an even width"), mlp_ratio=2),
    _t2t("dense depth", "dense", ("depth is 3", "takes depths"), depth=3),
    _t2t("dense depths", "dense", (r"depths is \(2, 0\)", "1 or more each"), depths=[2, 0]),
    _t2t("dense growth", "dense", ("growth is 0", "a whole number, 1 or more"), growth=0),
    _own("litv2_small", ("alpha is 1.5", "a number from 0 to 1"), alpha=1.5),
    _own("litv2_small", ("img_size=100", "100x100", "divisible by 32", "strict_img_size=False"), img_size=100),
    _own("litv2_small", ("depths has 3, num_heads has 4", "one value a stage"), depths=[2, 2, 6]),
    _own("litv2_small", (r"num_heads\[2\] is 7", "divide"), num_heads=[3, 6, 7, 24]),
    _own("litv2_small", ("window_size is -1", "1 or more"), local_ws=[0, 0, -1, 1]),
    _own("litv2_small", ("global_pool is 'max'", "'avg'"), global_pool="max"),
    _own("stvit_r_swin_tiny", (r"depths\[2\] is 4", "a multiple of 6"), depths=[2, 2, 4, 2]),
    _own("stvit_r_swin_tiny", ("depths has 3, num_heads has 4", "one value a stage"), depths=[2, 2, 6]),
    _own("stvit_r_swin_tiny", ("samples is 8", "a whole number from 1 to 7"), samples=8),
    _own("stvit_r_swin_tiny", ("units is 0", "1 or more"), units=0),
    _own("stvit_r_swin_tiny", ("semantic_stage is 4", "0 to 3"), semantic_stage=4),
    _own("stvit_r_swin_tiny", ("map of 14x28", "square ones; padded=True"), img_size=[224, 448]),
    _own("stvit_r_swin_tiny", ("16 tokens a side in windows of 7", "padded=True takes maps of any size"), img_size=256),
    _own("stvit_r_swin_tiny", ("images are 230x230", "divisible by 32", "padded=True"), img_size=230),
    _own("stvit_r_swin_tiny", ("use_global=True", "give one of the two"), use_global=True, padded=True),
    _own("stvit_r_swin_tiny", ("padded is 'yes'", "true or false"), padded="yes"),
    _own("stvit_r_swin_tiny", (r"num_heads\[1\] is 7", "divide"), num_heads=[3, 7, 12, 24]),
    _own("stvit_r_swin_tiny", ("embed_dim is 95", "even whole number"), embed_dim=95),
    _own("lvvit_small", ("img_size is 100", "multiples of 16"), img_size=100),
    _own("lvvit_small", ("embed_dim is 36", "multiples of 8"), embed_dim=36),
    _own("lvvit_small", ("num_heads is 7", "does not divide embed_dim 384"), num_heads=7),
    _own("lvvit_small", ("stem is '5c'", "4c, 6c or naive"), stem="5c"),
    _own("lvvit_small", ("stem '4c' has stride 16", "stem='naive'"), patch_size=8),
    _own("lvvit_small", ("skip_lam is 0", "above 0"), skip_lam=0),
    _own("sit_small", ("15 blocks in all", "accepted: 16"), stage_blocks=[9, 3, 2, 1]),
    _own("sit_small", (r"stage_blocks is .*0", "1 or more"), stage_blocks=[16, 0]),
    _own("sit_small", ("keep_rate is 1.5", "up to 1"), keep_rate=1.5),
    _own("sit_small", ("keep_rate is 0.1", "none of 196 patches in stage 3"), keep_rate=0.1),
    _own("dct_histo_tiny", (r"keep is \(0.5, 0.5, 2", "a number above 0, up to 1"), keep=[0.5, 0.5, 2]),
    _own("dct_histo_tiny", ("32x32", "4x4 positions", "from 57 pixels"), img_size=32),
    _own("dct_histo_tiny", ("domain is 'wavelet'", "frequency or spatial"), domain="wavelet"),
    _preprocess("65 channels", ("input_size is", "1 to 64 channels"), input_size=(65, 8, 8), mean=(0.5,), std=(1,)),
    _preprocess("flat size", ("input_size is", "channels, height, width"), input_size=(8, 8)),
    _preprocess("size 0", ("input_size is", "channels, height, width"), input_size=(1, 0, 8)),
    _preprocess("size fraction", ("input_size is", "channels, height, width"), input_size=(1, 8.5, 8)),
    _preprocess("size text", ("input_size is", "channels, height, width"), input_size="8x8"),
    _preprocess("mean of three", ("mean is", "1 values, one a channel"), mean=(0.5, 0.5, 0.5)),
    _preprocess("mean number", ("mean is 0.5", "a list, each a number"), mean=0.5),
    _preprocess("std 0", ("std is", "each a number above 0"), std=(0.0,)),
    _preprocess("std nan", ("std is", "each a number above 0"), std=(float("nan"),)),
    _preprocess("crop 0", ("crop_pct is 0", "number above 0"), crop_pct=0),
    _preprocess("crop nan", ("crop_pct is nan", "number above 0"), crop_pct=float("nan")),
    _preprocess("crop bool", ("crop_pct is True", "number above 0"), crop_pct=True),
    Case("classes", lambda: _fits("colour", "digits"), ("classes: the model has 2, the data 10", "num_classes=10")),
    Case("channels", lambda: _fits("colour", "digits"), ("channels: the images have 1", "in_chans=1")),
    Case("channels converted, classes not", lambda: _fits("colour", "digits", convert=True), ("num_classes=10",)),
    Case(
        "enlarged",
        lambda: check_fits(
            create(Root(NAME, TOO_LARGE)), Preprocess((1, 32, 32), (0.5,), (0.5,)), open_dataset("digits")
        ),
        ("images of 8x8 would be enlarged 4x to 32x32", "img_size=8, patch_size=1"),
    ),
    Case(
        "preprocess of another size",
        lambda: check_fits(load("run"), Preprocess((1, 16, 16), (0.5,), (0.5,)), open_dataset("digits")),
        ("the model takes 8x8, preprocess gives 16x16", "Preprocess.of"),
    ),
    Case(
        "preprocess of other channels",
        lambda: check_fits(load("run"), Preprocess((3, 8, 8), (0.5,) * 3, (0.5,) * 3), open_dataset("digits")),
        ("channels: the model takes 1, preprocess gives 3",),
    ),
    Case("fit of other classes", lambda: _fit("colour", "digits"), ("classes: the model has 2, the data 10",)),
    Case("recovery larger than the data", lambda: _recover(64), ("batch_size is 64", "10 training images")),
    Case(
        "one image for a loss over the whole batch",
        lambda: _fit_batch(1, objective=WholeBatch()),
        ("batch_size=1 is too small for WholeBatch", "give 2 or more"),
    ),
    Case(
        "loss over the whole batch, accumulated",
        lambda: _fit_batch(5, objective=WholeBatch(), accumulate=2),
        ("accumulate=2 .* WholeBatch", "accumulate=1 with batch_size=10", "chunk=N"),
    ),
    Case(
        "chunks of compiled kernels",
        lambda: _fit_batch(4, objective=WholeBatch(chunk=2), compile=True),
        ("chunk=2 of WholeBatch needs compile=False",),
    ),
    Case(
        "pieces of an objective that has none",
        lambda: _fit_batch(4, objective=_Vague()),
        ("_Vague has pieces=2", "does not define piece"),
    ),
    Case(
        "unknown pairing",
        lambda: _fit_batch(4, objective=_Odd()),
        ("pairing of _Odd is 'odd'", "reversed or neighbours"),
    ),
    Case("fit batch larger than the data", lambda: _fit_batch(50), ("batch_size=50", "digits has 10")),
    Case(
        "validation of other classes",
        lambda: fit(
            load("run"),
            open_dataset("digits"),
            preprocess=load_run("run").preprocess,  # type: ignore[arg-type]
            config=FitConfig(),
            validate=open_dataset("photos"),
        ),
        ("validate has other classes", r"2 \(cat, dog\) against 10"),
    ),
    Case(
        "images of another size",
        lambda: _runner()(torch.zeros(2, 1, 9, 9)),
        ("images are float32", r"\(batch, 1, 8, 8\)"),
    ),
    Case("images of other channels", lambda: _runner()(torch.zeros(2, 3, 8, 8)), (r"\(2, 3, 8, 8\)", "takes float32")),
    Case("one image without batch", lambda: _runner()(torch.zeros(1, 8, 8)), (r"\(1, 8, 8\)", r"\(batch, 1, 8, 8\)")),
    Case("no image", lambda: _runner()(torch.zeros(0, 1, 8, 8)), (r"\(0, 1, 8, 8\)", "takes float32")),
    Case(
        "images of bytes",
        lambda: _runner()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)),
        ("images are uint8", "float32"),
    ),
    Case("images of doubles", lambda: _runner()(np.zeros((1, 1, 8, 8))), ("images are float64", "takes float32")),
    Case("no picture to classify", lambda: _runner().classify([]), ("images is empty", "one PIL image or more")),
    Case("labels as text", lambda: _export(labels="abc"), ("labels is 'abc'", "list of class names")),
    Case("labels too few", lambda: _export(labels=["a", "b"]), ("labels has 2", "the model has 10 classes")),
    Case("export size", lambda: _export(size=16), ("images are 16x16, the model takes 8x8",), LeanvitError),
    Case(
        "rates for another depth",
        lambda: compress(load("run"), [parse_with("evit:keep_rate=[1,0.5,1]")]),
        ("keep_rate lists 3 blocks", "2 .one per block"),
    ),
    Case(
        "block beyond the depth",
        lambda: compress(load("run"), [parse_with("evit:blocks=[2]")]),
        ("block is 2", "0 to 1"),
    ),
    Case(
        "merges beyond the depth",
        lambda: compress(load("run"), [parse_with("tome:r=[1,1,1]")]),
        ("r lists 3", "up to 2"),
    ),
    Case(
        "plan of another depth",
        lambda: reapply(load("run"), [Plan("evit", {}, {"blocks": [{"block": 5, "keep_rate": 0.5, "tokens": None}]})]),
        ("block is 5", "0 to 1"),
    ),
    Case("count of a wrong size", lambda: count(load("run"), (1, 9, 9)), ("images are 9x9, the model takes 8x8",)),
    Case("compare of nothing", lambda: compare({}, open_dataset("digits")), ("models|candidates", "at least one|none")),
    Case(
        "compare of two sizes",
        lambda: compare({n: _with_preprocess(n) for n in ("run", "larger")}, open_dataset("digits", "val", limit=10)),
        ("compared at one input size", r"\(1, 8, 8\), \(1, 16, 16\)"),
    ),
    Case(
        "compare with an unknown baseline",
        lambda: compare({"run": load("run")}, open_dataset("digits"), baseline="rum"),
        ("baseline 'rum'", "did you mean 'run'"),
    ),
    Case(
        "latency of another batch",
        lambda: paired_latency({"a": lambda x: x}, lambda n: torch.zeros(n + 1, 1), batch=2),
        (r"make_input\(2\) must give 2 images", "it gave 3"),
    ),
    Case("latency of no call", lambda: paired_latency({"a": 3}, torch.zeros, batch=1), ("'a' must be callable", "int")),  # type: ignore[dict-item]
    Case("no small images to adapt to", lambda: adapted_kwargs("vitt", {}, open_dataset("photos")), ("model 'vitt'",)),
]


class _Vague(CrossEntropy):
    pieces = 2


class _Odd(CrossEntropy):
    pairing = "odd"


def _fit_batch(batch: int, objective: Objective | None = None, **settings: Any) -> None:
    one = load_run("run")
    assert one.preprocess is not None
    config = FitConfig(batch_size=batch, **settings)
    fit(one.model, open_dataset("digits", limit=10), preprocess=one.preprocess, config=config, objective=objective)


def _with_preprocess(run: str) -> object:
    one = load_run(run)
    one.model.preprocess = one.preprocess  # type: ignore[assignment]
    return one.model


def _export(size: int = 8, **arguments: object) -> None:
    preprocess = Preprocess((1, size, size), (0.5,), (0.5,))
    export(load("run"), "new", to="torch", preprocess=replace(preprocess), **arguments)  # type: ignore[arg-type]


_DIGITS = ("--data", "digits", "--limit", "20")
_FIXED = tiny("num_classes=10", "in_chans=1")

CLI = [
    Cli(
        "train enlarges",
        ("train", NAME, *_DIGITS, *_FIXED, "--out", "new"),
        ("8x8 would be enlarged 28x to 224x224", "img_size=8, patch_size=1", "--adapt", "--convert"),
    ),
    Cli(
        "compress enlarges",
        ("compress", NAME, *_DIGITS, *_FIXED, "--with", "evit", "--out", "new"),
        ("8x8 would be enlarged 28x", "--adapt", "--convert"),
    ),
    Cli(
        "measure enlarges",
        ("measure", NAME, *_DIGITS, *_FIXED),
        ("8x8 would be enlarged 28x", "img_size=8", "--convert"),
    ),
    Cli(
        "train channels",
        ("train", NAME, *_DIGITS, *tiny("num_classes=10", "img_size=8", "patch_size=2")),
        ("in_chans=1",),
    ),
    Cli(
        "train classes converted",
        ("train", NAME, *_DIGITS, *tiny("img_size=8", "patch_size=2", "in_chans=1"), "--convert"),
        ("the model has 1000, the data 10", "num_classes=10", "--adapt"),
    ),
    Cli("train kept classes", ("train", NAME, *_DIGITS, *tiny("num_classes=7"), "--adapt"), ("has 7, the data 10",)),
    Cli("measure classes", ("measure", "colour", *_DIGITS), ("the model has 2, the data 10", "num_classes=10")),
    Cli(
        "measure data of other classes",
        ("measure", "run", "--data", "photos"),
        ("the model has 10, the data 2", "photos"),
    ),
    Cli(
        "measure two sizes",
        ("measure", "run", "--against", "larger", *_DIGITS, "--runtime", "openvino"),
        ("one input size", "1x8x8", "1x16x16"),
    ),
    Cli("train run classes", ("train", "run", "--data", "photos", "--out", "new"), ("has 10, the data 2",)),
    Cli("compress run classes", ("compress", "run", "--data", "photos", "--with", "evit"), ("has 10, the data 2",)),
    Cli(
        "export a patch larger than the image",
        ("export", NAME, *tiny("img_size=8"), "--out", "new"),
        ("img_size=8", "cannot run"),
    ),
]
