"""What a kill leaves: states cut or of another run, weights without their JSON, artefacts without theirs."""

from __future__ import annotations

from wrong import NAME, Case, Cli

from leanvit.data import Preprocess, open_dataset
from leanvit.errors import BadInput, CheckpointError
from leanvit.recipe import Root, create, load_run
from leanvit.training import FitConfig, fit

SMALL = ("img_size=8", "patch_size=2", "embed_dim=12", "depth=2", "num_heads=1")
ARGUMENTS = tuple(word for pair in SMALL for word in ("--model-arg", pair))


def _resume(folder: str, *words: str) -> tuple[str, ...]:
    settings = ("--epochs", "2", "--batch-size", "10", "--limit", "20")
    return ("train", NAME, "--data", "digits", "--adapt", *ARGUMENTS, *settings, "--out", folder, "--resume", *words)


def _fit(folder: str, **settings: object) -> None:
    kwargs = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 1, "in_chans": 1}
    model = create(Root(NAME, {**kwargs, "num_classes": 10}))
    config = FitConfig(**{"epochs": 2, "batch_size": 10, **settings})  # type: ignore[arg-type]
    data = open_dataset("digits", "train", limit=20)
    fit(model, data, preprocess=Preprocess.of(model), config=config, out=folder, resume=True)


def _compress(*words: str, out: str = "unfinished-lean") -> tuple[str, ...]:
    recover = ("--recover", "1", "--recover-set", "batch_size=10")
    given = ("--with", "evit:blocks=[1]", "--data", "digits", "--limit", "20", *recover, "--no-measure")
    return ("compress", "run", *given, "--out", out, *words)


CLI = [
    Cli(
        "unfinished compression begun anew", _compress(), ("holds an unfinished compression", "--resume", "--overwrite")
    ),
    Cli(
        "unfinished compression measured",
        ("measure", "unfinished-lean", "--data", "digits"),
        ("unfinished compression",),
    ),
    Cli("unfinished compression trained into", (*_resume("unfinished-lean"),), ("no training to go on with",)),
    Cli(
        "compression resumed nowhere", _compress("--resume", out="nowhere"), ("nowhere holds no compression to go on",)
    ),
    Cli(
        "compression resumed without out",
        tuple(w for w in _compress("--resume") if w not in ("--out", "unfinished-lean")),
        ("--resume needs --out",),
    ),
    Cli(
        "compression resumed that does not train",
        ("compress", "run", "--with", "evit:blocks=[1]", "--no-measure", "--out", "unfinished-lean", "--resume"),
        ("nothing here trains", "leave it out"),
    ),
    Cli(
        "compression resumed with another rate",
        _compress("--recover-lr", "0.5", "--resume"),
        ("of another compression", "recovery.lr was 0.0001 and is now 0.5"),
    ),
    Cli(
        "compression resumed with other methods",
        _compress("--with", "tome:r=[1]", "--resume"),
        (r"methods\[1\] was null and is now .*tome",),
    ),
    Cli("compression resumed with a seed", _compress("--seed", "3", "--resume"), ("seed was 0 and is now 3",)),
    Cli(
        "compression resumed from a cut step",
        _compress("--resume", out="steps-truncated"),
        ("leanvit.json is not valid JSON", "remove .*1-evit and resume"),
        1,
    ),
    Cli(
        "compression resumed from a cut description",
        _compress("--resume", out="about-truncated"),
        ("about.json is not valid JSON",),
        1,
    ),
    Cli(
        "unfinished training measured",
        ("measure", "unfinished", "--data", "digits"),
        ("unfinished training", "--resume"),
    ),
    Cli("unfinished training exported", ("export", "unfinished"), ("unfinished holds no run", "--resume --out")),
    Cli("unfinished training reported", ("report", "unfinished"), ("unfinished holds no run", "--resume --out")),
    Cli(
        "unfinished training compressed",
        ("compress", "unfinished", "--with", "evit"),
        ("unfinished holds no run", "--resume --out"),
    ),
    Cli(
        "unfinished training trained anew",
        tuple(w for w in _resume("unfinished") if w != "--resume"),
        ("--out unfinished holds an unfinished training", "--resume", "--overwrite"),
    ),
    Cli(
        "unfinished training compressed into",
        ("compress", "run", "--with", "evit", "--out", "unfinished"),
        ("unfinished",),
    ),
    Cli(
        "resumed with other epochs",
        _resume("unfinished", "--epochs", "3"),
        ("another run", "epochs was 2 and is now 3", "train on from its run"),
    ),
    Cli(
        "resumed with another rate",
        _resume("unfinished", "--lr", "0.5"),
        ("another run", "lr was 0.001 and is now 0.5"),
    ),
    Cli("resumed with another seed", _resume("unfinished", "--seed", "7"), ("another run", "seed was 0 and is now 7")),
    Cli("resumed with other data", _resume("unfinished", "--limit", "30"), ("another run", "20 images", "30 images")),
    Cli(
        "resumed with another model",
        _resume("unfinished", "--model-arg", "mlp_ratio=2"),
        ("does not fit the model", "mlp.fc1", "has shape"),
        1,
    ),
    Cli(
        "resumed from a cut state", _resume("state-truncated"), ("state.safetensors is damaged", "no training state"), 1
    ),
    Cli("resumed from weights", _resume("state-swapped"), ("safetensors file, but no training state of leanvit",), 1),
    Cli("resumed from a newer state", _resume("state-newer"), ("training state format 9", "reads formats 1 to 2"), 1),
    Cli("weights without their JSON", ("export", "killed-save"), ("holds weights alone", "interrupted")),
    Cli(
        "run without its JSON",
        ("measure", "json-missing", "--data", "digits"),
        ("holds weights alone", "make the run again"),
    ),
    Cli("report without JSON", ("report", "json-missing"), ("json-missing holds no run", "weights alone")),
    Cli(
        "artefact without its JSON in the way",
        ("export", "run", "--out", "artefact-without-json", "--overwrite"),
        ("artefact-without-json", "not a run|not an artefact"),
    ),
]

CASES = [
    Case("load an unfinished training", lambda: load_run("unfinished"), ("holds no run", "--resume"), BadInput),
    Case(
        "load what a killed save left",
        lambda: load_run("killed-save"),
        ("weights alone", "make the run again"),
        BadInput,
    ),
    Case("fit resumes other epochs", lambda: _fit("unfinished", epochs=5), ("epochs was 2 and is now 5",), BadInput),
    Case("fit resumes another rate", lambda: _fit("unfinished", lr=0.1), ("lr was 0.001 and is now 0.1",), BadInput),
    Case(
        "fit resumes a cut state", lambda: _fit("state-truncated"), ("damaged or no training state",), CheckpointError
    ),
    Case("fit resumes weights", lambda: _fit("state-swapped"), ("no training state of leanvit",), CheckpointError),
    Case("fit resumes a newer state", lambda: _fit("state-newer"), ("format 9", "formats 1 to 2"), CheckpointError),
]
