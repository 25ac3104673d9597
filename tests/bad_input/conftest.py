"""One folder with everything that can be handed over wrongly, made once: runs, artefacts, data, and damaged copies."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from leanvit.data import Preprocess, open_dataset
from leanvit.deploy.artefact import Artefact, write_artefact
from leanvit.files import file_sha256, sealed_text
from leanvit.quantize.int8 import Int8
from leanvit.recipe import Data, Recovery, Root, compress, create, load_run, save
from leanvit.recipe.sparse_codec import pack
from leanvit.tokens.evit import EViT
from leanvit.training import FitConfig, fit
from shards import exchange, numbered, rewrite_index, write_shard

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 1, "in_chans": 1, "num_classes": 10}
RECIPE = 'model = "run"\ndata = "digits"\n[[method]]\nslug = "evit"\n'


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; the wrong calls run in it, and none may change it."""
    folder = tmp_path_factory.mktemp("world")
    _runs(folder)
    _damaged_runs(folder)
    _artefacts(folder)
    _data(folder)
    _recipes(folder)
    _training_recipes(folder)
    _trainings(folder)
    _odd_paths(folder)
    return folder


def _runs(folder: Path) -> None:
    digits = open_dataset("digits", "train", limit=40)
    dense = create(Root("vit_tiny_patch16_224", SMALL)).eval()
    preprocess = Preprocess.of(dense)
    kept: dict[str, Any] = {"preprocess": preprocess, "classes": digits.classes}
    save(dense, folder / "run", **kept)
    save(compress(dense, [EViT(keep_rate=0.5, blocks=(1,))]), folder / "lean", **kept)
    save(compress(dense, [Int8(images=8)], Data(digits, preprocess)), folder / "int8", **kept)
    wider = create(Root("vit_tiny_patch16_224", {**SMALL, "embed_dim": 24})).eval()
    save(wider, folder / "wider", **kept)
    larger = create(Root("vit_tiny_patch16_224", {**SMALL, "img_size": 16})).eval()
    save(larger, folder / "larger", preprocess=Preprocess.of(larger), classes=digits.classes)
    colour = create(Root("vit_tiny_patch16_224", {**SMALL, "in_chans": 3, "num_classes": 2})).eval()
    save(colour, folder / "colour", preprocess=Preprocess.of(colour), classes=["cat", "dog"])
    headless = create(Root("vit_tiny_patch16_224", {**SMALL, "class_token": False, "global_pool": "avg"})).eval()
    save(headless, folder / "no-class-token", **kept)
    save_file({"a": torch.zeros(2)}, folder / "foreign.safetensors")
    save_file(wider.state_dict(), folder / "wider.safetensors")


