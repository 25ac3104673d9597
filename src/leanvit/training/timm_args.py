"""The `args.yaml` that timm's training script leaves beside a run, as a training recipe.

`FIELDS` and `MODEL_ARGS` are taken over, `EFFECTLESS` change no result and are passed over in silence, `IGNORED` are
left out with a remark where they were set. Everything else is refused unless it is off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from leanvit.errors import BadInput, is_number
from leanvit.knobs import Choice, Count, Positive, check, check_each
from leanvit.training.config import OPTIMIZERS, WITHOUT_EPS
from leanvit.training.train_recipe import TrainRecipe

FIELDS = {  # timm's name -> the field of FitConfig, taken as it is
    "batch_size": "batch_size",
    "grad_accum_steps": "accumulate",
    "epochs": "epochs",
    "warmup_epochs": "warmup_epochs",
    "warmup_lr": "warmup_lr",
    "min_lr": "min_lr",
    "weight_decay": "weight_decay",
    "clip_grad": "clip_grad",
    "layer_decay": "layer_decay",
    "smoothing": "label_smoothing",
    "mixup": "mixup",
    "cutmix": "cutmix",
    "mixup_prob": "mix_prob",
    "mixup_switch_prob": "mix_switch_prob",
    "seed": "seed",
    "workers": "workers",
}
AUGMENT = {  # timm's name -> the field of Augment
    "scale": "scale",
    "ratio": "ratio",
    "hflip": "hflip",
    "color_jitter": "color_jitter",
    "aa": "auto_augment",
    "reprob": "erase",
}
MODEL_ARGS = {  # timm's name -> the constructor's argument
    "num_classes": "num_classes",
    "in_chans": "in_chans",
    "img_size": "img_size",
    "gp": "global_pool",
    "drop": "drop_rate",
    "drop_path": "drop_path_rate",
}
HANDLED = (
    "model", "model_kwargs", "pretrained", "opt", "opt_betas", "momentum", "sched", "lr", "lr_base", "lr_base_size",
    "lr_base_scale", "warmup_prefix", "sched_on_updates", "cooldown_epochs", "aug_repeats", "mixup_off_epoch",
    "model_ema", "model_ema_decay", "model_ema_warmup", "amp", "amp_dtype", "clip_mode", "opt_eps",
)  # fmt: skip
EFFECTLESS = (
    "data", "data_dir", "dataset", "train_split", "val_split", "class_map", "output", "experiment", "log_interval",
    "recovery_interval", "checkpoint_hist", "save_images", "pin_mem", "no_prefetcher", "eval_metric", "tta",
    "local_rank", "use_multi_epochs_loader", "log_wandb", "wandb_project", "wandb_tags", "validation_batch_size",
    "worker_seeding", "device", "distributed", "rank", "world_size", "crop_pct", "decay_epochs", "decay_milestones",
    "decay_rate", "patience_epochs", "lr_cycle_mul", "lr_cycle_decay", "lr_noise_pct", "lr_noise_std", "recount",
    "remode", "dist_bn", "mixup_mode", "lr_cycle_limit", "channels_last", "grad_checkpointing",
    "fast_norm", "torchcompile", "torchcompile_mode", "model_ema_force_cpu", "dataset_trust_remote_code",
    "val_interval",
)  # fmt: skip
IGNORED = {  # timm's name -> why it may be left out
    "train_interpolation": "images are resized by the model's preprocessing",
    "interpolation": "images are resized by the model's preprocessing",
}
DEEPEST, MOST_EVENTS = 16, 10_000  # of YAML that is read: timm writes some 300, two deep
_EPS = {"lamb": 1e-6}  # timm's defaults that are not 1e-8
OFF: tuple[Any, ...] = (None, False, 0, 0.0, "", [], {})
EXPECTED: dict[str, tuple[Any, ...]] = {  # of what is passed over: the only values that mean nothing
    "remode": ("pixel", "const", ""),
    "recount": (1,),
    "mixup_mode": ("batch",),
    "lr_k_decay": (1.0,),
    "bce_sum": OFF,
    "train_crop_mode": (None, "rrc"),
}


def read_args(text: str, path: Path) -> TrainRecipe:
    """The recipe of an `args.yaml`. Raises `BadInput` for what is not YAML, or for settings not supported."""
    import yaml  # comes with timm

    try:
        _refuse_large(yaml.parse(text, Loader=yaml.SafeLoader), path)
        args = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadInput(f"recipe {path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(args, dict) or not isinstance(args.get("model"), str):
        raise BadInput(
            f"recipe {path} is not timm's args.yaml: it names no model (give the file that timm's "
            "train.py wrote, or a recipe as `leanvit recipes copy` makes one)"
        )
    _refuse_unknown(args, path)
    remarks = [f"timm's {name}={args[name]!r} is left out: {why}" for name, why in IGNORED.items() if _on(args, name)]
    try:
        fit = _fit(args, remarks)
        recipe = TrainRecipe(
            name=path.stem,
            title=f"{args['model']}, from timm's {path.name}",
            fit=fit,
            model=args["model"],
            model_args=_model_args(args),
            pretrained=bool(args.get("pretrained")),
            source=str(path),
            remarks=tuple(remarks),
            text=text,
        )
        recipe.config()
    except BadInput as error:
        raise BadInput(f"recipe {path}: {error}") from error
    return recipe


def _refuse_large(events: Iterable[Any], path: Path) -> None:
    """Raise `BadInput`, before anything is built, for aliases, which can grow without end, and for depth or length."""
    depth = 0
    for number, event in enumerate(events):
        kind = type(event).__name__
        depth += kind in ("SequenceStartEvent", "MappingStartEvent")
        depth -= kind in ("SequenceEndEvent", "MappingEndEvent")
        if kind == "AliasEvent":
            raise BadInput(f"recipe {path} refers to values by alias (*name): write them out")
        if depth > DEEPEST or number > MOST_EVENTS:
            raise BadInput(f"recipe {path} is larger, or nested deeper, than an args.yaml of timm: it is not read")


def _on(args: Mapping[str, Any], name: str) -> bool:
    return args.get(name) not in OFF


def _refuse_unknown(args: Mapping[str, Any], path: Path) -> None:
    known = {*FIELDS, *AUGMENT, *MODEL_ARGS, *HANDLED, *EFFECTLESS, *IGNORED}
    refused = [
        f"{name}={value!r}"
        for name, value in args.items()
        if (name in EXPECTED and value not in EXPECTED[name])
        or (name not in known and name not in EXPECTED and value not in OFF)
    ]
    if refused:
        raise BadInput(
            f"recipe {path}: {len(refused)} settings of timm are not known here: {', '.join(sorted(refused))}; "
            "take them out of the file to train without them"
        )


def _fit(args: Mapping[str, Any], remarks: list[str]) -> dict[str, Any]:
    fit = {ours: args[theirs] for theirs, ours in FIELDS.items() if args.get(theirs) is not None}
    fit["augment"] = {ours: args[theirs] for theirs, ours in AUGMENT.items() if args.get(theirs) is not None}
    if fit["augment"].get("auto_augment"):
        fit["augment"].pop("color_jitter", None)  # as timm: the policy takes its place
    optimizer: str = check("opt", args.get("opt", "sgd"), Annotated[str, Choice(OPTIMIZERS)])
    fit["optimizer"] = optimizer
    if optimizer in ("sgd", "momentum"):
        fit["momentum"] = args.get("momentum", 0.9)
    elif args.get("opt_betas") is not None:
        fit["betas"] = args["opt_betas"]
    fit |= _numerics(args, optimizer)
    check("sched", args.get("sched", "cosine"), Annotated[str, Choice(("cosine",))])
    fit |= _rate(args, fit, remarks)
    fit |= _course(args)
    fit["repeats"] = _whole(args, "aug_repeats") or 1
    if _on(args, "mixup_off_epoch"):
        fit["mix_off_epoch"] = args["mixup_off_epoch"]
    if _on(args, "model_ema"):
        fit |= {"ema_decay": args.get("model_ema_decay", 0.9998), "ema_warmup": bool(args.get("model_ema_warmup"))}
    fit["amp"] = _precision(args, remarks)
    remarks.append(f"timm's batch_size is of one process: {fit.get('batch_size', 128)} is taken as that of all of them")
    return fit


def _numerics(args: Mapping[str, Any], optimizer: str) -> dict[str, Any]:
    """Clipping by another mode than the norm, and an eps that is not the optimiser's own; as timm, none where idle."""
    found = {}
    if args.get("clip_grad") is not None and _on(args, "clip_mode"):
        found["clip_mode"] = args["clip_mode"]
    if args.get("opt_eps") not in (None, _EPS.get(optimizer, 1e-8)) and optimizer not in WITHOUT_EPS:
        found["eps"] = args["opt_eps"]
    return found


