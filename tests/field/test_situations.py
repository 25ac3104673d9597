"""Situations from public bug reports: each ends as its user would want it, or in a line that says what to do."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import leanvit as lv
from field.conftest import NAME, SETTINGS, SMALL, built, folder, picture, table, trained, weights
from leanvit import verbs
from leanvit.data import open_dataset
from leanvit.errors import BadInput, LeanvitError, Refused
from leanvit.recipe import load_run

Situation = Callable[[Path, Path, Path], None]  # (an empty folder, the pets, the numbers)
SITUATIONS: dict[str, Situation] = {}


def situation(case: Situation) -> Situation:
    SITUATIONS[case.__name__] = case
    return case


@pytest.mark.parametrize("name", SITUATIONS)
def test_situation(name: str, tmp_path: Path, pets: Path, numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SITUATIONS[name](tmp_path, pets, numbers)


def top1(run: Path, data: str | Path, **more: object) -> float:
    found = verbs.measure(run, str(data), rounds=3, out="measured.json", overwrite=True, **more)
    return found.comparison.rows[-1].score.value


def refused(call: Callable[[], object], *words: str, kind: type[LeanvitError] = BadInput) -> None:
    with pytest.raises(kind) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


# --- F1, F2: names of classes -----------------------------------------------------------------------------------------


@situation
def other_names_are_not_measured_by_position(here: Path, pets: Path, numbers: Path) -> None:
    folder(here / "shelter", ["b_cat", "a_dog"])
    refused(lambda: verbs.measure(pets / "run", "shelter", out="m.json"), "cat, dog", "a_dog, b_cat", "by-position")


@situation
def other_names_never_replace_those_of_a_run(here: Path, pets: Path, numbers: Path) -> None:
    folder(here / "shelter", ["b_cat", "a_dog"])
    refused(lambda: verbs.compress(pets / "run", [lv.ToMe(r=1)], "shelter", out="lean"), "a_dog, b_cat")
    assert not (here / "lean").exists()


@situation
def an_artefact_says_the_names_that_were_trained(here: Path, pets: Path, numbers: Path) -> None:
    made = verbs.export(pets / "run", to="openvino", out="art")
    assert json.loads((made.folder / "artefact.json").read_text())["labels"] == ["cat", "dog"]


@situation
def one_class_of_a_run_is_measured_with_a_warning(here: Path, pets: Path, numbers: Path) -> None:
    folder(here / "dogs", ["skip", "dog"])
    lines: list[str] = []
    top1(pets / "run", "dogs?classes=dog", log=lines.append)
    assert any("no answer can be wrong" in line for line in lines)


@situation
def folders_and_tables_number_alike(here: Path, pets: Path, numbers: Path) -> None:
    names = [str(n) for n in range(12)]
    assert open_dataset(numbers / "data").classes == open_dataset(numbers / "data.csv").classes == names
    assert load_run(numbers / "run").classes == tuple(names)
    assert top1(numbers / "run", numbers / "data.csv") == top1(numbers / "run", numbers / "data") > 80


@situation
def some_classes_of_a_run_are_scored_among_themselves(here: Path, pets: Path, numbers: Path) -> None:
    assert top1(numbers / "run", f"{numbers / 'data'}?classes=11,10,9,8,7,6") > 80


# --- F3: folders ------------------------------------------------------------------------------------------------------


@situation
def a_class_may_be_called_train(here: Path, pets: Path, numbers: Path) -> None:
    for kind in ("bus", "car", "train"):
        folder(here / "vehicles" / kind, ["old", "new"], 3)
    found = open_dataset("vehicles")
    assert (len(found), found.classes) == (18, ["bus", "car", "train"]) and "train/ is taken as a class" in found.note


@situation
def flat_classes_may_be_called_train(here: Path, pets: Path, numbers: Path) -> None:
    assert open_dataset(folder(here / "flat", ["bus", "car", "train"])).classes == ["bus", "car", "train"]


@situation
def a_class_may_be_called_test(here: Path, pets: Path, numbers: Path) -> None:
    assert open_dataset(folder(here / "both", ["cat", "dog", "test"])).classes == ["cat", "dog", "test"]


@situation
def an_unlabelled_test_folder_is_left_out_aloud(here: Path, pets: Path, numbers: Path) -> None:
    folder(here / "kaggle/train", ["cat", "dog"], 12)
    folder(here / "kaggle", ["test"], 5)
    lines: list[str] = []
    made = trained(here, here / "kaggle", log=lines.append)
    assert load_run(made.folder).classes == ("cat", "dog")
    assert any("5 in test/" in line for line in lines)


@situation
def jfif_is_read_and_an_empty_folder_is_no_class(here: Path, pets: Path, numbers: Path) -> None:
    folder(here / "phones", ["cat", "dog"], 3, "jfif")
    (here / "phones/__MACOSX").mkdir()
    (here / "phones/dog/readme.txt").write_text("x")
    found = open_dataset("phones")
    assert (len(found), found.classes) == (6, ["cat", "dog"])
    assert dict(found.left_out) == {"with the ending .txt": 1, "empty folder (__MACOSX)": 1}


@situation
def a_folder_may_end_in_a_question_mark(here: Path, pets: Path, numbers: Path) -> None:
    folder(here / "what?", ["a", "b"])
    assert len(open_dataset("what?")) == 12


# --- F4: depth --------------------------------------------------------------------------------------------------------


@situation
def sixteen_bit_files_of_any_depth_are_bright(here: Path, pets: Path, numbers: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint16)
    grey[0, 0] = 255
    for bits, pixels in ((8, grey), (12, grey * 16), (16, grey * 257)):
        for name in ("a", "b"):
            (here / f"{bits}/{name}").mkdir(parents=True)
            Image.fromarray(pixels).save(here / f"{bits}/{name}/0.png")
        found = open_dataset(here / str(bits))
        assert np.asarray(found[0].image).max() >= 254 and f"({bits} bits) taken as range" in found.note


@situation
def a_strip_does_not_ask_for_all_memory(here: Path, pets: Path, numbers: Path) -> None:
    folder(here / "strips", ["cat", "dog"])
    Image.new("RGB", (100_000, 1)).save(here / "strips/cat/strip.png")
    answers = lv.predict(built(img_size=224, patch_size=32, num_classes=2).eval(), "strips/cat")
    assert [Path(one.image).name for one in answers if one.error] == ["strip.png"]


@situation
def a_file_named_jpg_is_not_given_to_ghostscript(here: Path, pets: Path, numbers: Path) -> None:
    folder(here / "photos", ["cat", "dog"])
    (here / "photos/cat/evil.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    found = open_dataset("photos?on_bad=skip").readable()
    assert [bad.key for bad in found.bad] == ["cat/evil.jpg"]


# --- F5, F6: weights --------------------------------------------------------------------------------------------------


def _under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def _files(here: Path) -> dict[str, Path]:
    own = built().state_dict()
    held = {
        "lightning.ckpt": {"state_dict": _under("model.", own), "epoch": 3, "hyper_parameters": {"lr": 1e-3}},
        "tutorial.pth": {"model_state_dict": own, "epoch": 5},
        "dino.pth": {"teacher": _under("backbone.", own), "student": _under("module.backbone.", own)},
        "swa.pth": {**own, "n_averaged": torch.tensor(3)},
        "scalar.pth": {"model": own, "max_accuracy": np.float64(71.2)},
        "in1k.pth": {"model": {**own, **_under("head.", torch.nn.Linear(24, 1000).state_dict())}},
        "larger.pth": {"model": {**own, "pos_embed": built(img_size=32).state_dict()["pos_embed"]}},
        "openclip.pt": _under("visual.trunk.", {k: v for k, v in own.items() if not k.startswith("head.")}),
    }
    return {name: weights(here / name, one) for name, one in held.items()}


@situation
def weights_of_other_loops_are_found_and_said(here: Path, pets: Path, numbers: Path) -> None:
    data, files = open_dataset(pets / "data"), _files(here)
    want = torch.load(files["tutorial.pth"], weights_only=True)["model_state_dict"]
    for name, file in files.items():
        lines: list[str] = []
        given = {"model_args": SMALL, "weights": file, "adapt_to": data, "log": lines.append}
        loaded = verbs.models.load_model(NAME, **given).model.state_dict()
        assert torch.equal(loaded["blocks.1.attn.qkv.weight"], want["blocks.1.attn.qkv.weight"]), name
        assert loaded["head.weight"].shape[0] == 2 and any(line.startswith(name) for line in lines), name


@situation
def a_misfit_says_what_the_file_looks_like(here: Path, pets: Path, numbers: Path) -> None:
    file = weights(here / "deep.pth", built(depth=3).state_dict())
    load = lambda: verbs.models.load_model(NAME, model_args={**SMALL, "num_classes": 10}, weights=file)  # noqa: E731
    refused(load, "The file looks like", "depth 3", "depth 2", kind=LeanvitError)


@situation
def a_tag_and_its_preprocessing_survive_python(here: Path, pets: Path, numbers: Path) -> None:
    model = timm.create_model("vit_small_patch16_224.dino", **SMALL, num_classes=2).eval()
    lv.save(lv.compress(model, [lv.ToMe(r=1)]), "tag")
    run = load_run("tag")
    assert run.preprocess == lv.Preprocess.of(run.model) == lv.Preprocess.of(model)
    assert run.preprocess is not None and run.preprocess.mean[0] == pytest.approx(0.485)


# --- F7: tables -------------------------------------------------------------------------------------------------------

TAGS = ("clear primary", "haze primary water", "clear agriculture", "cloudy", "clear water", "haze primary")


def _pictures(here: Path) -> list[str]:
    folder(here, ["pictures"], 12)
    return [f"pictures/{i}.png" for i in range(12)]


@situation
def words_in_a_cell_give_a_hint(here: Path, pets: Path, numbers: Path) -> None:
    rows = [(path, TAGS[i % 6]) for i, path in enumerate(_pictures(here))]
    file = table(here / "tags.csv", [("image", "tags"), *rows])
    assert "?separator=space" in open_dataset(file).note
    assert open_dataset("tags.csv?separator=space").classes == [
        "agriculture", "clear", "cloudy", "haze", "primary", "water",
    ]  # fmt: skip


@situation
def floats_of_pandas_are_labels(here: Path, pets: Path, numbers: Path) -> None:
    rows = [(path, f"{i % 2:.1f}", f"{i % 3 == 0:.1f}") for i, path in enumerate(_pictures(here))]
    found = open_dataset(table(here / "floats.csv", [("image", "haze", "water"), *rows]))
    assert found.multi_label and found.targets.sum(axis=0).tolist() == [6, 4]


@situation
def semicolons_are_seen(here: Path, pets: Path, numbers: Path) -> None:
    rows = [(path, "ab"[i % 2]) for i, path in enumerate(_pictures(here))]
    found = open_dataset(table(here / "semicolon.csv", [("image", "label"), *rows], ";"))
    assert found.classes == ["a", "b"] and "';'" in found.note


@situation
def uncertain_labels_are_named_by_their_line(here: Path, pets: Path, numbers: Path) -> None:
    rows = [(path, -1 if i == 4 else i % 2, 1) for i, path in enumerate(_pictures(here))]
    table(here / "u.csv", [("image", "haze", "water"), *rows])
    refused(lambda: open_dataset("u.csv"), "line 6", "uncertain")
    assert len(open_dataset("u.csv?uncertain=skip")) == 11


@situation
def ids_without_an_ending_are_found(here: Path, pets: Path, numbers: Path) -> None:
    rows = [(path.removesuffix(".png"), "ab"[i % 2]) for i, path in enumerate(_pictures(here))]
    found = open_dataset(table(here / "ids.csv", [("id", "label"), *rows]))
    assert len(found) == 12 and np.asarray(found[0].image).shape == (16, 16, 3)


@situation
def an_empty_label_is_no_class(here: Path, pets: Path, numbers: Path) -> None:
    rows = [(path, "" if i == 3 else i % 2) for i, path in enumerate(_pictures(here))]
    refused(lambda: open_dataset(table(here / "e.csv", [("image", "label"), *rows])), "e.csv", "line 5")


@situation
def a_stray_quote_swallows_no_rows(here: Path, pets: Path, numbers: Path) -> None:
    rows = [(path, '"a' if i in (2, 8) else "ab"[i % 2]) for i, path in enumerate(_pictures(here))]
    refused(lambda: open_dataset(table(here / "q.csv", [("image", "label"), *rows])), "q.csv", "line", "quotation mark")


# --- F8: guards -------------------------------------------------------------------------------------------------------


@situation
def batch_norm_over_one_value_is_refused_before_the_first_step(here: Path, pets: Path, numbers: Path) -> None:
    settings = {"epochs": 1, "batch_size": 1}
    train = lambda: verbs.train(  # noqa: E731
        "levit_128s", str(pets / "data"), settings=settings, model_args={"num_classes": 2}, convert=True, out="levit"
    )
    refused(train, "batch norm", "--batch-size 2")
    assert not (here / "levit").exists()


@situation
def one_method_that_does_not_fit_does_not_end_a_comparison(here: Path, pets: Path, numbers: Path) -> None:
    folder(here / "data", ["cat", "dog"], each=12)
    trained(here, here / "data", model_args={**SMALL, "depth": 1})
    found = verbs.compare_methods("run", "data", ["stvit", "tome"], macs=0.9, tolerance=0.4, rounds=3, out="compared")
    assert "stvit" in found.result.left_out and [row.name for row in found.result.standings] == ["tome"]


@situation
def a_refused_method_leaves_nothing_behind(here: Path, pets: Path, numbers: Path) -> None:
    args = {"model_args": {**SMALL, "img_size": 16}, "adapt": True, "out": "eva", "measured": False}
    data = str(pets / "data")
    refused(lambda: verbs.compress("eva02_tiny_patch14_224", [lv.NViT(macs=0.6)], data, **args), "nvit", kind=Refused)
    assert not (here / "eva").exists()
    verbs.compress(NAME, [lv.ToMe(r=1)], data, **args)


@situation
def more_epochs_have_a_way(here: Path, pets: Path, numbers: Path) -> None:
    folder(here / "data", ["cat", "dog"], each=12)
    trained(here, here / "data", settings={**SETTINGS, "epochs": 1})
    more = lambda: trained(here, here / "data", settings={**SETTINGS, "epochs": 2}, resume=True)  # noqa: E731
    refused(more, "train on")


@situation
def a_picture_of_four_channels_has_a_way(here: Path, pets: Path, numbers: Path) -> None:
    model = {**SMALL, "in_chans": 4, "num_classes": 2}
    train = lambda: verbs.train(NAME, str(pets / "data"), model_args=model, settings=SETTINGS, out="four")  # noqa: E731
    refused(train, "channels=4")
    picture(0).convert("RGBA").save(here / "four.png")
    assert lv.predict(pets / "run", here / "four.png")[0].label in ("cat", "dog")
