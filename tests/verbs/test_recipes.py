"""Training recipes: every one that comes with the package is rehearsed, and what is given over one wins."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.layers import DropPath

from leanvit import verbs
from leanvit.data import Preprocess, open_dataset
from leanvit.errors import BadInput, Refused
from leanvit.models.registry import require_model
from leanvit.prune.nvit import NViT
from leanvit.recipe import Data, Root, compress, create, load_run, save
from leanvit.tokens.evit import EViT
from leanvit.tokens.sit import SiT
from leanvit.tokens.stvit import STViT
from leanvit.training import HardDistillation, load_train_recipe, preset, preset_names
from leanvit.training.timm_args import AUGMENT, EFFECTLESS, FIELDS, HANDLED, IGNORED, MODEL_ARGS
from leanvit.verbs import demonstration
from leanvit.verbs.requesting import training_request
from matrix import every

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 1, "in_chans": 1, "num_classes": 10}
NAME = "vit_tiny_patch16_224"
QUICK = """title = "a quick one"
[model]
name = "vit_tiny_patch16_224"
args = {img_size = 8, patch_size = 2, embed_dim = 12, depth = 2, num_heads = 1, in_chans = 1, num_classes = 10}
[fit]
epochs = 2
batch_size = 20
lr_base = 1e-3
lr_base_size = 40
"""


def run_of(folder: Path, *methods, **kwargs) -> Path:
    model = create(Root(NAME, {**SMALL, **kwargs}))
    save(compress(model, list(methods)), folder, classes=open_dataset("digits", "train").classes)
    return folder


def teacher_file(name: str, folder: Path, classes: int) -> Path:
    path = folder / "teacher.safetensors"
    save_file(timm.create_model(name, num_classes=classes).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "quick.toml"
    path.write_text(QUICK)
    return path


# --- those of the package -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", every(6, preset_names()))
def test_every_preset_is_rehearsed_on_made_up_images(name: str, tmp_path: Path, monkeypatch) -> None:
    """The model itself where it is built from a name (a large one has 2 blocks); what a recipe starts from is small."""
    monkeypatch.chdir(tmp_path)
    recipe = preset(name)
    options: dict = {"recipe": name, "seconds": 0.0}
    start = None
    if recipe.starts_from is not None:
        like = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 4, "num_heads": 1}
        like["num_classes"] = recipe.data.classes
        model = create(Root(NAME, like))
        lean = {"evit": EViT(keep_rate=0.7), "sit": SiT(), "stvit": STViT(samples=1), "nvit": NViT(macs=1.0)}
        # the last keeps all: trains nothing
        methods = [lean[recipe.starts_from]] if recipe.starts_from in lean else []
        start = tmp_path / "start"
        names = [str(number) for number in range(model.num_classes)]
        digits = replace(open_dataset("digits", "train"), classes=names)
        save(compress(model, methods, Data(digits, Preprocess.of(model))), start)
        save(compress(model, []), tmp_path / "dense")
    if (recipe.model or "").startswith("litv2"):
        options["model_args"] = {"depths": (1, 1, 1, 1), "embed_dim": 24}
    elif (recipe.model or "").startswith("stvit_r"):
        options["model_args"] = {"depths": (1, 1, 6, 1), "embed_dim": 24}
    elif any(large in (recipe.model or "") for large in ("base", "dhvt_small", "t2t_vit")):
        options["model_args"] = {"depth": 2}
    if recipe.pretrained:
        model = timm.create_model(recipe.model.split(".")[0], **{**recipe.model_args, **options["model_args"]})
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        options["weights"] = tmp_path / "weights.safetensors"
    if recipe.distill is not None and recipe.distill.kind == "method":
        options["teacher"] = tmp_path / "dense"
    elif recipe.distill is not None:
        options["teacher"] = "regnety_002"
        options["teacher_weights"] = teacher_file("regnety_002", tmp_path, recipe.data.classes)
    found = verbs.dry_run(start, **options)
    config = recipe.config()
    assert found.timed_images == 2 and found.loss > 0 and found.macs > 0 and found.seconds > 0
    assert found.images == recipe.data.images and found.effective_batch == config.batch_size * config.accumulate
    assert found.steps == found.steps_per_epoch * config.epochs
    assert f"{config.lr:g}" in found.lr_text
    json.dumps(found.to_json())
    assert not (tmp_path / "runs").exists()


def test_figures_of_published_recipes() -> None:
    """The rates that the papers state, from the products of their recipes."""
    rates = {name: preset(name).config().lr for name in preset_names()}
    assert rates["deit_small"] == 1e-3 and rates["swin_tiny"] == 1e-3
    assert rates["litv2_small"] == rates["litv2_medium"] == rates["litv2_base"] == 1e-3
    assert rates["stvit_r_swin_small"] == rates["stvit_r_swin_base"] == rates["stvit_deit_small"] == 1e-3
    assert rates["evit_small_finetune"] == 4e-5
    assert rates["mae_finetune_base"] == 2e-3
    assert rates["t2t_vit_7"] == 1e-3 and rates["t2t_vit_14"] == rates["t2t_vit_19"] == 5e-4
    assert rates["deit_lt_cifar10"] == 2.5e-4  # not of the 1024 images that a step sees
    for name in preset_names():
        recipe = preset(name)
        assert recipe.target is not None and recipe.source, name
        assert bool(recipe.arxiv) == ("own" not in recipe.source and "demo" not in recipe.source), name


def test_an_architecture_names_the_recipe_of_the_model() -> None:
    assert preset("dhvt", "dhvt_tiny_cifar_patch4").name == "dhvt_cifar100"
    assert preset("dhvt", "dhvt_tiny_imagenet_patch16").name == "dhvt_imagenet"
    assert preset("t2t_vit", "t2t_vit_24").name == "t2t_vit_19" and preset("litv2", "litv2_base").name == "litv2_base"
    only = {"dualtoken_vit": "dualtoken_vit_imagenet", "dct_histo": "dct_histo_breakhis", "gmm_mask": "gmm_vit_cifar10"}
    assert {slug: preset(slug).name for slug in only} == only
    found = training_request("dhvt_tiny_cifar_patch4", recipe="dhvt", settings={"epochs": 20})
    assert found.model == "dhvt_tiny_cifar_patch4" and found.model_args == {"drop_path_rate": 0.1}
    assert found.recipe.name == "dhvt_cifar100"
    assert found.overrides == {"epochs": 20, "model": "dhvt_tiny_cifar_patch4"}


@pytest.mark.parametrize("name", [name for name in preset_names() if preset(name).also])
def test_other_models_of_a_recipe_take_its_arguments(name: str) -> None:
    recipe = preset(name)
    for model in recipe.also:
        require_model(model)
        with torch.device("meta"):
            built = timm.create_model(model, **recipe.model_args)
        rates = [m.drop_prob for m in built.modules() if isinstance(m, DropPath)]
        assert max(rates) == pytest.approx(recipe.model_args["drop_path_rate"]), model


def test_the_recipe_of_the_digits_is_the_demos() -> None:
    recipe = preset("digits_vit")
    assert recipe.model == demonstration.MODEL
    assert dict(recipe.model_args) == {**demonstration.MODEL_ARGS, "num_classes": 10, "in_chans": 1}
    assert dict(recipe.fit) == demonstration.TRAINING
    assert recipe.data.images == len(open_dataset("digits", "train"))


# --- files, and what is given over them -----------------------------------------------------------------------------


def test_a_run_says_which_recipe_made_it_and_what_was_given_over_it(quick: Path, tmp_path: Path) -> None:
    verbs.train(None, "digits", recipe=quick, settings={"epochs": 1}, limit=40, out=tmp_path / "run")
    info = load_run(tmp_path / "run").info
    assert info["recipe"]["name"] == "quick" and info["recipe"]["overrides"] == {"epochs": 1}
    assert info["training"]["epochs"] == 1 and info["training"]["lr"] == 5e-4 and info["training"]["lr_base"] == 1e-3


def test_a_rate_that_is_given_replaces_the_product(quick: Path) -> None:
    found = verbs.dry_run(None, "digits", recipe=quick, settings={"lr": 0.01}, limit=40, seconds=0.0)
    assert found.lr == 0.01 and found.lr_text == "0.01"
    found = verbs.dry_run(None, "digits", recipe=quick, settings={"batch_size": 40}, limit=40, seconds=0.0)
    assert found.lr_text == "0.001 x 40 / 40 = 0.001"


def test_another_model_goes_without_the_arguments_of_the_recipes_own(quick: Path) -> None:
    said: list[str] = []
    args = {**SMALL, "depth": 3}
    found = verbs.dry_run(
        "deit_tiny_patch16_224", "digits", recipe=quick, model_args=args, limit=40, seconds=0.0, log=said.append
    )
    assert found.model.startswith("deit_tiny") and found.overrides["model"] == "deit_tiny_patch16_224"
    assert any("instead of vit_tiny" in line for line in said)


def test_a_dry_run_times_up_to_a_batch_and_writes_nothing(quick: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = verbs.dry_run(None, "digits", recipe=quick, limit=40, seconds=20.0)
    assert found.timed_images == 20 and list(tmp_path.iterdir()) == []
    assert found.seconds == pytest.approx(found.seconds_per_step * found.steps)


def test_lean_runs_are_trained_on_by_recipes_that_start_from_them(quick: Path, tmp_path: Path) -> None:
    lean = run_of(tmp_path / "lean", EViT(keep_rate=0.5, blocks=(1,)))
    with pytest.raises(Refused, match="is not dense"):
        verbs.train(lean, "digits", recipe=quick, limit=40, out=tmp_path / "no")
    text = QUICK[: QUICK.index("name =")] + 'starts_from = "evit"\n' + QUICK[QUICK.index("[fit]") :]
    (tmp_path / "on.toml").write_text(text)
    verbs.train(lean, "digits", recipe=tmp_path / "on.toml", settings={"epochs": 1}, limit=40, out=tmp_path / "on")
    before, after = load_run(lean), load_run(tmp_path / "on")
    assert [plan.slug for plan in after.model.history.plans] == ["evit"]
    assert not torch.equal(before.model.head.weight, after.model.head.weight)
    dense = run_of(tmp_path / "dense")
    with pytest.raises(BadInput, match=r"from a run of evit, but .* is dense"):
        verbs.train(dense, "digits", recipe=tmp_path / "on.toml", limit=40)
    with pytest.raises(BadInput, match="not from a timm name"):
        verbs.dry_run("deit_tiny_patch16_224", recipe="cifar10_vit_finish")


def test_quantized_runs_are_not_trained_on(tmp_path: Path) -> None:
    from leanvit.data import Preprocess
    from leanvit.quantize.int8 import Int8

    digits = open_dataset("digits", "train", limit=20)
    model = create(Root(NAME, SMALL))
    save(
        compress(model, [EViT(keep_rate=0.5, blocks=(1,)), Int8(images=8)], Data(digits, Preprocess.of(model))),
        tmp_path / "q",
    )
    text = QUICK[: QUICK.index("name =")] + 'starts_from = "evit"\n' + QUICK[QUICK.index("[fit]") :]
    (tmp_path / "on.toml").write_text(text)
    with pytest.raises(Refused, match="quantized"):
        verbs.train(tmp_path / "q", "digits", recipe=tmp_path / "on.toml", limit=40)


# --- teachers -------------------------------------------------------------------------------------------------------


def test_distillation_from_a_run_of_another_size(quick: Path, tmp_path: Path) -> None:
    teacher = run_of(tmp_path / "teacher", img_size=16)
    said: list[str] = []
    verbs.train(
        None, "digits", recipe=quick, settings={"epochs": 1}, limit=40, out=tmp_path / "run", log=said.append,
        teacher=teacher, distill="soft", alpha=0.3, temperature=2.0,
    )  # fmt: skip
    assert any("resized to 16x16" in line for line in said)
    info = load_run(tmp_path / "run").info
    assert info["distill"] == {"kind": "soft", "teacher": str(teacher), "alpha": 0.3, "temperature": 2.0}
    rows = [json.loads(line) for line in (tmp_path / "run/train.jsonl").read_text().splitlines()]
    assert rows[-1]["distillation"] >= 0


def test_token_distillation_wants_the_token(quick: Path, tmp_path: Path) -> None:
    teacher = run_of(tmp_path / "teacher")
    with pytest.raises(BadInput, match="no distillation token"):
        verbs.dry_run(None, "digits", recipe=quick, limit=40, teacher=teacher, distill="token")
    found = verbs.dry_run(
        "deit_tiny_distilled_patch16_224", "digits", recipe=quick, model_args=SMALL, limit=40, seconds=0.0,
        teacher=teacher, distill="token",
    )  # fmt: skip
    assert found.teacher == f"{teacher} (token)"


def test_a_run_is_trained_on_by_the_objective_of_its_method(quick: Path, tmp_path: Path) -> None:
    model = create(Root(NAME, {**SMALL, "depth": 3}))
    for name, methods in (("dense", []), ("sit", [SiT(stages=(1, 2))])):
        save(compress(model, methods), tmp_path / name)
    recipe = tmp_path / "method.toml"
    start = '[model]\nstarts_from = "sit"'
    recipe.write_text(f'title = "on"\n{start}\n[fit]\nepochs = 1\nbatch_size = 20\n[distill]\nkind = "method"\n')
    verbs.train(
        tmp_path / "sit",
        "digits",
        recipe=recipe,
        limit=40,
        teacher=tmp_path / "dense",
        out=tmp_path / "run",
        convert=True,
    )
    rows = [json.loads(line) for line in (tmp_path / "run/train.jsonl").read_text().splitlines()]
    assert rows[-1]["tokens"] > 0 and len(load_run(tmp_path / "run").model.history.plans) == 1
    with pytest.raises(BadInput, match="none bring an objective; needed: one"):
        verbs.dry_run(
            tmp_path / "dense", "digits", recipe=quick, teacher=tmp_path / "dense", distill="method", convert=True
        )


def test_a_run_is_not_resumed_with_another_alpha() -> None:
    from leanvit.data import Preprocess

    model = create(Root(NAME, SMALL))
    texts = {repr(HardDistillation(model, teacher_preprocess=Preprocess.of(model), alpha=a)) for a in (0.3, 0.4)}
    assert len(texts) == 2


# --- timm's args.yaml -----------------------------------------------------------------------------------------------

ARGS = """model: vit_tiny_patch16_224
model_kwargs: {patch_size: 2, embed_dim: 12, depth: 2, num_heads: 1}
img_size: 8
in_chans: 1
num_classes: 10
epochs: 2
batch_size: 20
grad_accum_steps: 1
opt: adamw
opt_betas: [0.9, 0.95]
lr: null
lr_base: 0.001
lr_base_size: 80
lr_base_scale: ''
warmup_epochs: 1
warmup_lr: 1.0e-05
min_lr: 0.0
sched: cosine
sched_on_updates: false
aa: rand-m9-mstd0.5-inc1
color_jitter: 0.4
reprob: 0.25
remode: pixel
scale: [0.08, 1.0]
mixup: 0.8
mixup_off_epoch: 1
smoothing: 0.1
drop: 0.0
drop_path: 0.1
model_ema: true
model_ema_decay: 0.99
cooldown_epochs: 10
log_interval: 50
bce_loss: false
"""


def test_args_of_timm_are_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "args.yaml"
    path.write_text(ARGS)
    said: list[str] = []
    found = verbs.dry_run(None, "digits", recipe=path, limit=40, seconds=0.0, log=said.append)
    config = found.config
    assert config["lr"] == pytest.approx(0.001 * (20 / 80) ** 0.5)  # of AdamW with the square root
    assert config["betas"] == [0.9, 0.95] and config["warmup_lr"] == 1e-5 and config["mix_off_epoch"] == 1
    assert config["augment"]["auto_augment"] == "rand-m9-mstd0.5-inc1" and config["augment"]["erase"] == 0.25
    assert config["augment"]["color_jitter"] == 0.0  # the policy takes its place
    assert config["ema_decay"] == 0.99 and config["label_smoothing"] == 0.1
    assert "'drop_path_rate': 0.1" in found.model and "drop_rate" not in found.model
    assert (config["epochs"], config["cooldown_epochs"]) == (12, 10)
    assert config["lr_per_epoch"] and not config["warmup_prefix"]
    path.write_text(ARGS.replace("sched_on_updates: false", "sched_on_updates: true\nwarmup_prefix: true"))
    config = verbs.dry_run(None, "digits", recipe=path, limit=40, seconds=0.0).config
    assert config["epochs"] == 13 and config["warmup_prefix"] and not config["lr_per_epoch"]
    assert any("square root" in line for line in said)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"clip_grad": 0.02, "clip_mode": "agc"}, {"clip_grad": 0.02, "clip_mode": "agc"}),
        ({"clip_grad": 5.0, "clip_mode": "norm"}, {"clip_grad": 5.0, "clip_mode": "norm"}),
        ({"clip_mode": "agc"}, {"clip_grad": None, "clip_mode": "norm"}),  # timm clips nothing then
        ({"opt_eps": 1e-6}, {"eps": 1e-6}),
        ({"opt_eps": 1e-8}, {"eps": None}),
        ({"opt_eps": None}, {"eps": None}),
        ({"opt_eps": 1e-8, "opt": "lamb"}, {"eps": 1e-8}),  # timm's own default is another there
        ({"opt_eps": 1e-6, "opt": "sgd"}, {"eps": None}),  # it has none
    ],
)
def test_clipping_and_eps_of_timms_args(given: dict[str, object], expected: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "args.yaml"
    kept = [line for line in ARGS.splitlines() if line.partition(":")[0] not in given]
    path.write_text("\n".join([*kept, yaml.safe_dump(given)]))
    config = load_train_recipe(path).config()
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("bce_loss: true", "bce_loss=True"),
        ("cutmix_minmax: [0.2, 0.8]", "cutmix_minmax"),
        ("vflip: 0.5", "vflip=0.5"),
        ("mixup_mode: elem", "mixup_mode='elem'"),
        ("sched: step", "sched is 'step'"),
        ("clip_grad: 1.0\nclip_mode: layer", "clip_mode is 'layer'"),
        ("opt_eps: 0.0", "eps is 0"),
        ("opt: kron", "opt is 'kron'"),
        ("something_new: 3", "something_new=3"),
        ("aug_repeats: 2.5", "aug_repeats is 2.5"),
        ("initial_checkpoint: some.pth", "initial_checkpoint"),
    ],
)
def test_what_cannot_be_done_of_timms_args_is_refused(line: str, says: str, tmp_path: Path) -> None:
    name = line.partition(":")[0]
    kept = [old for old in ARGS.splitlines() if not old.startswith(f"{name}:")]
    (tmp_path / "args.yaml").write_text("\n".join([*kept, line]))
    with pytest.raises(BadInput, match=says):
        verbs.dry_run(None, "digits", recipe=tmp_path / "args.yaml", limit=40)


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    groups = (FIELDS, AUGMENT, MODEL_ARGS, HANDLED, EFFECTLESS, IGNORED)
    assert len({name for group in groups for name in group}) == sum(map(len, groups))
    missing = [name for group in groups for name in group if f"`{name}`" not in page]
    assert not missing


# --- TensorBoard ----------------------------------------------------------------------------------------------------


@pytest.mark.extra("tensorboard", of="log")
def test_tensorboard_goes_on_after_a_resume(quick: Path, tmp_path: Path, monkeypatch) -> None:
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    from leanvit.training import TensorBoardLog

    class Killed(Exception):
        pass

    def kill(self, run) -> None:
        after(self, run)
        if run.step == 3:
            raise Killed

    out = tmp_path / "run"
    options = {"recipe": quick, "settings": {"save_every": 2}, "limit": 40, "out": out, "tensorboard": True}
    every = TensorBoardLog.__init__.__kwdefaults__
    monkeypatch.setitem(every, "every", 1)
    after = TensorBoardLog.after_step
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TensorBoardLog, "after_step", kill)
        verbs.train(None, "digits", **options)
    verbs.train(None, "digits", resume=True, **options)
    log = accumulator.EventAccumulator(str(out / "tensorboard"))
    log.Reload()
    tags = set(log.Tags()["scalars"])
    assert {"train/loss", "train/lr", "train/grad_norm", "train/images_per_s", "val/top1"} <= tags
    assert [event.step for event in log.Scalars("train/loss")] == [1, 2, 3, 4]
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if row["event"] == "epoch")
    assert log.Scalars("val/top1")[-1].value == pytest.approx(last["top1"])


@pytest.mark.parametrize(("amp", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_rehearsal_runs_in_the_precision_of_the_training(amp: str, dtype: torch.dtype, monkeypatch) -> None:
    seen = set()
    forward = torch.nn.Linear.forward

    def watched(self, x):
        out = forward(self, x)
        seen.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 1, "in_chans": 1}
    args = {**sizes, "num_classes": 10}
    verbs.dry_run("vit_tiny_patch16_224", "digits", seconds=0.0, settings={"amp": amp}, model_args=args)
    assert dtype in seen
