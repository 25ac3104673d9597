"""Names that are not known: verbs, options, models, methods, knobs, runtimes, data, splits, settings."""

from __future__ import annotations

import timm
from wrong import NAME, Case, Cli, tiny

import leanvit
from leanvit.anatomy import open_model
from leanvit.data import Augment, Preprocess, adapted_kwargs, open_dataset
from leanvit.deploy import Options, export
from leanvit.errors import Refused
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Plan, Root, check_order, load, make_method, parse_with, root_of, save
from leanvit.tokens.evit import EViT
from leanvit.training import FitConfig
from leanvit.verbs import explain, load_model, measure, publish

PREPROCESS = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))


def _knob(slug: str, knob: str, near: str) -> Case:
    def call() -> object:
        return parse_with(f"{slug}:{knob}=1")

    return Case(f"knob {slug} {knob}", call, (f"'{slug}' has no knob '{knob}'", f"did you mean '{near}'", "Known:"))


def _setting(name: str, near: str) -> Cli:
    argv = ("train", NAME, "--data", "digits", "--adapt", "--set", f"{name}=1")
    return Cli(f"setting {name}", argv, (f"no setting '{name}'", f"did you mean '{near}'", "Known:"))


def _recovering(name: str, says: tuple[str, ...], way: str) -> Cli:
    argv = ("compress", "run", "--with", "evit", "--data", "digits", "--recover", "1", "--recover-with", way)
    return Cli(f"way of a recovery, {name}", argv, says)


NO_REFERENCE = "unknown reference|comes without references"
PUBLISH = ("publish", "run", "--data", "digits", "--out", "new")