def _edited(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the run with its JSON edited and sealed again: what only the deeper checks can find."""
    copy = Path(shutil.copytree(folder / "run", folder / name))
    content = json.loads((copy / "leanvit.json").read_text())
    edit(content)
    (copy / "leanvit.json").write_bytes(sealed_text(content))
    return copy


def _weights_of(run: Path) -> Path:
    return next(run.glob("weights-*.safetensors"))


def _damaged_runs(folder: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder / "run", folder / name))

    text = (folder / "run/leanvit.json").read_text()
    for name, content in {
        "json-truncated": text[:100],
        "json-empty": "",
        "json-list": "[]",
        "json-changed": text.replace('"depth": 2', '"depth": 1'),
        "json-deep": "[" * 100_000,
        "json-nan": text.replace('"format": 1', '"format": NaN'),
    }.items():
        (copy(name) / "leanvit.json").write_text(content)
    _weights_of(copy("weights-missing")).unlink()
    cut = _weights_of(copy("weights-truncated"))
    cut.write_bytes(cut.read_bytes()[:-10])
    shutil.copyfile(_weights_of(folder / "wider"), _weights_of(copy("weights-swapped")))
    shutil.copyfile(folder / "int8/leanvit.json", copy("json-swapped") / "leanvit.json")
    (copy("json-missing") / "leanvit.json").unlink()
    (copy("commands-damaged") / "commands.jsonl").write_text('{"verb": "train"')
    (copy("measure-damaged") / "measure.json").write_text('{"rows": [')
    (copy("measure-swapped") / "measure.json").write_text(text)
    (copy("tokens-damaged") / "tokens.json").write_text("{}")
    _edited(folder, "format-newer", lambda c: c.update(format=99))
    _edited(folder, "feature-unknown", lambda c: c.update(format=3, features=["streams"]))
    gone = {"wiring": "gone", "arguments": {}, "parts": {}, "module": "my_heads"}
    _edited(folder, "wiring-unknown", lambda c: c.update(format=3, features=["parts"], root=gone))
    _edited(folder, "kind-foreign", lambda c: c.update(kind="leanvit-artefact"))
    _edited(folder, "key-unknown", lambda c: c.update(wieghts={}))
    _edited(folder, "weights-outside", lambda c: c["weights"].update(file="../foreign.safetensors"))
    _edited(folder, "root-unknown", lambda c: c["root"].update(name="vit_tinny_patch16_224"))
    _edited(folder, "root-loads", lambda c: c["root"]["kwargs"].update(pretrained=True))
    _edited(folder, "root-huge", lambda c: c["root"]["kwargs"].update(depth=10**6))
    _edited(folder, "plan-unknown", lambda c: c.update(plans=[{"slug": "evitt", "knobs": {}, "structure": {}}]))
    knobs = {"keep_rate": 7}
    _edited(folder, "plan-range", lambda c: c.update(plans=[{"slug": "evit", "knobs": knobs, "structure": {}}]))
    rows = {"blocks": [{"block": 9, "keep_rate": 0.5, "tokens": None}]}
    _edited(folder, "plan-block", lambda c: c.update(plans=[{"slug": "evit", "knobs": {}, "structure": rows}]))
    _edited(folder, "plan-empty", lambda c: c.update(plans=[{"slug": "evit", "knobs": {}, "structure": {}}]))
    _edited(folder, "preprocess-range", lambda c: c["preprocess"].update(std=[0]))
    _edited(folder, "preprocess-key", lambda c: c["preprocess"].update(crop=1))
    other = _edited(folder, "weights-of-another", lambda c: None)
    shutil.copyfile(folder / "wider.safetensors", other / "weights-other.safetensors")
    _point_to(other, "weights-other.safetensors")
    pickled = _edited(folder, "weights-pickled", lambda c: None)
    torch.save({"a": torch.zeros(1)}, pickled / "weights-p.safetensors")
    _point_to(pickled, "weights-p.safetensors")
    _damaged_bitmaps(folder)


def _damaged_bitmaps(folder: Path) -> None:
    """Weights files with a sparse tensor whose bitmap is cut, or keeps other elements than there are values for."""
    tensors = load_file(_weights_of(folder / "run"))
    name = "blocks.0.mlp.fc1.weight"
    tensors[name][::2] = 0
    packed, metadata = pack(tensors, [name])
    bitmap = packed[f"{name}:bitmap"]
    for run, damaged in {"bitmap-truncated": bitmap[:-1], "bitmap-tampered": bitmap | 1}.items():
        copy = _edited(folder, run, lambda c: c.update(format=3, features=["sparse"]))
        file = "weights-sparse.safetensors"
        save_file({**packed, f"{name}:bitmap": damaged.clone()}, copy / file, metadata=metadata)
        _point_to(copy, file)


def _point_to(run: Path, file: str) -> None:
    content = json.loads((run / "leanvit.json").read_text())
    content["weights"] = {"file": file, "sha256": file_sha256(run / file)}
    (run / "leanvit.json").write_bytes(sealed_text(content))


def _artefacts(folder: Path) -> None:
    preprocess = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    artefact = Artefact(folder / "artefact", "openvino", "f32", None, preprocess, 10, (), "", ())

    def fill(into: Path) -> dict[str, Any]:
        (into / "model.xml").write_text("<net/>")
        (into / "model.bin").write_bytes(b"0" * 16)
        return {}

    write_artefact(artefact, fill)
    for name in ("artefact-truncated", "artefact-without-file", "artefact-without-json", "artefact-newer"):
        shutil.copytree(folder / "artefact", folder / name)
    (folder / "artefact-truncated/model.bin").write_bytes(b"0")
    (folder / "artefact-without-file/model.bin").unlink()
    (folder / "artefact-without-json/artefact.json").unlink()
    content = json.loads((folder / "artefact/artefact.json").read_text())
    (folder / "artefact-newer/artefact.json").write_bytes(sealed_text({**content, "format": 7}))


def _data(folder: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(3):
            path = folder / f"photos/train/{label}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * number, 90, 10)).save(path)
    shutil.copytree(folder / "photos/train", folder / "val-only/val")
    shutil.copytree(folder / "photos/train/cat", folder / "one-class/cat")
    for broken in ("0", "1", "2"):
        path = folder / f"undecodable/cat/{broken}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not a picture")
    (folder / "empty").mkdir()
    (folder / "empty-classes/cat").mkdir(parents=True)
    (folder / "flat").mkdir()
    shutil.copyfile(folder / "photos/train/cat/0.png", folder / "flat/0.png")
    (folder / "notes.txt").write_text("hello")
    (folder / "garbage.parquet").write_bytes(b"PAR1 no")
    (folder / "renamed.parquet").write_bytes(_weights_of(folder / "run").read_bytes())
    (folder / "parquets").mkdir()
    (folder / "parquets/train.parquet").write_text("[]")
    _columns(folder / "columns")
    with tarfile.open(folder / "shards.tar", "w") as tar:
        tar.add(folder / "notes.txt", "notes.txt")
    for name in ("misled", "cut"):
        write_shard(folder / f"{name}.tar", numbered(range(12)))
    open_dataset(f"wds:{folder}/misled.tar")
    rewrite_index(folder / "misled.tar", exchange(0, 2))
    os.truncate(folder / "cut.tar", 9000)


def _columns(folder: Path) -> None:
    """Tables whose columns could be fields, each with one fault but `good.csv`: masks of 0 and 1, boxes as COCO's."""
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 90, 10)).save(folder / f"{number}.png")
        Image.new("L", (8, 8), number % 2).save(folder / f"mask{number}.png")
        Image.new("L", (8, 8), number % 2).save(folder / f"lossy{number}.jpg")
        Image.new("L", (4, 4), number % 2).save(folder / f"small{number}.png")
    good = {"mask": "mask{}.png", "text": "a picture", "boxes": "[[1, 1, 4, 4]]", "depth": "mask{}.png"}
    for name, cells in {
        "good": {},
        "lossy": {"mask": "lossy{}.jpg"},
        "small": {"mask": "small{}.png", "depth": "small{}.png"},
        "gone": {"mask": "gone{}.png", "text": "", "boxes": ""},
        "flat": {"boxes": "[[1, 1, 4, 0]]"},
        "outside": {"boxes": "[[1, 1, 4, 7.02]]"},
        "fractions": {"boxes": "[[0.1, 0.1, 0.5, 0.5]]"},
        "no-json": {"boxes": "1 1 4 4"},
        "colour": {"mask": "{}.png"},
    }.items():
        columns = {**good, **cells}
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["image", "label", *columns])
            rows = [[f"{n}.png", "ab"[n % 2], *(cell.format(n) for cell in columns.values())] for n in range(4)]
            writer.writerows(rows)


