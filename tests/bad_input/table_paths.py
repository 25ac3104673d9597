"""Paths: missing, of the wrong kind, empty, links that lead nowhere, not text, too long, where nothing can be made."""

from __future__ import annotations

import os
from pathlib import Path

from wrong import NAME, Case, Cli, tiny

from leanvit.data import open_dataset
from leanvit.deploy import load_artefact, read_artefact
from leanvit.deploy.artefact import check_target
from leanvit.recipe import load, load_recipe, load_run, save
from leanvit.report import write_report
from leanvit.verbs import compress, export, load_model, measure, train

LONG = "n" * 300
BYTES = os.fsdecode(b"runs-\xff")
TRAIN = ("train", NAME, "--data", "digits", "--adapt", *tiny(), "--limit", "20", "--batch-size", "10")
COMPRESS = ("compress", "run", "--with", "evit")


def _out(name: str, out: str, *says: str) -> list[Cli]:
    """The same target for every verb that makes a folder."""
    verbs = {"train": TRAIN, "compress": COMPRESS, "export": ("export", "run"), "demo": ("demo", "--epochs", "1")}
    return [Cli(f"{verb} into {name}", (*argv, "--out", out), ("--out", *says)) for verb, argv in verbs.items()]


def _file_out(name: str, out: str, *says: str) -> list[Cli]:
    verbs = {"measure": ("measure", "run", "--data", "digits", "--limit", "20"), "report": ("report", "run")}
    return [Cli(f"{verb} into {name}", (*argv, "--out", out), ("--out", *says)) for verb, argv in verbs.items()]


def _data(name: str, spec: str, *says: str) -> Cli:
    return Cli(f"path of data, {name}", ("measure", "run", "--data", spec), says)


def _model(name: str, spec: str, *says: str) -> Cli:
    return Cli(f"path of a model, {name}", ("export", spec, "--out", "new"), says)