def _course(args: Mapping[str, Any]) -> dict[str, Any]:
    """Epochs, and how the rate falls through them: cool-down, and a warm-up that is a prefix, come on top of timm's."""
    prefix, cooldown = bool(args.get("warmup_prefix")), _whole(args, "cooldown_epochs")
    fit = {"warmup_prefix": prefix, "cooldown_epochs": cooldown, "lr_per_epoch": not args.get("sched_on_updates")}
    more = cooldown + (_whole(args, "warmup_epochs") if prefix else 0)
    return {**fit, "epochs": (_whole(args, "epochs") or 300) + more} if more else fit


def _rate(args: Mapping[str, Any], fit: Mapping[str, Any], remarks: list[str]) -> dict[str, Any]:
    """The learning rate: absolute, or timm's product, which counts accumulation and may take a square root."""
    if args.get("lr") is not None:
        return {"lr": args["lr"]}
    base, size = args.get("lr_base", 0.1), args.get("lr_base_size", 256)
    adaptive = any(part in fit["optimizer"] for part in ("ada", "lamb"))
    if (args.get("lr_base_scale") or ("sqrt" if adaptive else "linear")) == "linear":
        return {"lr_base": base, "lr_base_size": size, "lr_counts_accumulation": True}
    batch, forwards = fit.get("batch_size", 128), fit.get("accumulate", 1)
    check_each(Positive, lr_base=base, lr_base_size=size)
    check_each(Count, batch_size=batch, accumulate=forwards)
    lr = base * (batch * forwards / size) ** 0.5
    remarks.append(f"timm's lr_base={base} grows with the square root of the batch: taken as lr={lr:g}")
    return {"lr": lr}


def _whole(args: Mapping[str, Any], name: str) -> int:
    value = args.get(name) or 0
    if not is_number(value, least=0) or value != int(value):
        raise BadInput(f"{name} is {value!r}; accepted: a whole number")
    return int(value)


def _precision(args: Mapping[str, Any], remarks: list[str]) -> str:
    if not _on(args, "amp"):
        return "fp32"
    if args.get("amp_dtype", "float16") != "bfloat16":
        remarks.append("timm's amp in float16 is taken as bf16: --set amp=fp32 for none")
    return "bf16"


def _model_args(args: Mapping[str, Any]) -> dict[str, Any]:
    own = check("model_kwargs", args.get("model_kwargs") or {}, Mapping[str, Any])
    taken = {ours: args[theirs] for theirs, ours in MODEL_ARGS.items() if args.get(theirs) is not None}
    return {**{name: value for name, value in taken.items() if name != "drop_rate" or value}, **own}
