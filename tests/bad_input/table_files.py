"""Files swapped, cut, edited, foreign, or from a newer format; recipes that are not what they should be."""

from __future__ import annotations

from wrong import NAME, Case, Cli, tiny

from leanvit.deploy import load_artefact, read_artefact
from leanvit.errors import BadInput, CheckpointError, Refused
from leanvit.measure import Comparison
from leanvit.recipe import load, load_recipe, load_run, reapply, rebuilt
from leanvit.runs.token_maps import TokenMaps

DAMAGED: dict[str, tuple[str, ...]] = {  # run -> what must be said of it
    "json-truncated": ("json-truncated/leanvit.json is not valid JSON", "truncated"),
    "json-empty": ("json-empty/leanvit.json is not valid JSON",),
    "json-list": ("json-list/leanvit.json is not a leanvit run",),
    "json-changed": ("json-changed/leanvit.json was changed after it was written", "reapply"),
    "json-deep": ("json-deep/leanvit.json is not valid JSON",),
    "json-nan": ("json-nan/leanvit.json", "format"),
    "json-swapped": ("json-swapped", "weights-.* is missing"),
    "format-newer": ("has format 99", "reads up to 3", "update leanvit"),
    "kind-foreign": ("is not a leanvit run", "leanvit-artefact"),
    "key-unknown": ("unknown key 'wieghts'", "did you mean 'weights'"),
    "weights-missing": ("weights-.*safetensors is missing",),
    "weights-truncated": ("weights-.* was truncated or changed", "sha256"),
    "weights-swapped": ("weights-.* was truncated or changed", "sha256"),
    "weights-of-another": ("weights-of-another: the weights do not fit the plans", r"is \(.*24.*\), not"),
    "weights-pickled": ("weights-p.safetensors is not a safetensors file",),
    "bitmap-truncated": (r"blocks\.0\.mlp\.fc1\.weight is a sparse tensor of shape \(48, 12\)", r"72 bytes.*\(71,\)"),
    "bitmap-tampered": (r"fc1\.weight is a sparse tensor that keeps \d+ elements", r"there are \(288,\) values"),
    "weights-outside": ("'../foreign.safetensors' is not a plain file name",),
    "root-unknown": ("unknown timm model 'vit_tinny_patch16_224'", "did you mean"),
    "root-loads": ("argument 'pretrained'", "it does not build"),
    "root-huge": ("depth is 1000000", "up to 512"),
    "plan-unknown": ("unknown method 'evitt'", "did you mean 'evit'"),
    "plan-range": ("keep_rate is 7", "above 0, up to 1"),
    "plan-block": ("block is 9", "0 to 1"),
    "plan-empty": ("structure of plan 'evit' does not fit", "lacks blocks"),
    "preprocess-range": ("preprocess: Preprocess.std", "each a number above 0"),
    "preprocess-key": ("unknown field 'crop'", "did you mean 'crop_"),
}