def _recipes(folder: Path) -> None:
    (folder / "recipe.toml").write_text(RECIPE)
    texts = {
        "key": RECIPE.replace("data =", "dta ="),
        "type": RECIPE.replace('"digits"', "3"),
        "method": RECIPE.replace("evit", "evitt"),
        "knob": RECIPE + "keeprate = 0.5\n",
        "range": RECIPE + "keep_rate = 1.5\n",
        "no-method": 'model = "run"\n',
        "no-slug": 'model = "run"\n[[method]]\nkeep_rate = 0.5\n',
        "no-model": '[[method]]\nslug = "evit"\n',
        "recovery": RECIPE + "[recovery]\nepochs = 0\n",
        "recovery-key": RECIPE + "[recovery]\nepoch = 1\n",
        "recovery-alpha": RECIPE + "[recovery]\nalpha = 1.5\n",
        "seed": "seed = 1.5\n" + RECIPE,
        "broken": "model = \n",
        "pretrained": 'model = "vit_tiny_patch16_224"\nmodel_args = {pretrained = true}\n[[method]]\nslug = "evit"\n',
    }
    (folder / "recipes").mkdir()
    for name, text in texts.items():
        (folder / f"recipes/{name}.toml").write_text(text)
    (folder / "recipes/binary.toml").write_bytes(b"\xff\xfe\x00")


TRAINING_RECIPE = 'title = "t"\n[model]\nname = "vit_tiny_patch16_224"\n[fit]\nepochs = 2\n'


