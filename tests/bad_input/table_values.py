"""Values out of range: every knob of every method, every number of a training, every option of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wrong import NAME, Case, Cli, tiny

from leanvit.data import Augment, Preprocess, loader, open_dataset
from leanvit.deploy import Options
from leanvit.recipe import Recovery, parse_with
from leanvit.training import FitConfig, WholeBatch
from leanvit.verbs import compress, demo, export, measure, train

HUGE = 10**400  # a whole number that no float can hold


def _knob(slug: str, knob: str, value: str, *says: str) -> Case:
    """A knob as it is typed: JSON, else text."""
    return Case(f"{slug}:{knob}={value}", lambda: parse_with(f"{slug}:{knob}={value}"), says)


def _pruning(knob: str, value: str, *says: str) -> Case:
    """A knob of nvit beside a target."""
    return Case(f"nvit:{knob}={value}", lambda: parse_with(f"nvit:macs=0.5,{knob}={value}"), says)


def _searching(knob: str, value: str, *says: str) -> Case:
    """A knob of diffrate beside a target."""
    return Case(f"diffrate:{knob}={value}", lambda: parse_with(f"diffrate:macs=0.5,{knob}={value}"), says)


def _field(make: Callable[..., Any], field: str, value: Any, *says: str, name: str = "", **others: Any) -> Case:
    shown = "10^400" if value == HUGE else repr(value)
    return Case(f"{name or make.__name__}.{field}={shown}", lambda: make(**{field: value}, **others), says)


def _train(field: str, value: Any, *says: str, **others: Any) -> Case:
    return _field(FitConfig, field, value, rf"{field} is", *says, **others)


RATE = "above 0, up to 1"
WHOLE = r"whole number, "
NAN, INF = float("nan"), float("inf")

METHODS = [
    *(
        _knob("stvit", "after", v, "after is", "whole number, 0 or more, or null")
        for v in ("-1", "2.5", "true", "first")
    ),
    *(_knob("stvit", "window", v, "window is", "whole number, 1 or more, or null") for v in ("0", "[7,7]", "NaN")),
    *(_knob("stvit", "samples", v, "samples is", "whole number, 1 or more, or null") for v in ("0", "two")),
    *(_knob("stvit", knob, "2.5", f"{knob} is 2.5", "whole number") for knob in ("stage", "units")),
    _knob("stvit", "prefix", "keep,shortcut=false", "prefix=keep with shortcut=false", "give one of the two"),
    _knob("stvit", "window", "3,samples=4", "samples is 4", "1 to 3, the side of a window"),
    _knob("stvit", "seed", "-1", "seed is -1", "whole number, 0 or more"),
    *(_knob("stvit", knob, "1", f"{knob} is 1", "true or false, or null") for knob in ("use_global", "shortcut")),
    _knob("stvit", "prefix", "keeps", "prefix is 'keeps'", "did you mean 'keep'"),
    *(
        _knob("evit", "keep_rate", v, "keep_rate is", RATE)
        for v in ("0", "-0.5", "1.1", "NaN", "Infinity", "true", "high")
    ),
    _knob("evit", "keep_rate", "[]", r"keep_rate is \(\)", RATE),
    _knob("evit", "keep_rate", "[0.5,2]", r"keep_rate is \(0.5, 2\)", RATE),
    _knob("evit", "keep_rate", "null", "keep_rate is None", RATE),
    *(
        _knob("evit", "tokens", v, "tokens is", "whole number, 1 or more")
        for v in ("0", "-3", "2.5", "true", "many", "[0]")
    ),
    _knob("evit", "tokens", "[]", r"tokens is \(\)", "1 or more"),
    *(
        _knob("evit", "blocks", v, "blocks is", "block numbers, from 0")
        for v in ("3", "[-1]", "[1.5]", "[true]", "all")
    ),
    _knob("evit", "blocks", "[1,1]", r"blocks is \(1, 1\)", "different block numbers"),
    _knob("evit", "blocks", "[1,2", r"'blocks=\[1,2' lacks a closing ]", "each bracket and quote closed"),
    Case(
        "evit blocks beside a list",
        lambda: parse_with("evit:blocks=[1],keep_rate=[0.5,0.5]"),
        ("keep_rate lists every block", "one of the two"),
    ),
    Case(
        "evit schedule of several rates",
        lambda: parse_with("evit:keep_rate=[0.5,0.7],start_epoch=1"),
        ("keep_rate is", "a schedule steers a single rate"),
    ),
    *(_knob("evit", k, "-1", f"{k} is -1", "0 or more") for k in ("start_epoch", "shrink_epochs", "seed")),
    *(_knob("evit", k, "1.5", f"{k} is 1.5", "whole number") for k in ("start_epoch", "shrink_epochs", "seed")),
    *(_knob("evit", k, "NaN", f"{k} is nan", "whole number") for k in ("start_epoch", "seed")),
    *(_knob("evit", "fuse", v, "fuse is", "true or false") for v in ("1", "yes", "null")),
    *(_knob("evit", "select", v, "select is", "attention") for v in ("3", "[1]", "null")),
    *(
        _knob("tome", "r", v, "r is", "whole number, 0 or more")
        for v in ("-1", "1.5", "NaN", "true", "all", "null", "[]")
    ),
    _knob("tome", "r", "[3,2.0]", r"r is \(3, 2.0\)", "inflection", r"\[-1, 1\]"),
    _knob("tome", "r", "[3,NaN]", r"r is \(3, nan\)", "inflection", r"\[-1, 1\]"),
    _knob("tome", "r", "[3,-1,2]", r"r is \(3, -1, 2\)", "0 or more"),
    *(_knob("sit", k, v, f"{k} is", RATE) for k in ("keep_rate", "hidden") for v in ("0", "1.5", "NaN", "half")),
    *(
        _knob("sit", k, v, f"{k} is", "each 1 or more")
        for k in ("stages", "tokens")
        for v in ("3", "[]", "[0,4]", "[1.5]")
    ),
    *(_knob("sit", k, "-1", f"{k} is -1", "0 or more") for k in ("token_weight", "logit_weight", "seed")),
    *(_knob("sit", k, v, f"{k} is", "above 0") for k in ("temperature", "lr_scale") for v in ("0", "Infinity")),
    _knob("sit", "rtsm", "1", "rtsm is 1", "true or false"),
    *(_knob("tome", "prop_attn", v, "prop_attn is", "true or false") for v in ("1", "on")),
    *(_knob("gmm_mask", "mask", v, "mask is", "gmm") for v in ("3", "null", "none", "gaussian", "[1]")),
    *(_knob("gmm_mask", "init", v, "init is", "identity") for v in ("0", "null", "zeros")),
    *(_knob("gmm_mask", "num_kernels", v, "num_kernels is", "1 or more") for v in ("0", "-1", "2.5", "true", "all")),
    *(_knob("gmm_mask", "blocks", v, "blocks is", "block numbers, from 0") for v in ("3", "[-1]", "[1.5]", "all")),
    _knob("gmm_mask", "blocks", "[1,1]", r"blocks is \(1, 1\)", "different block numbers"),
    *(_knob("gmm_mask", "seed", v, "seed is", "0 or more") for v in ("-1", "1.5", "NaN")),
    *(_knob("gmm_mask", "weight_decay", v, "weight_decay is", "true or false") for v in ("1", "no")),
    *(_knob("int8", "images", v, "images is", "1 or more") for v in ("0", "-1", "2.5", "NaN", "true", "all")),
    *(_knob("int8", "calibration", v, "calibration is", "minmax") for v in ("3", "[1]", "null")),
    *(_knob("int8", "products", v, "products is", "true or false") for v in ("1", "no")),
    *(_knob("int8", "skip", v, "skip is", "patterns of site names") for v in ("3", "[1]", "null", "true")),
    Case("nvit without a target", lambda: parse_with("nvit"), ("no target", "one of latency, macs, params")),
    Case("nvit with two targets", lambda: parse_with("nvit:macs=1,params=1"), ("macs and params", "one of")),
    *(
        _knob("nvit", target, v, f"{target} is", RATE)
        for target in ("latency", "macs", "params")
        for v in ("0", "-0.5", "1.1", "NaN", "Infinity", "true", "high", "[0.5]")
    ),
    *(
        _pruning(knob, v, f"{knob} is", "whole number")
        for knob in ("embed_group", "head_group", "qk_group", "v_group", "mlp_group", "interval", "batch_size", "batch")
        for v in ("0", "1.5", "true")
    ),
    *(_pruning("max_steps", v, "max_steps is") for v in ("0", "-1", "19", "NaN")),
    *(_pruning("prune_per_step", v, "prune_per_step is", "whole number") for v in ("0", "2.5", "all")),
    *(_pruning(k, v, f"{k} is", "0 or more") for k in ("eta", "weight_decay", "distillation") for v in ("-1", "NaN")),
    *(_pruning(k, v, f"{k} is", "above 0") for k in ("lr", "temperature") for v in ("0", "Infinity", "true")),
    *(_pruning("kinds", v, "kind", "embed") for v in ("[]", "3", "heads", "[mlp,heads]", "[1]")),
    *(_pruning("amp", v, "amp is", "bf16") for v in ("fp16", "3", "null")),
    *(_pruning("emb_norm", v, "emb_norm is", "plain") for v in ("3", "null", "excat")),
    *(_pruning("runtime", v, "runtime is", "torch") for v in ("3", "null", "tensorrt")),
    *(_pruning("table", v, "table is") for v in ("3", "latencies.json")),
    Case(
        "diffrate without a target", lambda: parse_with("diffrate"), ("no target", "macs, or the lists prune and merge")
    ),
    _knob("diffrate", "prune", "[5,0]", r"prune is \(5, 0\)", "from 1"),
    _knob("diffrate", "merge", "7", "merge is 7", "one per block"),
    *(_knob("diffrate", "macs", v, f"macs is {v}", "above 0, up to 1") for v in ("0", "1.5")),
    *(
        _searching(k, v, f"{k} is", "1 or more")
        for k in ("granularity", "max_steps", "batch_size")
        for v in ("0", "1.5")
    ),
    _searching("lr", "0", "lr is 0", "number above 0"),
    _searching("min_lr", "1", "min_lr is 1", "up to 0.01, which is lr"),
    _searching("macs_weight", "0", "macs_weight is 0", "above 0"),
    _searching("warmup", "1", "warmup is 1", "0 to 0.9"),
    _searching("prop_attn", "3", "prop_attn is 3", "true or false"),
    _searching("search", "random", "search is 'random'", "learned"),
    *(_searching("amp", v, "amp is", "bf16") for v in ("fp16", "3", "null")),
    _searching("search", "prune,prune=[5]", "search is 'prune'", "takes no lists"),
    *(_knob("lgvit", "exits", v, "exits is", "blocks passed") for v in ("3", "[0]", "[-1]", "[1.5]", "[true]", "all")),
    *(_knob("lgvit", "exits", v, "exits is", "each more than the last") for v in ("[2,2]", "[3,1]")),
    *(_knob("lgvit", "heads", v, "heads? .*(lph_dw|gah)") for v in ("3", "[1]", "lph", "[gah0]")),
    Case(
        "lgvit exits and heads of other lengths",
        lambda: parse_with("lgvit:exits=[1,2],heads=[linear]"),
        ("heads names 1 for 2 exits", "one an exit"),
    ),
    _knob("lgvit", "rule", "sure", "rule is 'sure'", "confidence"),
    *(_knob("lgvit", "threshold", v, "threshold is", "0 .* to 1") for v in ("-0.1", "1.5", "[2]")),
    *(_knob("lgvit", "threshold", v, "threshold is", "a number; a list of such") for v in ("NaN", "true", "high")),
    Case(
        "lgvit entropy below 0",
        lambda: parse_with("lgvit:rule=entropy,threshold=-1"),
        ("threshold is -1", "nats"),
    ),
    Case(
        "lgvit half a streak",
        lambda: parse_with("lgvit:rule=patience,threshold=1.5"),
        ("threshold is 1.5", "whole number of exits"),
    ),
    Case(
        "lgvit thresholds of other exits",
        lambda: parse_with("lgvit:exits=[1,2],threshold=[0.5]"),
        ("threshold names 1 for 2 exits",),
    ),
    *(_knob("lgvit", "patience", v, "patience is", "1 or more") for v in ("0", "1.5", "null")),
    *(_knob("lgvit", "speedup", v, "speedup is", "1 or more") for v in ("0.5", "NaN", "true", "fast")),
    *(_knob("lgvit", "points", v, "points is", "0 to 100") for v in ("-1", "101", "NaN")),
    Case("lgvit with two targets", lambda: parse_with("lgvit:speedup=2,points=1"), ("speedup and points", "one of")),
    Case(
        "lgvit target without images",
        lambda: parse_with("lgvit:points=1,held_out=0"),
        ("points is a target, and held_out is 0",),
    ),
    *(_knob("lgvit", "held_out", v, "held_out is", "0 to 0.5") for v in ("-0.1", "0.6", "true")),
    *(_knob("lgvit", k, v, f"{k} is", "0 or more") for k in ("stage1_epochs", "epochs") for v in ("-1", "1.5")),
    _knob("lgvit", "batch_size", "1", "batch_size is 1", "2 or more"),
    *(_knob("lgvit", k, v, f"{k} is", "above 0") for k in ("lr", "stage1_lr", "temperature") for v in ("0", "NaN")),
    _knob("lgvit", "alpha", "2", "alpha is 2", "0 to 1"),
    *(_knob("lgvit", f"beta_{k}ogeneous", "-1", "beta_", "0 or more") for k in ("heter", "hom")),
    _knob("lgvit", "strategy", "jointly", "strategy is 'jointly'", "alternating"),
    _knob("lgvit", "amp", "fp16", "amp is 'fp16'", "bf16"),
    _knob("lgvit", "augment", "heavy", "heavy", "light"),
    Case("method without knob text", lambda: parse_with("evit:0.7"), ("'0.7' is not knob=value",)),
]

TRAINING = [
    *(_train("epochs", v, WHOLE + "1") for v in (0, -1, 1.5, NAN, INF, True, "3", None)),
    *(_train("samples", v, WHOLE + "1") for v in (0, -1, 1.5, NAN, True, "3")),
    _train("samples", 100, "epochs, which is given too, 3", "one of the two", epochs=3),
    *(_train("warmup_steps", v, WHOLE + "1") for v in (0, -1, 1.5, True, "all")),
    _train("warmup_steps", 5, "warmup_epochs, which is given too, 1", "one of the two", warmup_epochs=1),
    Case(
        "warmup_steps of a rate that changes by epochs",
        lambda: FitConfig(warmup_steps=5, lr_per_epoch=True),
        ("warmup_steps counts steps", "warmup_epochs instead"),
    ),
    *(_train("eps", v, "number above 0") for v in (0, -1e-8, NAN, True, "small")),
    *(
        _train("eps", v, f"the optimizer '{name}' has none", optimizer=name)
        for v, name in ((1e-6, "sgd"), (1e-7, "momentum"), (1e-8, "lion"))
    ),
    *(_train("clip_mode", v, "norm, value or agc") for v in ("Norm", 3, None)),
    _train("clip_mode", "agc", "clip_grad is None: give it too"),
    Case(
        "clip_mode agc of sharded weights",
        lambda: FitConfig(clip_mode="agc", clip_grad=0.01, parallel="fsdp2"),
        ("clip_mode is 'agc'", "parallel is 'fsdp2'"),
    ),
    *(_train("layer_groups", v, "timm, mae, tinyvit or model", layer_decay=0.5) for v in ("beit", 1, None)),
    _train("layer_groups", "mae", "layer_decay: give it too"),
    *(_train("locked", v, "a list, each text") for v in (3, None, ["a", 2])),
    _train("locked", ("a", "a"), "none twice"),
    *(_train("batch_size", v, WHOLE + "1") for v in (0, -4, 2.0, True, "128")),
    *(_train("accumulate", v, WHOLE + "1") for v in (0, -1, 0.5, False)),
    *(_field(WholeBatch, "chunk", v, "chunk is", WHOLE + "1") for v in (0, -4, 2.5, True)),
    *(_train("lr", v, "number above 0") for v in (0, -1e-3, NAN, INF, True, "fast")),
    *(_train("lr_base", v, "number above 0", lr_base_size=512) for v in (0, -1.0, NAN, True, "x")),
    *(_train("lr_base_size", v, WHOLE + "1", lr_base=1e-3) for v in (0, -1, 2.5, True)),
    _train("lr_base_size", 512, "both are of lr_base"),
    *(_train("lr_counts_accumulation", v, "true or false", lr_base=1e-3, lr_base_size=8) for v in (1, "yes", None)),
    *(_train("warmup_lr", v, "0 or more|up to 0.001, which is lr") for v in (-1.0, 1.0, NAN, True)),
    *(_train("layer_decay", v, "number above 0, up to 1") for v in (0, -0.5, 1.5, NAN, True)),
    *(_train("backbone_lr_scale", v, "number above 0, up to 1") for v in (0, -0.5, 1.5, NAN, True)),
    *(_train("repeats", v, WHOLE + "1") for v in (0, -1, 1.5, True)),
    *(_train("optimizer", v, "accepted: adamw, nadamw") for v in ("adam", "AdamW", 3, None)),
    *(_train("momentum", v, "number from 0, below 1", optimizer="sgd") for v in (-0.1, 1.0, NAN, True)),
    _train("momentum", 0.5, "the optimizer 'adamw' has none"),
    _train("betas", (0.8, 0.9), "the optimizer 'sgd' has none", optimizer="sgd"),
    *(_train("mix_prob", v, "number from 0 to 1") for v in (-0.1, 1.1, NAN, True)),
    *(_train("mix_switch_prob", v, "number from 0 to 1") for v in (-0.1, 1.1, NAN, "half")),
    *(_train("mix_off_epoch", v, WHOLE + "0") for v in (-1, 1.5, True)),
    _train("min_lr", -1.0, "number, 0 or more"),
    _train("min_lr", 1.0, "up to 0.001, which is lr"),
    _train("min_lr", NAN, "number, 0 or more"),
    *(_train("warmup_epochs", v, "0 or more|below 10") for v in (-1, 10, NAN, True, "one")),
    *(_train("weight_decay", v, "number, 0 or more") for v in (-0.1, NAN, INF, True, "x")),
    *(_train("label_smoothing", v, "number from 0, below 1") for v in (-0.1, 1.0, NAN, HUGE)),
    *(_train("mixup", v, "number, 0 or more") for v in (-1, NAN, INF, True)),
    *(_train("cutmix", v, "number, 0 or more") for v in (-1, NAN, "on")),
    *(_train("clip_grad", v, "number above 0") for v in (0, -1.0, NAN, True, "norm")),
    *(_train("ema_decay", v, "number from 0, below 1") for v in (-0.1, 1, NAN, HUGE, True)),
    *(
        _train("betas", v, "a list of 2, each a number from 0, below 1")
        for v in (0.9, (0.9,), (0.9, 1.0), (NAN, 0.9), (True, 0.9), "ab")
    ),
    *(_train("cooldown_epochs", v, "0 or more|below 10") for v in (-1, 10, "one")),
    *(_train(name, 1, "true or false") for name in ("warmup_prefix", "lr_per_epoch")),
    *(_train("ema_warmup", v, "true or false") for v in (1, "yes", None)),
    *(_train("seed", v, WHOLE + "0") for v in (-1, 0.5, True, "x", None)),
    *(_train("workers", v, WHOLE + "0") for v in (-1, 1.5, True)),
    *(_train("save_every", v, WHOLE + "1") for v in (0, -2, 1.5, True)),
    *(_train("schedule", v, "accepted: cosine, linear") for v in (3, None)),
    *(_train("compile", v, "true or false") for v in (1, "yes", None)),
    _train("compile", True, "parallel is 'fsdp2'", "one of the two", parallel="fsdp2"),
    *(_field(FitConfig, "augment", v, "augment is", "light") for v in (3, True, ["light"])),
    _train("batch_size", 7, "in pairs", "even batch_size", mixup=0.2),
    *(
        _field(Augment, f, v, rf"Augment\.{f} is", "0 to 1")
        for f in ("hflip", "erase", "padding")
        for v in (-0.1, 1.5, NAN)
    ),
    *(_field(Augment, "hflip", v, r"Augment\.hflip is", "0 to 1") for v in (True, "often")),
    *(_field(Augment, "color_jitter", v, r"color_jitter is", "0 or more") for v in (-1, NAN, "a lot")),
    *(
        _field(Augment, "scale", v, r"scale is", "low, high")
        for v in ((0.0, 1.0), (1.0, 0.5), 0.5, (0.1,), (NAN, 1.0), "ab")
    ),
    *(_field(Augment, "ratio", v, r"ratio is", "low, high") for v in ((-1.0, 1.0), ("a", "b"), (0.5, INF))),
    *(_field(Recovery, "epochs", v, "recovery epochs is", "1 or more") for v in (0, -1, 1.5, True)),
    *(_field(Recovery, "batch_size", v, "recovery batch_size is", "1 or more") for v in (0, 2.5)),
    *(_field(Recovery, "lr", v, "recovery lr is", "above 0") for v in (0, -1, NAN, INF, "fast")),
    *(_field(Recovery, "alpha", v, "recovery alpha is", "0 to 1") for v in (-0.1, 1.1, NAN, True)),
    *(_field(Recovery, "temperature", v, "recovery temperature is", "above 0") for v in (0, -2.0, NAN)),
]

OTHERS = [
    *(_field(Options, "threads", v, "threads is", "1 or more") for v in (0, -1, True)),
    Case("limit of data 0", lambda: open_dataset("digits", limit=0), ("limit is 0", "1 or more")),
    Case("limit of data negative", lambda: open_dataset("digits", limit=-5), ("limit is -5", "1 or more")),
    Case(
        "verb train limit text",
        lambda: train("run", "digits", limit="5"),
        ("--limit is '5'", "whole number, 1 or more"),
    ),  # type: ignore[arg-type]
    Case("train limit bool", lambda: train("run", "digits", limit=True), ("--limit is True", "whole number")),
    Case("train limit float", lambda: train("run", "digits", limit=2.5), ("--limit is 2.5", "whole number")),  # type: ignore[arg-type]
    Case(
        "verb compress seed",
        lambda: compress("run", [parse_with("evit")], "digits", seed=-1),
        ("--seed is -1", "0 or more"),
    ),
    Case(
        "compress latency batch",
        lambda: compress("run", [parse_with("evit")], "digits", latency_batch=0),
        ("--batch is 0", "1 or more"),
    ),
    *(
        Case(f"verb measure rounds {v!r}", lambda v=v: measure("run", "digits", rounds=v), ("--rounds is", "3 or more"))  # type: ignore[misc]
        for v in (2, 0, -1, 3.5, True, "many")
    ),
    *(
        Case(
            f"verb measure batch {v!r}",
            lambda v=v: measure("run", "digits", latency_batch=v),
            ("--batch is", "1 or more"),
        )  # type: ignore[misc]
        for v in (0, -8, 1.5, True, None)
    ),
    *(
        Case(
            f"verb export batch {v!r}", lambda v=v: export("run", batch=v, out="new"), ("--batch is", "from 1 to 65536")
        )  # type: ignore[misc]
        for v in (0, -1, 2.5, True, 10**9, "8")
    ),
    Case("demo epochs", lambda: demo("new", epochs=0), ("epochs is 0", "whole number, 1")),
    *(
        Case(f"loader batch {v}", lambda v=v: loader(open_dataset("digits"), PRE, batch_size=v), ("batch_size is",))  # type: ignore[misc]
        for v in (0, -1)
    ),
]
PRE = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
CASES = [*METHODS, *TRAINING, *OTHERS]


def _argument(pair: str, *says: str) -> Cli:
    return Cli(f"model argument {pair}", ("export", NAME, *tiny(pair), "--out", "new"), says)


EVERY_PART = "locked=[cls_token,pos_embed,patch_embed,blocks,norm,head]"


def _train_cli(name: str, *words: str, says: tuple[str, ...]) -> Cli:
    argv = ("train", NAME, "--data", "digits", "--adapt", *tiny(), "--limit", "20", "--out", "new", *words)
    return Cli(f"train {name}", argv, says)


def _measure_cli(name: str, *words: str, says: tuple[str, ...]) -> Cli:
    return Cli(f"measure {name}", ("measure", "run", "--data", "digits", "--limit", "20", *words), says)


_RECOVER = ("compress", "run", "--with", "evit:blocks=[1]", "--data", "digits", "--limit", "20", "--recover", "1")

CLI = [
    Cli(
        "publish in nothing",
        ("publish", "run", "--data", "digits", "--out", "new", "--most-mb", "0"),
        ("--most-mb is 0.0", "above 0"),
    ),
    _train_cli("epochs 0", "--epochs", "0", says=("epochs is 0", "whole number, 1")),
    _train_cli("epochs text", "--epochs", "ten", says=("'--epochs'", "valid integer")),
    _train_cli("epochs fraction", "--epochs", "1.5", says=("'--epochs'", "valid integer")),
    _train_cli("lr nan", "--lr", "nan", says=("lr is nan", "number above 0")),
    _train_cli("lr inf", "--lr", "inf", says=("lr is inf", "number above 0")),
    _train_cli("lr negative", "--lr", "-1", says=("lr is -1.0", "number above 0")),
    _train_cli("lr text", "--lr", "fast", says=("'--lr'", "valid (number|float)")),
    _train_cli("batch 0", "--batch-size", "0", says=("batch_size is 0", "whole number, 1")),
    _train_cli("batch too large", "--batch-size", "64", says=("batch_size=64", "digits has 20", "smaller batch_size")),
    _train_cli("seed negative", "--seed", "-1", says=("seed is -1", "whole number, 0")),
    _train_cli("limit 0", "--limit", "0", says=("--limit is 0", "1 or more")),
    _train_cli("limit text", "--limit", "all", says=("'--limit'", "valid integer")),
    _train_cli("set lr NaN", "--set", "lr=NaN", says=("lr is nan", "number above 0")),
    _train_cli("set lr text", "--set", "lr=fast", says=("lr is 'fast'", "number above 0")),
    _train_cli("set lr bool", "--set", "lr=true", says=("lr is True", "number above 0")),
    _train_cli("set lr too large", "--set", "lr=1e999", says=("lr is inf", "number above 0")),
    _train_cli("set many digits", "--set", "clip_grad=" + "9" * 5000, says=("clip_grad is", "number above 0")),
    _train_cli("set nested", "--set", "betas=" + "[" * 50_000, says=("betas=.* opens more than 50 brackets",)),
    _train_cli("samples and epochs", "--samples", "60", "--epochs", "2", says=("samples is 60", "epochs, .* 2")),
    _train_cli("samples 0", "--samples", "0", says=("samples is 0", "1 or more")),
    _train_cli("set clip_mode", "--set", "clip_mode=agc", says=("clip_mode is 'agc'", "clip_grad is None")),
    _train_cli(
        "set locked",
        *("--set", "locked=[block.0]"),
        says=(r"unknown locked module 'block\.0'", r"did you mean 'blocks\.0'"),
    ),
    _train_cli("set locked all", "--set", EVERY_PART, says=("locked is", "leaves no parameter that learns")),
    _train_cli("set warmup_steps", "--set", "warmup_steps=99", says=("warmup_steps is 99", "below 50, the steps of")),
    _train_cli("samples 1", "--samples", "1", says=("samples is 1;", "or more, which are the images of one step")),
    _train_cli("set eps", "--set", "eps=0", says=("eps is 0", "number above 0")),
    _train_cli("set layer_groups", "--set", "layer_groups=mea", says=("layer_groups is 'mea'", "did you mean 'mae'")),
    _train_cli("set betas", "--set", "betas=[0.9]", says=(r"betas is \[0.9\]", "a list of 2")),
    _train_cli("set seed", "--set", "seed=-3", says=("seed is -3", "0 or more")),
    _train_cli("set augment", "--set", "augment=heavy", says=("augment is 'heavy'", "light")),
    _train_cli("set save_every", "--set", "save_every=0", says=("save_every is 0", "1 or more")),
    _train_cli("set workers", "--set", "workers=-1", says=("workers is -1", "0 or more")),
    _measure_cli("rounds 2", "--rounds", "2", says=("--rounds is 2", "3 or more")),
    _measure_cli("rounds text", "--rounds", "x", says=("'--rounds'", "valid integer")),
    _measure_cli("batch 0", "--batch", "0", says=("--batch is 0", "1 or more")),
    _measure_cli("batch negative", "--batch", "-1", says=("--batch is -1", "1 or more")),
    _measure_cli("limit negative", "--limit", "-1", says=("--limit is -1", "1 or more")),
    Cli("export opset", ("export", "run", "--to", "onnx", "--opset", "16", "--out", "new"), ("opset is 16", "17, 18")),
    Cli("export opset of openvino", ("export", "run", "--opset", "17"), ("opset is 17", "runtime is openvino")),
    Cli("predict top", ("predict", "run", "digits", "--top", "0"), ("top is 0", "1 or more")),
    Cli("predict batch", ("predict", "run", "digits", "--batch", "-1"), ("batch is -1", "1 or more")),
    Cli("predict workers", ("predict", "run", "digits", "--workers", "-1"), ("workers is -1", "0 or more")),
    Cli("predict task", ("predict", "run", "digits", "--task", "segmentatoin"), ("unknown task", "'segmentation'")),
    Cli(
        "predict task field",
        ("predict", "run", "digits", "--task", "segmentation:ingore=3"),
        ("segmentation has no field 'ingore'", "'ignore'"),
    ),
    Cli(
        "predict task value",
        ("predict", "run", "digits", "--task", "segmentation:ignore=x"),
        ("segmentation.ignore is 'x'", "a whole number"),
    ),
    Cli(
        "predict task that does not fit",
        ("predict", "run", "digits", "--task", "segmentation", "--out", "new.csv"),
        (r"predict \(segmentation\): the model gives one answer an image", "one of each pixel"),
    ),
    Cli(
        "predict task twice",
        ("predict", "run", "digits", "--multi-label", "--task", "multi_label"),
        ("--multi-label says what the outputs mean", "give one of both"),
    ),
    Cli(
        "export task",
        ("export", "run", "--task", "segmentatoin", "--out", "new"),
        ("unknown task 'segmentatoin'", "did you mean 'segmentation'"),
    ),
    Cli(
        "export task that does not fit",
        ("export", "run", "--task", "segmentation", "--out", "new"),
        (r"export \(segmentation\): the model gives one answer an image", "one of each pixel"),
    ),
    Cli("predict split", ("predict", "run", "digits", "--split", "all"), ("unknown split 'all'", "train, val")),
    Cli("latencies batch", ("latencies", "run", "--batch", "0", "--out", "new"), ("--batch is 0", "from 1 to 65536")),
    Cli("latencies rounds", ("latencies", "run", "--rounds", "2"), ("--rounds is 2", "3 or more")),
    Cli("latencies check", ("latencies", "run", "--check", "-1"), ("--check is -1", "0 or more")),
    Cli("latencies threads", ("latencies", "run", "--threads", "0"), ("--threads is 0", "1 or more")),
    Cli("latencies threads text", ("latencies", "run", "--threads", "all"), ("'--threads'", "valid integer")),
    Cli("export batch 0", ("export", "run", "--batch", "0", "--out", "new"), ("--batch is 0", "from 1 to 65536")),
    Cli("export batch huge", ("export", "run", "--batch", "9999999", "--out", "new"), ("--batch is 9999999", "65536")),
    Cli("export batch text", ("export", "run", "--batch", "any"), ("'--batch'", "valid integer")),
    Cli("compress batch 0", ("compress", "run", "--with", "evit", "--batch", "0"), ("--batch is 0", "1 or more")),
    Cli(
        "recover negative",
        ("compress", "run", "--with", "evit", "--data", "digits", "--recover", "-1"),
        ("recovery epochs is -1", "1 or more"),
    ),
    Cli(
        "recover lr",
        ("compress", "run", "--with", "evit", "--data", "digits", "--recover", "1", "--recover-lr", "nan"),
        ("recovery lr is nan", "above 0"),
    ),
    Cli(
        "recover too few images",
        (
            "compress",
            "run",
            "--with",
            "evit",
            "--data",
            "digits",
            "--limit",
            "20",
            "--recover",
            "1",
            "--recover-batch",
            "64",
        ),
        ("recovery batch_size is 64", "20 training images", "--recover-batch 20", "--limit"),
    ),
    Cli(
        "recovery setting",
        (*_RECOVER, "--recover-set", "label_smoothin=0.1"),
        ("no setting 'label_smoothin'", "did you mean"),
    ),
    Cli("recovery seed", (*_RECOVER, "--recover-set", "seed=1"), ("no setting 'seed'", "--seed")),
    Cli("recovery value", (*_RECOVER, "--recover-set", "ema_decay=2"), ("recovery: ema_decay is 2", "from 0, below 1")),
    Cli("recovery augment", (*_RECOVER, "--recover-set", "augment=strongest"), ("strongest",)),
    Cli("recovery alpha", (*_RECOVER, "--recover-set", "alpha=2"), ("recovery alpha is 2", "0 to 1")),
    Cli("recovery each", (*_RECOVER, "--recover-set", "each=1"), ("recovery each is 1", "true or false")),
    Cli(
        "recovery set twice",
        (*_RECOVER, "--recover-set", "alpha=1", "--recover-set", "alpha=0"),
        ("alpha is given twice",),
    ),
    Cli(
        "recovery accumulates",
        (*_RECOVER, "--recover-set", "batch_size=10", "--recover-set", "accumulate=3"),
        ("30|accumulate",),
    ),
    Cli("distill", (*_RECOVER, "--distill", "harder"), ("distillation is 'harder'", "soft or hard")),
    Cli(
        "distill without recovery",
        ("compress", "run", "--with", "evit", "--data", "digits", "--distill", "hard"),
        ("distillation is given for a recovery that was not requested", "--recover EPOCHS"),
    ),
    Cli(
        "teacher without recovery",
        ("compress", "run", "--with", "evit", "--data", "digits", "--teacher", "run"),
        ("--teacher run: nothing here trains", "--recover"),
    ),
    Cli(
        "teacher missing",
        (*_RECOVER, "--recover-set", "batch_size=10", "--teacher", "nowhere/at"),
        ("no run folder at nowhere/at",),
    ),
    Cli(
        "teacher of other images",
        (*_RECOVER, "--recover-set", "batch_size=10", "--teacher", "larger"),
        ("--teacher larger knows images",),
    ),
    Cli("compress seed", ("compress", "run", "--with", "evit", "--data", "digits", "--seed", "-1"), ("--seed is -1",)),
    Cli("compress knob", ("compress", "run", "--with", "evit:keep_rate=1.5"), ("keep_rate is 1.5", RATE)),
    Cli("compress block", ("compress", "run", "--with", "evit:blocks=[7]"), ("block is 7", "0 to 1")),
    Cli(
        "compress rates",
        ("compress", "run", "--with", "evit:keep_rate=[1,1,1]"),
        ("keep_rate lists 3", "2 .one per block"),
    ),
    Cli("compress merges", ("compress", "run", "--with", "tome:r=[1,1,1]"), ("r lists 3 blocks", "up to 2")),
    Cli(
        "compress skip",
        ("compress", "run", "--data", "digits", "--limit", "8", "--no-measure", "--with", "int8:skip=hed,images=4"),
        ("skip pattern 'hed' fits no site", "did you mean 'head'"),
    ),
    Cli("demo epochs 0", ("demo", "--out", "new", "--epochs", "0"), ("epochs is 0", "whole number, 1")),
    _argument("depth=-1", "depth is -1", "accepted: 1 or more"),
    _argument("depth=513", "depth is 513", "up to 512"),
    _argument("depth=two", "depth=two"),
    _argument("embed_dim=0", "embed_dim is 0", "accepted: 1 or more"),
    _argument("embed_dim=1000000", "embed_dim is 1000000", "up to 65536"),
    _argument("num_heads=0", "num_heads is 0", "accepted: 1 or more"),
    _argument("num_heads=5", "num_heads=5", "divisible"),
    _argument("patch_size=0", "patch_size is 0", "accepted: 1 or more"),
    _argument("img_size=0", "img_size is 0", "accepted: 1 or more"),
    _argument("img_size=-16", "img_size is -16", "accepted: 1 or more"),
    _argument("in_chans=0", "in_chans is 0", "accepted: 1 or more"),
    _argument("in_chans=-3", "in_chans is -3", "accepted: 1 or more"),
    _argument("num_classes=-1", "num_classes is -1", "accepted: 0 or more"),
    _argument("drop_rate=2", "drop_rate=2"),
    Cli(
        "model larger than memory",
        ("export", NAME, *tiny("embed_dim=65536", "depth=32"), "--out", "new"),
        ("embed_dim=65536", "GiB; this machine has"),
    ),
]