CLI = [
    *(Cli(f"run {name}", ("export", name, "--out", "new"), says, 1) for name, says in DAMAGED.items()),
    Cli("measure a changed run", ("measure", "json-changed", "--data", "digits"), DAMAGED["json-changed"], 1),
    Cli(
        "measure against a changed run",
        ("measure", "run", "--against", "json-changed", "--data", "digits"),
        DAMAGED["json-changed"],
        1,
    ),
    Cli(
        "compress a truncated run", ("compress", "weights-truncated", "--with", "evit"), DAMAGED["weights-truncated"], 1
    ),
    Cli("train a swapped run", ("train", "weights-swapped", "--data", "digits"), DAMAGED["weights-swapped"], 1),
    Cli("report of a newer run", ("report", "format-newer"), DAMAGED["format-newer"], 1),
    Cli("report of a foreign run", ("report", "kind-foreign"), DAMAGED["kind-foreign"], 1),
    Cli("export with damaged commands", ("export", "commands-damaged"), ("commands.jsonl is not a record",), 1),
    Cli(
        "artefact in place of a run",
        ("export", "artefact", "--out", "new"),
        ("artefact holds no run", "It is an artefact"),
    ),
    Cli("artefact in place of a run, measured", ("measure", "artefact", "--data", "digits"), ("It is an artefact",)),
    Cli("artefact in place of a run, reported", ("report", "artefact"), ("It is an artefact", "give the run")),
    Cli(
        "recipe in place of a run", ("compress", "recipe.toml", "--with", "evit"), ("recipe.toml is a file", "--recipe")
    ),
    Cli("weights in place of a run", ("export", "wider.safetensors"), ("wider.safetensors is a file", "--weights")),
    Cli("JSON in place of a run", ("export", "run/leanvit.json"), ("leanvit.json is a file", "folder that it is in")),
    Cli("run in place of a recipe", ("compress", "--recipe", "run"), ("recipe run: Is a directory",)),
    Cli("JSON in place of a recipe", ("compress", "--recipe", "run/leanvit.json"), ("leanvit.json is not TOML",)),
    Cli("image in place of a recipe", ("compress", "--recipe", "flat/0.png"), ("0.png is not TOML",)),
    Cli("JSON in place of data", ("measure", "run", "--data", "run/leanvit.json"), (r"leanvit.json' is a .json file",)),
    Cli("image in place of data", ("measure", "run", "--data", "flat/0.png"), (r"0.png' is a .png file", "accepted")),
    Cli("weights in place of data", ("measure", "run", "--data", "foreign.safetensors"), ("is a .safetensors file",)),
    *(
        Cli(
            f"{name} in place of weights",
            ("export", NAME, *tiny(), "--weights", path, "--out", "new"),
            (f"--weights {path} is not a safetensors file",),
            1,
        )
        for name, path in {
            "text": "notes.txt",
            "JSON": "run/leanvit.json",
            "an image": "flat/0.png",
            "a tar": "shards.tar",
            "parquet": "garbage.parquet",
        }.items()
    ),
    Cli(
        "pickle in place of weights",  # read by its content, not by its ending; it runs no code
        ("export", NAME, *tiny(), "--weights", "weights-pickled/weights-p.safetensors", "--out", "new"),
        ("weights-p.safetensors does not fit", "cls_token is missing"),
        1,
    ),
    Cli(
        "weights of another model",
        ("export", NAME, *tiny(), "--weights", "wider.safetensors", "--out", "new"),
        ("--weights wider.safetensors does not fit", r"is \(", "not"),
        1,
    ),
    Cli(
        "weights of something else",
        ("export", NAME, *tiny(), "--weights", "foreign.safetensors", "--out", "new"),
        ("does not fit", "is missing, not", "more"),
        1,
    ),
    *(
        Cli(f"recipe {name}", ("compress", "--recipe", f"recipes/{name}.toml"), says)
        for name, says in {
            "key": ("recipe recipes/key.toml: unknown key 'dta'", "did you mean 'data'"),
            "type": ("recipes/type.toml: data", "given: 3"),
            "method": ("recipes/method.toml: unknown method 'evitt'", "did you mean 'evit'"),
            "knob": ("recipes/knob.toml: method 'evit' has no knob 'keeprate'", "'keep_rate'"),
            "range": ("recipes/range.toml: keep_rate is 1.5", "above 0, up to 1"),
            "no-method": ("recipes/no-method.toml: method",),
            "no-slug": ("method number 1 has no slug",),
            "no-model": ("recipes/no-model.toml: model",),
            "recovery": ("recipes/recovery.toml: recovery epochs is 0", "1 or more"),
            "recovery-key": ("unknown key 'recovery.epoch'", "did you mean 'epochs'"),
            "recovery-alpha": ("recovery alpha is 1.5", "0 to 1"),
            "seed": ("recipes/seed.toml: seed", "given: 1.5"),
            "broken": ("recipes/broken.toml is not TOML",),
            "pretrained": ("argument 'pretrained'", "it does not build"),
        }.items()
    ),
]

CASES = [
    *(Case(f"load {name}", lambda name=name: load_run(name), says, CheckpointError) for name, says in DAMAGED.items()),  # type: ignore[misc]
    Case(
        "artefact truncated", lambda: load_artefact("artefact-truncated"), ("model.bin was truncated",), CheckpointError
    ),
    Case(
        "artefact without a file",
        lambda: load_artefact("artefact-without-file"),
        ("model.bin is missing",),
        CheckpointError,
    ),
    Case("artefact newer", lambda: load_artefact("artefact-newer"), ("format 7", "reads up to 5"), CheckpointError),
    Case(
        "artefact without JSON", lambda: load_artefact("artefact-without-json"), ("no artefact.json in it",), BadInput
    ),
    Case("artefact that is a run", lambda: read_artefact("run"), ("run holds no artefact", "It is a run: export it")),
    Case("run that is an artefact", lambda: load("artefact"), ("artefact holds no run", "It is an artefact")),
    Case("recipe that is JSON", lambda: load_recipe("run/leanvit.json"), ("leanvit.json is not TOML",)),
    Case("comparison that is none", lambda: Comparison.from_json(b"{}"), ("baseline|comparison|key",), CheckpointError),
    Case(
        "comparison cut", lambda: Comparison.from_json(b'{"rows": ['), ("the text is no JSON object",), CheckpointError
    ),
    Case("token maps that are none", lambda: TokenMaps.from_json(b"[]"), ("not token maps",), CheckpointError),
    Case("arguments that are a list", lambda: rebuilt("run", ["img_size"]), ("model_args is", "by name")),  # type: ignore[arg-type]
    Case("rebuilt timm name", lambda: rebuilt("vit_tiny_patch16_224", {}), ("no run", "create_model")),
    Case("rebuilt number", lambda: rebuilt(5, {}), ("model is a int", "compress or load", "path")),  # type: ignore[arg-type]
    Case(
        "rebuilt head count", lambda: rebuilt("run", {"num_heads": 4}), ("num_heads is 4", "cannot follow", "accepted")
    ),
    Case(
        "rebuilt int8 run",
        lambda: rebuilt("int8", {"num_classes": 2}),
        ("'int8' is tied to the model as it is",),
        Refused,
    ),
    Case("plans on a lean run", lambda: reapply(load("lean"), []), ("applied to the root",), Refused),
]