def _training_recipes(folder: Path) -> None:
    product = TRAINING_RECIPE + "lr_base = 1e-3\n"
    texts = {
        "key.toml": TRAINING_RECIPE.replace("title", "titel"),
        "model-key.toml": TRAINING_RECIPE.replace("name", "nam"),
        "fit-key.toml": TRAINING_RECIPE.replace("epochs", "epoch"),
        "value.toml": TRAINING_RECIPE.replace("epochs = 2", "epochs = 0"),
        "both-rates.toml": product + "lr_base_size = 8\nlr = 0.5\n",
        "no-size.toml": product,
        "no-model.toml": TRAINING_RECIPE.replace('name = "vit_tiny_patch16_224"', ""),
        "two-starts.toml": TRAINING_RECIPE.replace("[fit]", 'starts_from = "run"\n[fit]'),
        "start-args.toml": 'title = "t"\n[model]\nstarts_from = "run"\nargs = {depth = 2}\n[fit]\nepochs = 2\n',
        "distill-key.toml": TRAINING_RECIPE + '[distill]\nkind = "soft"\nalfa = 0.5\n',
        "distill-kind.toml": TRAINING_RECIPE + "[distill]\nalpha = 0.5\n",
        "augment.toml": TRAINING_RECIPE + "augment = {flip = 0.5}\n",
        "broken.toml": "title = \n",
        "compress.toml": RECIPE,
        "args.yaml": "model: vit_tiny_patch16_224\nopt: adamw\nbce_loss: true\n",
        "broken.yaml": "model: [1\n",
        "list.yaml": "- 1\n- 2\n",
        "alias.yaml": "model: &a vit_tiny_patch16_224\nmodel_kwargs: {name: *a}\n",
        "rate.yaml": "model: vit_tiny_patch16_224\nopt: adamw\nlr_base: fast\n",
        "code.yaml": "model: !!python/object/apply:os.getcwd []\n",
    }
    (folder / "training-recipes").mkdir()
    for name, text in texts.items():
        (folder / f"training-recipes/{name}").write_text(text)
    (folder / "training-recipes/binary.toml").write_bytes(b"\xff\xfe\x00")


class _Stop:
    def after_step(self, run: Any) -> None:
        raise KeyboardInterrupt


def _trainings(folder: Path) -> None:
    """Trainings that were killed: with a whole state, and with what else a kill or a stranger may leave."""
    digits = open_dataset("digits", "train", limit=20)
    model = create(Root("vit_tiny_patch16_224", SMALL))
    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            digits,
            preprocess=Preprocess.of(model),
            config=FitConfig(epochs=2, batch_size=10),
            callbacks=[_Stop()],
            out=folder / "unfinished",
        )
    state = folder / "unfinished/training/state.safetensors"
    (folder / "unfinished/training/.state.safetensors-killed.part").write_bytes(b"half")
    for name, content in {
        "state-truncated": state.read_bytes()[:200],
        "state-swapped": _weights_of(folder / "run").read_bytes(),
        "state-newer": state.read_bytes().replace(b'{\\"format\\": 2,', b'{\\"format\\": 9,'),
    }.items():
        path = folder / name / "training/state.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    _compressions(folder)
    (folder / "killed-save").mkdir()
    shutil.copyfile(_weights_of(folder / "run"), folder / "killed-save" / _weights_of(folder / "run").name)
    (folder / "killed-save/.leanvit.json-x.part").write_text("{")


def _compressions(folder: Path) -> None:
    """Compressions that were killed in their recovery: with whole steps, and with damaged ones."""
    digits = open_dataset("digits", "train", limit=20)
    run = load_run(folder / "run")
    assert run.preprocess is not None
    data = Data(digits, run.preprocess, callbacks=(_Stop(),))
    recovery = Recovery(epochs=1, batch_size=10)
    with pytest.raises(KeyboardInterrupt):
        compress(run.model, [EViT(blocks=(1,))], data, recovery=recovery, out=folder / "unfinished-lean")
    for name, file in (("steps-truncated", "1-evit/leanvit.json"), ("about-truncated", "about.json")):
        path = Path(shutil.copytree(folder / "unfinished-lean", folder / name)) / "steps" / file
        path.write_bytes(path.read_bytes()[:40])


def _odd_paths(folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere/at/all")
    (folder / "plain-folder").mkdir()
    (folder / "plain-folder/mine.txt").write_text("keep me")
    (folder / "plain-folder/training").mkdir()
    (folder / "plain-folder/training/diary.txt").write_text("keep me too")
    os.mkdir(os.fsencode(folder) + b"/latin-\xe9")
    (folder / "report-here.html").write_text("a page")