CLI = [
    *_out("a file", "notes.txt", "notes.txt is a file", "accepted: a folder"),
    *_out("below a file", "notes.txt/run", "notes.txt/run cannot be made", "notes.txt is a file"),
    *_out("a link to itself", "loop", "'loop' cannot be made", "symbolic links"),
    *_out("below a link to itself", "loop/run", "'loop/run' cannot be made"),
    *_out("a link that leads nowhere", "dangling", "'dangling' cannot be made", "No such file"),
    *_out("a name too long", LONG, "cannot be made", "too long"),
    *_out("a name that is not text", BYTES, "runs-", "not UTF-8"),
    *_out("what holds other things", "plain-folder", "plain-folder is not empty", "--overwrite"),
    *(
        Cli(f"{case.name}, overwriting", (*case.argv, "--overwrite"), ("plain-folder", "not a run", "another path"))
        for case in _out("other things", "plain-folder")
    ),
    Cli("train into a run", (*TRAIN, "--out", "run"), ("--out run is not empty", "--overwrite")),
    Cli("compress into its run", (*COMPRESS, "--out", "run"), ("--out run is not empty", "--overwrite")),
    Cli("export into a run", ("export", "run", "--out", "lean"), ("--out lean is not empty", "--overwrite")),
    Cli("export over a run", ("export", "run", "--out", "lean", "--overwrite"), ("lean", "not a run|not an artefact")),
    *_file_out("a folder", "empty", "empty is a folder", "accepted: a file"),
    *_file_out("a file that is there", "notes.txt", "notes.txt exists", "--overwrite"),
    *_file_out("below a file", "notes.txt/x", "notes.txt/x cannot be made", "notes.txt is a file"),
    *_file_out("a link to itself", "loop", "'loop' cannot be made"),
    *_file_out("a name too long", LONG, "cannot be made", "too long"),
    *_file_out("a name that is not text", BYTES, "not UTF-8"),
    Cli(
        "measure without a folder to write into", ("measure", "notes.txt", "--data", "digits"), ("notes.txt is a file",)
    ),
    _data("missing", "nothing/here", "data 'nothing/here' does not exist", "accepted forms"),
    _data("a text file", "notes.txt", "data 'notes.txt' is a .txt file", "accepted forms"),
    _data("a tar file", "shards.tar", "shards.tar", "accepted|shard"),
    _data("a shard whose index misleads", "wds:misled.tar", "no member 0000.png of", "delete misled.tar.index"),
    _data("a shard that is cut off", "wds:cut.tar", "shard cut.tar is damaged or no tar file"),
    _data("an index in place of a shard", "wds:misled.tar.index", "shard misled.tar.index is damaged or no tar file"),
    _data("an empty folder", "empty", "data 'empty' holds no class folders", "<class>/<image>"),
    _data("empty classes", "empty-classes", "empty-classes", "no images"),
    _data("images without classes", "flat", "data 'flat' holds no class folders", "<class>/<image>"),
    _data("a link to itself", "loop", "data 'loop' does not exist"),
    _data("a link that leads nowhere", "dangling", "data 'dangling' does not exist"),
    _data("a name too long", LONG, "data 'nnn", "too long"),
    _data("a name that is not text", BYTES, "data 'runs-.*' does not exist"),
    _data("pictures that are none", "undecodable", "image .*png", "cannot be decoded"),
    _data("parquet that is none", "garbage.parquet", "garbage.parquet", "not a readable parquet file"),
    _data("weights named parquet", "renamed.parquet", "renamed.parquet", "not a readable parquet file"),
    _data("a folder of parquet that is none", "parquets", "train.parquet", "not a readable parquet file"),
    _data("a run folder", "run", "data 'run' holds no class folders"),
    Cli(
        "training without a training split",
        ("train", NAME, "--data", "val-only", "--adapt", *tiny(), "--out", "new"),
        ("split='train'", "'val-only'", "only val"),
    ),
    _model("missing", "runs/nothing", "no run folder at runs/nothing", "accepted: a timm name"),
    _model("missing, relative", "./nothing", "no run folder at ./nothing"),
    _model("an empty folder", "empty", "empty holds no run", "no leanvit.json"),
    _model("a file", "notes.txt", "MODEL notes.txt is a file", "the path of a run folder"),
    _model("a link to itself", "loop", "loop is a link that leads nowhere"),
    _model("a link that leads nowhere", "dangling", "dangling is a link that leads nowhere"),
    _model("a name too long", LONG, "MODEL 'nnn", "too long"),
    _model("below a file", "notes.txt/run", "no run folder at notes.txt/run"),
    _model("a name that is not text", "./" + BYTES, "no run folder at"),
    Cli(
        "publish over the run itself",
        ("publish", "run", "--data", "digits", "--out", "./run", "--overwrite"),
        ("--out run is the run itself", "another path"),
    ),
    Cli(
        "publish a missing run",
        ("publish", "./x", "--data", "digits", "--out", "new"),
        ("no run folder at ./x", "accepted:"),
    ),
    Cli(
        "retune a missing run",
        ("retune", "./x", "--with", "lgvit:threshold=0.5", "--out", "new"),
        ("no run folder at ./x", "accepted:"),
    ),
    Cli(
        "retune into the run itself",
        ("retune", "run", "--with", "lgvit:threshold=0.5", "--out", "./run", "--overwrite"),
        ("--out run is the run itself", "another path"),
    ),
    Cli(
        "retune a method that the run does not have",
        ("retune", "run", "--with", "lgvit:threshold=0.5", "--out", "new"),
        ("lgvit is not a method of this model", "accepted: one that was compressed"),
    ),
    Cli("latencies of a missing run", ("latencies", "./x"), ("no run folder at ./x",)),
    Cli(
        "latencies into a folder", ("latencies", "run", "--out", "plain-folder"), ("plain-folder is a folder", "a file")
    ),
    Cli("latencies into a file", ("latencies", "run", "--out", "notes.txt"), ("--out notes.txt exists", "--overwrite")),
    Cli("against a missing run", ("measure", "run", "--against", "./x", "--data", "digits"), ("no run folder at ./x",)),
    Cli("report of a missing run", ("report", "nothing"), ("no run folder at nothing",)),
    Cli("report of a file", ("report", "notes.txt"), ("no run folder at notes.txt",)),
    Cli("report of an empty folder", ("report", "empty"), ("empty holds no run", "no leanvit.json")),
    Cli("recipe missing", ("compress", "--recipe", "nothing.toml"), ("recipe nothing.toml: No such file", "TOML file")),
    Cli("recipe a folder", ("compress", "--recipe", "empty"), ("recipe empty: Is a directory", "TOML file")),
    Cli("recipe a link to itself", ("compress", "--recipe", "loop"), ("recipe loop:", "symbolic links")),
    Cli("recipe not text", ("compress", "--recipe", "recipes/binary.toml"), ("binary.toml is not TOML", "decode")),
    Cli(
        "weights missing",
        ("export", NAME, *tiny(), "--weights", "nothing.safetensors", "--out", "new"),
        ("--weights nothing.safetensors: there is no such file",),
    ),
    Cli(
        "weights a folder",
        ("export", NAME, *tiny(), "--weights", "empty", "--out", "new"),
        ("--weights empty", "no such file"),
    ),
    Cli("resume nothing", (*TRAIN, "--resume", "--out", "new"), ("--resume: new holds no training to go on with",)),
    Cli("resume a run", (*TRAIN, "--resume", "--out", "run"), ("--resume: run holds no training to go on with",)),
    Cli("resume a file", (*TRAIN, "--resume", "--out", "notes.txt"), ("--resume: notes.txt holds no training",)),
]