CLI = [
    Cli("verb", ("compres", "x"), ("No such command 'compres'", "compress")),
    Cli("verb measur", ("measur", "x"), ("No such command 'measur'", "measure")),
    Cli(
        "option of a verb", ("train", NAME, "--data", "digits", "--epoch", "3"), ("No such option: --epoch", "--epochs")
    ),
    Cli("option of the program", ("--debugg", "methods"), ("No such option: --debugg", "--debug")),
    Cli("option without value", ("train", NAME, "--data"), ("--data", "requires an argument")),
    Cli("model missing", ("export",), ("Missing argument 'MODEL'",)),
    Cli("model missing in compress", ("compress",), ("give a MODEL", "--recipe FILE")),
    Cli("model extra", ("export", "run", "lean"), ("unexpected extra argument", "lean")),
    Cli("model missing in latencies", ("latencies",), ("Missing argument 'MODEL'",)),
    Cli(
        "runtime of latencies",
        ("latencies", "run", "--runtime", "openvino-int4"),
        ("unknown runtime 'openvino-int4'", "did you mean 'openvino-int8'"),
    ),
    Cli(
        "compiled runtime of latencies",
        ("latencies", "run", "--runtime", "torch.compile"),
        ("unknown runtime 'torch.compile'", "Known: onnx, onnx-int8, openvino"),
    ),
    Cli(
        "latencies of an int8 run",
        ("latencies", "int8", "--out", "new.json"),
        ("made for the float model", "name an int8 runtime"),
    ),
    Cli("data missing", ("measure", "run"), ("Missing option '--data'",)),
    Cli("method missing", ("compress", "run", "--data", "digits"), ("--with METHOD", "leanvit methods")),
    Cli("runs missing", ("report",), ("Missing argument 'RUN",)),
    Cli(
        "model name",
        ("train", "deit_tinny_patch16_224", "--data", "digits"),
        ("unknown model 'deit_tinny_patch16_224'", "did you mean 'deit_tiny_patch16_224'"),
    ),
    Cli("model name in measure", ("measure", "vit_tiny", "--data", "digits"), ("unknown model 'vit_tiny'", "did you")),
    Cli("model name in export", ("export", "nothing_like_it"), ("unknown model 'nothing_like_it'", "Known: .* in all")),
    Cli(
        "model name against", ("measure", "run", "--against", "resnet", "--data", "digits"), ("unknown model 'resnet'",)
    ),
    Cli(
        "reference", ("export", "leanvit/nonsense"), ("leanvit/nonsense", "unknown reference|comes without references")
    ),
    Cli("reference to list", ("references", "nonsense"), ("nonsense", "unknown reference|comes without references")),
    Cli("stored type", (*PUBLISH, "--store", "float61"), ("unknown --store 'float61'", "did you mean 'float16'")),
    Cli("publish a timm name", ("publish", NAME, *PUBLISH[2:]), (f"{NAME} is not a run folder", "was trained")),
    Cli("publish without a place", PUBLISH[:4], ("Missing option '--out'",)),
    Cli("model name empty", ("export", ""), ("MODEL is ''", "a timm name, the path of a run folder, or a reference")),
    Cli("model name blank", ("export", "  "), ("MODEL is ' '", "accepted: a timm name")),
    Cli("model of another family", ("export", "resnet18"), ("ResNet", "resnet18", "Supported:")),
    Cli(
        "pretrained tag",
        ("export", f"{NAME}.nonsense", "--pretrained"),
        (f"cannot build {NAME}.nonsense", "[Ii]nvalid pretrained tag"),
    ),
    Cli(
        "model argument name",
        ("export", NAME, *tiny("dept=2")),
        (f"cannot build {NAME}", "dept=2", "unexpected keyword"),
    ),
    Cli("model argument without value", ("export", NAME, "--model-arg", "depth"), ("--model-arg 'depth'", "KEY=VALUE")),
    Cli("model argument without name", ("export", NAME, "--model-arg", "=2"), ("--model-arg '=2'", "KEY=VALUE")),
    Cli(
        "model argument twice",
        ("export", NAME, "--model-arg", "depth=2", "--model-arg", "depth=3"),
        ("--model-arg depth is given twice: 2 and 3",),
    ),
    Cli(
        "model argument that loads",
        ("export", NAME, "--model-arg", "checkpoint_path=x.pth"),
        ("argument 'checkpoint_path'", "it loads or wraps, it does not build"),
    ),
    Cli(
        "model argument that wraps", ("export", NAME, "--model-arg", "features_only=true"), ("'features_only'", "wraps")
    ),
    Cli("model argument kind", ("export", NAME, "--model-arg", 'norm_layer={"a": 1}'), ("norm_layer", "numbers, text")),
    Cli(
        "model arguments of a run",
        ("export", "run", "--model-arg", "depth=1"),
        ("run is a run folder", "model arguments", "train takes model arguments of a run, too"),
    ),
    Cli(
        "model argument that a run's weights cannot follow",
        ("train", "run", "--data", "digits", "--model-arg", "img_size=16", "--model-arg", "depth=3", "--out", "new"),
        ("depth is 3, which the weights of a run cannot follow", "and would be", "accepted: drop rates", "img_size"),
    ),
    Cli(
        "model argument of a run that timm does not know",
        ("train", "run", "--data", "digits", "--model-arg", "img_sise=16", "--out", "new"),
        ("timm cannot build", "img_sise"),
    ),
    Cli(
        "model argument of a run that loads",
        ("train", "run", "--data", "digits", "--model-arg", "checkpoint_path=x.pth", "--out", "new"),
        ("argument 'checkpoint_path'", "it loads or wraps"),
    ),
    Cli(
        "model argument of an int8 run",
        ("train", "int8", "--data", "digits", "--model-arg", "drop_path_rate=0.1", "--out", "new"),
        ("plan 'int8' is tied to the model as it is", "ranges were calibrated", "apply int8 to that"),
    ),
    Cli(
        "model argument of a lean run",
        ("train", "lean", "--data", "digits", "--model-arg", "img_size=16", "--out", "new"),
        ("is not dense", "compress --recover"),
    ),
    Cli(
        "classes of a run that the data does not have",
        ("train", "run", "--data", "digits", "--model-arg", "num_classes=3", "--out", "new"),
        ("the model has 3, the data 10",),
    ),
    Cli("pretrained run", ("export", "run", "--pretrained"), ("run is a run folder", "pretrained", "with a timm name")),
    Cli("weights of a run", ("export", "run", "--weights", "foreign.safetensors"), ("run is a run folder", "weights")),
    Cli(
        "pretrained and weights",
        ("export", NAME, "--pretrained", "--weights", "foreign.safetensors"),
        ("pretrained or weights, not both",),
    ),
    Cli("method", ("compress", "run", "--with", "evitt"), ("unknown method 'evitt'", "did you mean 'evit'")),
    Cli("method of methods", ("methods", "int9"), ("unknown method 'int9'", "did you mean 'int8'")),
    Cli("method empty", ("compress", "run", "--with", ""), ("unknown method ''", "Known: .*evit")),
    Cli("method in capitals", ("compress", "run", "--with", "EViT"), ("unknown method 'EViT'", "Known: .*evit")),
    Cli("knob", ("compress", "run", "--with", "evit:keeprate=0.7"), ("no knob 'keeprate'", "did you mean 'keep_rate'")),
    Cli("knob without value", ("compress", "run", "--with", "evit:keep_rate"), ("'keep_rate' is not knob=value",)),
    Cli("knob without name", ("compress", "run", "--with", "evit:=0.5"), ("'=0.5' is not knob=value",)),
    Cli("knob twice", ("compress", "run", "--with", "tome:r=2,r=3"), ("'tome:r=2,r=3': r is given twice",)),
    Cli(
        "recipe and methods",
        ("compress", "--recipe", "recipe.toml", "--with", "evit"),
        ("--recipe", "leave --with out"),
    ),
    Cli(
        "runtime of export",
        ("export", "run", "--to", "openvin"),
        ("unknown runtime 'openvin'", "did you mean 'openvino'"),
    ),
    Cli("runtime of export empty", ("export", "run", "--to", ""), ("unknown runtime ''", "Known: .*openvino")),
    Cli(
        "runtime of measure",
        ("measure", "run", "--data", "digits", "--runtime", "onx"),
        ("unknown runtime 'onx'", "did you mean 'onnx'"),
    ),
    Cli(
        "second runtime of measure",
        ("measure", "run", "--data", "digits", "--runtime", "torch", "--runtime", "tensorrt"),
        ("unknown runtime 'tensorrt'", "Known: .*torch"),
    ),
    Cli("data", ("measure", "run", "--data", "digit"), ("data 'digit'", "did you mean 'digits'", "accepted forms")),
    Cli("data empty", ("measure", "run", "--data", ""), ("data is ''", "accepted: digits, a folder")),
    Cli("data folder", ("measure", "run", "--data", "photoz"), ("data 'photoz'", "did you mean 'photos'")),
    Cli("data hub without name", ("measure", "run", "--data", "hf:"), ("data 'hf:' names nothing", "hf:NAME")),
    Cli("adapt without data", ("compress", NAME, "--with", "evit", "--adapt"), ("--adapt needs --data",)),
    Cli("resume without out", ("train", NAME, "--data", "digits", "--resume"), ("--resume needs --out",)),
    Cli("calibration without data", ("compress", "run", "--with", "int8"), ("int8 calibrates on images: give data",)),
    Cli(
        "recovery without data",
        ("compress", "run", "--with", "evit", "--recover", "1"),
        ("recovery trains: give data",),
    ),
    *(
        _recovering(name, says, way)
        for name, says, way in (
            ("unknown", ("unknown method 'gmm_masc'", "did you mean 'gmm_mask'"), "gmm_masc"),
            ("of another kind", ("evit is a method that makes a trained model leaner, not a way to train",), "evit"),
            ("an architecture", ("dhvt is an architecture, not a method",), "dhvt"),
            ("with parts", ("gmm_mask puts parts into the model", "compress MODEL --with gmm_mask"), "gmm_mask"),
            ("knob", ("method 'gmm_mask' has no knob 'masc'",), "gmm_mask:masc=elm"),
        )
    ),
    Cli(
        "way of a recovery without one",
        ("compress", "run", "--with", "evit", "--data", "digits", "--recover-with", "gmm_mask"),
        ("--recover-with gmm_mask is given for a recovery that was not requested", "--recover EPOCHS"),
    ),
    Cli(
        "way of a recovery as a setting",
        (
            "compress",
            "run",
            "--with",
            "evit",
            "--data",
            "digits",
            "--recover",
            "1",
            "--recover-set",
            "methods=gmm_mask",
        ),
        ("recovery has no setting 'methods'", "--recover-with"),
    ),
    Cli(
        "recovery of int8 alone",
        ("compress", "run", "--with", "int8", "--data", "digits", "--recover", "1"),
        ("recovery: int8 leaves nothing to train",),
    ),
    Cli(
        "twice the same model",
        ("measure", "run", "--against", "run", "--data", "digits", "--limit", "20"),
        ("is given twice", "compared with others, not with itself"),
    ),
    Cli("report twice the same", ("report", "run", "run"), ("run run is given twice",)),
    Cli("train a lean run", ("train", "lean", "--data", "digits"), ("lean is not dense", "compress --recover")),
    Cli("int8 twice", ("compress", "int8", "--data", "digits", "--with", "int8"), ("int8 needs float weights",)),
    Cli(
        "evit without class token",
        ("compress", "no-class-token", "--with", "evit"),
        ("evit needs a class token, which this model does not have",),
    ),
    Cli(
        "wrong order",
        ("compress", "run", "--data", "digits", "--with", "int8", "--with", "evit"),
        ("evit needs float weights", "which int8 takes away", "This order works: evit, int8"),
    ),
    _setting("epoch", "epochs"),
    _setting("weigth_decay", "weight_decay"),
    _setting("ema_dcay", "ema_decay"),
    Cli("setting without value", ("train", NAME, "--data", "digits", "--set", "lr"), ("--set 'lr'", "KEY=VALUE")),
    Cli(
        "setting twice",
        ("train", NAME, "--data", "digits", "--set", "lr=1", "--set", "lr=2"),
        ("--set lr is given twice",),
    ),
]

