"""Training recipes that are not what they should be, and distillation that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wrong import NAME, Case, Cli

from contract.toys import toys
from leanvit.errors import BadInput, Refused
from leanvit.recipe import Recovery, parse_with
from leanvit.tokens.evit import EViT
from leanvit.tokens.sit import SiT
from leanvit.training import Distill, load_train_recipe, preset
from leanvit.verbs import compress, dry_run, train


def _file(name: str, *says: str) -> Case:
    return Case(f"training recipe {name}", lambda: load_train_recipe(f"training-recipes/{name}"), says)


def _training(name: str, says: str, *methods: str, error: type[Exception] = BadInput, **more: Any) -> Case:
    def call() -> None:
        with toys():
            train("run", "digits", methods=[parse_with(text) for text in methods], **more)

    return Case(name, call, (says,), error)


def _recovering(name: str, says: str, *ways: str, methods: Sequence[Any] = (EViT(),), **numbers: Any) -> Case:
    def call() -> None:
        with toys():
            recovery = Recovery(**numbers, methods=[parse_with(text) for text in ways])
            compress("run", methods, "digits", recovery=recovery)

    error = Refused if "each bring" in says else BadInput
    return Case(f"ways of a recovery, {name}", call, (says,), error)


CASES = [
    Case("recipes of an architecture", lambda: preset("dhvt"), ("several recipes, and no model", "dhvt_imagenet")),
    Case(
        "recipe of an architecture that has none for the model",
        lambda: preset("litv2", "vit_tiny_patch16_224"),
        ("none of them is of vit_tiny_patch16_224", "litv2_medium"),
    ),
    Case("architecture without a recipe", lambda: preset("lv_vit"), ("'lv_vit' is an architecture without a recipe",)),
    Case("preset name", lambda: preset("deit_smal"), ("unknown recipe 'deit_smal'", "did you mean 'deit_small'")),
    _file("key.toml", "unknown key 'titel'", "did you mean 'title'"),
    _file("model-key.toml", r"unknown key 'model\.nam'", "'name'"),
    _file("fit-key.toml", "no setting 'epoch'", "did you mean 'epochs'"),
    _file("value.toml", "epochs is 0", "whole number, 1 or more"),
    _file("both-rates.toml", "lr is 0.5, and lr_base, which is given too, comes to", "one of the two"),
    _file("no-size.toml", "lr_base is 0.001, and needs lr_base_size"),
    _file("no-model.toml", "give name", "starts_from"),
    _file("two-starts.toml", "give name", "starts_from"),
    _file("start-args.toml", "args, also and pretrained are of a timm name"),
    _file("distill-key.toml", r"unknown key 'distill\.alfa'", "'alpha'"),
    _file("distill-kind.toml", "distill has no kind", "soft, hard, token"),
    _file("augment.toml", "augment has no key 'flip'", "hflip"),
    _file("broken.toml", "is not TOML"),
    _file("compress.toml", "is of compress", "leanvit compress --recipe"),
    _file("binary.toml", "is not text"),
    _file("args.yaml", "bce_loss=True", "settings of timm are not known"),
    _file("broken.yaml", "is not YAML"),
    _file("list.yaml", "is not timm's args.yaml", "no model"),
    _file("code.yaml", "is not YAML"),
    _file("alias.yaml", "values by alias"),
    _file("rate.yaml", "lr_base is 'fast'", "number above 0"),
    _file("none.toml", "No such file", "leanvit recipes"),
    Case("distill kind", lambda: Distill(kind="sfot"), ("kind is 'sfot'", "did you mean 'soft'")),
    Case("distill alpha", lambda: Distill(kind="soft", alpha=1.5), ("alpha is 1.5", "0 to 1")),
    Case("distill temperature", lambda: Distill(kind="soft", temperature=0), ("temperature is 0", "above 0")),
    Case("method alpha", lambda: Distill(kind="method", alpha=0.5), ("alpha is 0.5", "leave it out")),
    _training("a method of another kind", "a method that makes a trained model leaner.*leanvit compress", "evit"),
    _training("an objective twice", "toy_smooth and toy_smooth each bring", "toy_smooth", "toy_smooth", error=Refused),
    _training(
        "an objective and distillation",
        "distill is 'soft' .*but toy_smooth brings the objective",
        "toy_smooth",
        distill="soft",
        teacher="run",
    ),
    _training(
        "a way and distillation of another kind",
        "distill is 'token' .*but toy_smooth brings the objective",
        "toy_smooth",
        distill="token",
        teacher="run",
    ),
    _training(
        "a way and a teacher's weight",
        "alpha is 0.5, and distillation by a method goes by its knobs",
        "toy_smooth",
        teacher="run",
        alpha=0.5,
    ),
    _recovering("an objective twice", "toy_smooth and toy_smooth each bring the objective", *2 * ["toy_smooth"]),
    _recovering("alpha", "alpha is 0.1, but toy_smooth brings the objective", "toy_smooth", alpha=0.1),
    _recovering("distillation", "distillation is 'hard', but toy_smooth", "toy_smooth", distillation="hard"),
    _recovering("an objective beside a method's", "sit and toy_smooth each bring", "toy_smooth", methods=[SiT()]),
    _training(
        "an objective and the smoothing of another",
        "label_smoothing is 0.2, but toy_smooth brings the objective.*use the knobs of toy_smooth",
        "toy_smooth",
        settings={"label_smoothing": 0.2},
    ),
    Case(
        "a training method that is none",
        lambda: train("run", "digits", methods=["gmm_mask"]),  # type: ignore[list-item]
        (r"methods\[0\] is 'gmm_mask'; accepted: a method",),
    ),
    Case(
        "one training method",
        lambda: train("run", "digits", methods=parse_with("gmm_mask")),
        ("methods is one method; accepted: a list",),
    ),
    Case("hard temperature", lambda: Distill(kind="hard", temperature=2.0), ("hard distillation has none",)),
    Case("teacher type", lambda: Distill(kind="hard", teacher=3), ("teacher is 3", "timm name")),  # type: ignore[arg-type]
    Case(
        "teacher unknown",
        lambda: dry_run("run", "digits", teacher="resnet5", distill="hard", limit=200),
        ("unknown teacher 'resnet5'", "resnet50"),
    ),
    Case(
        "teacher of other classes",
        lambda: train("run", "digits", teacher="./colour", distill="hard", limit=200, out="new"),
        ("teacher ./colour|teacher colour", "other classes"),
    ),
    Case(
        "dry run without data",
        lambda: dry_run(NAME),
        ("dry run without --data needs a recipe", "leanvit recipes"),
    ),
    Case(
        "recipe of a lean start",
        lambda: dry_run("run", recipe="evit_small_finetune"),
        ("from a run of evit", "--with evit"),
    ),
    Case(
        "lean run under a dense recipe",
        lambda: train("lean", "digits", recipe="cifar10_vit_finish", out="new"),
        ("lean is not dense", "compress --recover"),
        Refused,
    ),
]

CLI = [
    Cli("train without model", ("train", "--data", "digits"), ("give a MODEL", "recipe")),
    Cli(
        "train with a method of another kind",
        ("train", NAME, "--data", "digits", "--adapt", "--with", "evit"),
        (
            "evit is a method that makes a trained model leaner, not a way to train",
            "leanvit compress MODEL --with evit",
        ),
    ),
    Cli(
        "train with an unknown method",
        ("train", NAME, "--data", "digits", "--with", "gmm_masc"),
        ("unknown method 'gmm_masc'", "did you mean 'gmm_mask'"),
    ),
    Cli(
        "train with an architecture",
        ("train", NAME, "--data", "digits", "--with", "dhvt"),
        ("dhvt is an architecture, not a method",),
    ),
    Cli(
        "train with a knob that there is not",
        ("train", NAME, "--data", "digits", "--with", "gmm_mask:masc=elm"),
        ("method 'gmm_mask' has no knob 'masc'", "'mask'"),
    ),
    Cli("train without data", ("train", NAME), ("give --data DATA",)),
    Cli("train recipe name", ("train", "--data", "digits", "--recipe", "swin_tinny"), ("unknown recipe", "swin_tiny")),
    Cli(
        "recipe without its run",
        ("train", "--data", "digits", "--recipe", "cifar10_vit_finish"),
        ("give a MODEL", "trains on from a dense run"),
    ),
    Cli("teacher alone", ("train", "run", "--data", "digits", "--teacher", "run"), ("give distill too", "--distill")),
    Cli("distill alone", ("train", "run", "--data", "digits", "--distill", "hard"), ("there is no teacher",)),
    Cli("alpha alone", ("train", "run", "--data", "digits", "--alpha", "0.5"), ("alpha is of distillation",)),
    Cli(
        "teacher weights alone",
        ("train", "run", "--data", "digits", "--teacher-weights", "foreign.safetensors"),
        ("teacher_weights are of a teacher",),
    ),
    Cli("recipes show unknown", ("recipes", "show", "deit_smal"), ("unknown recipe", "did you mean 'deit_small'")),
    Cli("recipes copy suffix", ("recipes", "copy", "deit_small", "mine"), ("FILE is 'mine'", "ends with .toml")),
    Cli("recipes copy onto a file", ("recipes", "copy", "deit_small", "recipe.toml"), ("recipe.toml", "--overwrite")),
    Cli(
        "recipes validate",
        ("recipes", "validate", "training-recipes/fit-key.toml"),
        ("no setting 'epoch'", "did you mean 'epochs'"),
    ),
]