CASES = [
    Case("load nothing", lambda: load("nothing"), ("nothing holds no run", "no leanvit.json")),
    Case("load a file", lambda: load("notes.txt"), ("notes.txt holds no run",)),
    Case("load a link to itself", lambda: load("loop"), ("loop holds no run",)),
    Case("load an empty path", lambda: load_model(""), ("MODEL is ''", "accepted: a timm name")),
    Case("load a path with a zero", lambda: load_model("a\0b"), (r"a.*b", "unknown model|cannot be read")),
    Case("save over a run", lambda: save(load("run"), "run"), ("run holds a run already", "overwrite")),
    Case("save over a file", lambda: save(load("run"), "notes.txt"), ("notes.txt is a file", "accepted: a folder")),
    Case(
        "save below a file",
        lambda: save(load("run"), "notes.txt/a"),
        ("cannot write to notes.txt/a", "Not a directory"),
    ),
    Case("save to a link to itself", lambda: save(load("run"), "loop"), ("cannot write to loop",)),
    Case("save under a name too long", lambda: save(load("run"), LONG), ("cannot write to nnn", "too long")),
    Case("artefact nothing", lambda: load_artefact("nothing"), ("nothing holds no artefact", "no artefact.json")),
    Case("artefact a file", lambda: read_artefact("notes.txt"), ("notes.txt holds no artefact",)),
    Case("artefact target a file", lambda: check_target(Path("notes.txt"), overwrite=True), ("notes.txt exists",)),
    Case(
        "artefact target a run",
        lambda: check_target(Path("run"), overwrite=True),
        ("run exists and is not an artefact",),
    ),
    Case(
        "artefact target taken",
        lambda: check_target(Path("artefact"), overwrite=False),
        ("holds an artefact", "overwrite"),
    ),
    Case("recipe file missing", lambda: load_recipe("nothing"), ("recipe nothing", "No such file")),
    Case("dataset missing", lambda: open_dataset("nothing"), ("data 'nothing' does not exist", "accepted")),
    Case("data below a file", lambda: open_dataset("notes.txt/x"), ("data 'notes.txt/x' does not exist",)),
    Case("verb out empty", lambda: export("run", out=""), ("--out is ''", "path of a new file or folder")),
    Case(
        "verb out with a zero",
        lambda: export("run", out="a\0b"),
        ("--out", "cannot be made", "null byte|null character"),
    ),
    Case(
        "train out a file", lambda: train("run", "digits", out="notes.txt", limit=200), ("--out notes.txt is a file",)
    ),
    Case("compress out a file", lambda: compress("run", [], out="notes.txt"), ("--out notes.txt is a file",)),
    Case("measure out a folder", lambda: measure("run", "digits", out="empty", limit=9), ("--out empty is a folder",)),
    Case("report of nothing", lambda: write_report([]), ("at least one run folder",)),
    Case("report out a folder", lambda: write_report(["run"], "empty"), ("--out empty is a folder", "a file")),
    Case(
        "report out taken",
        lambda: write_report(["run"], "report-here.html"),
        ("report-here.html exists", "--overwrite"),
    ),
    Case("run with a wrong path kind", lambda: load_run(Path("empty")), ("empty holds no run",)),
]