CASES = [
    _knob("evit", "keep_rat", "keep_rate"),
    _knob("evit", "block", "blocks"),
    _knob("tome", "rr", "r"),
    _knob("tome", "prop_atn", "prop_attn"),
    _knob("int8", "image", "images"),
    _knob("int8", "skipp", "skip"),
    Case("public name", lambda: leanvit.Evit, ("has no attribute 'Evit'",), AttributeError),
    Case("split", lambda: open_dataset("digits", "vall"), ("unknown split 'vall'", "did you mean 'val'")),
    Case("split in capitals", lambda: open_dataset("digits", "TRAIN"), ("unknown split 'TRAIN'", "Known: train, val")),
    Case("no training split", lambda: open_dataset("val-only", "train"), ("split='train'", "'val-only'", "only val")),
    Case("model of adapt", lambda: adapted_kwargs("vitt", {}, open_dataset("digits")), ("unknown model 'vitt'",)),
    Case(
        "root", lambda: Root("vit_tinny_patch16_224"), ("unknown timm model 'vit_tinny", "did you mean 'vit_tiny_patch")
    ),
    Case("method slug", lambda: make_method("tomee", {}), ("unknown method 'tomee'", "did you mean 'tome'")),
    Case("method slug of a plan", lambda: Plan("int-8").method(), ("unknown method 'int-8'", "did you mean 'int8'")),
    Case("method explained", lambda: explain("evitt"), ("unknown method 'evitt'", "did you mean 'evit'")),
    Case("method as text", lambda: check_order({"float"}, ["evit"]), (r"methods\[0\] is 'evit'", "parse_with")),
    Case("method as class", lambda: check_order({"float"}, [EViT]), (r"methods\[0\] is <class", r"EViT\(keep_rate")),
    Case(
        "method second", lambda: check_order({"float", "class_token"}, [EViT(), 3]), (r"methods\[1\] is 3", "accepted")
    ),
    Case("calibration", lambda: Int8(calibration="minimax"), ("calibration is 'minimax'", "did you mean 'minmax'")),
    Case("select", lambda: EViT(select="atention"), ("select is 'atention'", "did you mean 'attention'")),
    Case("augment", lambda: FitConfig(augment="lite"), ("augment is 'lite'", "light or randaug")),
    Case("augment policy", lambda: Augment(auto_augment="randaug"), ("auto_augment", "'randaug'")),
    Case(
        "augment field", lambda: FitConfig(augment={"hflop": 1}), ("augment has no key 'hflop'", "did you mean 'hflip'")
    ),  # type: ignore[arg-type]
    Case("augment crop", lambda: Augment(crop="padd"), ("Augment.crop is 'padd'", "did you mean 'pad'")),
    Case("schedule", lambda: FitConfig(schedule="cosin"), ("schedule is 'cosin'", "cosine, linear or constant")),
    Case("amp", lambda: FitConfig(amp="fp8"), ("amp is 'fp8'", "fp32, bf16 or fp16")),
    Case("parallel", lambda: FitConfig(parallel="fsdp"), ("parallel is 'fsdp'", "ddp or fsdp2")),
    Case("train mode", lambda: FitConfig(train_mode="training"), ("train_mode is 'training'", "train or eval")),
    Case(
        "interpolation",
        lambda: Preprocess((1, 8, 8), (0.5,), (0.5,), interpolation="bicubik"),
        ("Preprocess.interpolation is 'bicubik'", "did you mean 'bicubic'"),
    ),
    Case(
        "crop mode",
        lambda: Preprocess((1, 8, 8), (0.5,), (0.5,), crop_mode="centre"),
        ("Preprocess.crop_mode is 'centre'", "did you mean 'center'"),
    ),
    Case(
        "preprocess field",
        lambda: Preprocess.from_json({"means": [1]}),
        ("unknown field 'means'", "did you mean 'mean'"),
    ),
    Case("preprocess fields", lambda: Preprocess.from_json({"mean": [1]}), ("missing field.*input_size",)),
    Case("preprocess kind", lambda: Preprocess.from_json([]), ("preprocess is a list", "a JSON object")),  # type: ignore[arg-type]
    Case(
        "runtime",
        lambda: export(load("run"), "new", to="onxx", preprocess=PREPROCESS),
        ("unknown runtime 'onxx'", "did you mean 'onnx'"),
    ),
    Case("precision", lambda: Options(precision="fp16"), ("precision is 'fp16'", "f32 or bf16")),
    Case("hint", lambda: Options(hint="fast"), ("hint is 'fast'", "latency or throughput")),
    Case("family", lambda: open_model(timm.create_model("resnet18")), ("ResNet", "Supported:"), Refused),
    Case(
        "opened model without name",
        lambda: root_of(load("run"), name="vit_base_patch16_224", kwargs={"num_classes": 3}),
        ("does not rebuild this model", "Give root="),
        Refused,
    ),
    Case("model that is a number", lambda: load_model(3), ("MODEL is 3", "a timm name, the path")),  # type: ignore[arg-type]
    Case("model that is nothing", lambda: load_model(None), ("MODEL is None", "a timm name")),  # type: ignore[arg-type]
    Case("data that is a number", lambda: measure("run", 3), ("data is 3", "accepted: digits")),  # type: ignore[arg-type]
    Case(
        "stored_as",
        lambda: save(load("run"), "new", stored_as="half"),
        ("unknown stored_as 'half'", "bfloat16, float16"),
    ),
    Case("presets as one text", lambda: publish("run", "digits", "new", presets="a"), ("presets is 'a'", "a list")),
    Case(
        "model without history",
        lambda: save(timm.create_model("resnet18"), "new"),  # type: ignore[arg-type]
        ("model is a ResNet", "accepted: .*open_model|compress"),
    ),
]
