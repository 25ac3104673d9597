"""What MODEL means: a timm name or a run folder; seeded, adapted, checked."""

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import leanvit as lv
from leanvit.errors import BadInput, CheckpointError
from leanvit.recipe import Root, create, save
from leanvit.tasks import MultiLabel
from leanvit.verbs.compressing import compress
from leanvit.verbs.fitting import require_fit
from leanvit.verbs.models import load_model

ARGS = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "depth": 2, "embed_dim": 24, "num_heads": 3}
NAME = "vit_tiny_patch16_224"


def test_fresh_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = load_model(NAME, model_args=ARGS, seed=3).model.state_dict()
    torch.manual_seed(2)
    again, other = (load_model(NAME, model_args=ARGS, seed=s).model.state_dict() for s in (3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_run_comes_back_with_what_belongs_to_it(tmp_path) -> None:
    model = create(Root(NAME, ARGS))
    preprocess = lv.Preprocess.of(model)
    save(model, tmp_path / "slim", preprocess=preprocess, classes=[str(i) for i in range(10)])
    loaded = load_model(tmp_path / "slim")
    assert (loaded.name, loaded.base, loaded.preprocess) == ("dense", "slim", preprocess)
    assert loaded.classes[3] == "3"


def test_what_is_made_from_a_multi_label_model_says_so(tmp_path) -> None:
    rows = "".join(f"{i}.png,{i % 2},{i // 2 % 2}\n" for i in range(30))
    (tmp_path / "table.csv").write_text(f"image,sun,sea\n{rows}")
    for i in range(30):
        Image.new("L", (8, 8), 8 * i).save(tmp_path / f"{i}.png")
    args, data = {**ARGS, "num_classes": 2}, str(tmp_path / "table.csv")
    save(create(Root(NAME, args)), tmp_path / "older", classes=["sun", "sea"])
    (tmp_path / "older" / "train.jsonl").write_text('{"event": "epoch", "map": 0.5}\n')  # what a run of 0.1 has
    compress(tmp_path / "older", [lv.ToMe(r=2)], out=tmp_path / "run")
    compress(NAME, [lv.ToMe(r=2)], data, model_args=args, measured=False, out=tmp_path / "name")
    for made in (tmp_path / "run", tmp_path / "name"):
        assert load_model(made).task == MultiLabel() == lv.load(made).task


def test_weights_are_loaded_strictly(tmp_path) -> None:
    state = load_model(NAME, model_args=ARGS, seed=1).model.state_dict()
    save_file(state, tmp_path / "good.safetensors")
    loaded = load_model(NAME, model_args=ARGS, weights=tmp_path / "good.safetensors").model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)

    state.pop("head.bias")
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.bias is missing"):
        load_model(NAME, model_args=ARGS, weights=tmp_path / "short.safetensors")
    (tmp_path / "foreign").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_model(NAME, model_args=ARGS, weights=tmp_path / "foreign")
    with pytest.raises(BadInput, match="no such file"):
        load_model(NAME, model_args=ARGS, weights=tmp_path / "nothing")


def test_adapting_is_said_aloud_and_keeps_what_was_given() -> None:
    said: list[str] = []
    digits = lv.open_dataset("digits", "train")
    loaded = load_model(
        NAME, model_args={"depth": 1, "img_size": 16, "patch_size": 2}, adapt_to=digits, log=said.append
    )
    assert said == [f"adapted {NAME} to digits: num_classes=10, in_chans=1"]
    assert loaded.preprocess.input_size == (1, 16, 16)
    assert loaded.classes == tuple(digits.classes)


def test_what_does_not_fit_is_said_with_the_way_out() -> None:
    digits = lv.open_dataset("digits", "val")
    loaded = load_model(NAME, model_args={"depth": 1})
    with pytest.raises(BadInput, match=r"classes: the model has 1000, the data 10(.|\n)*--adapt"):
        require_fit(loaded, digits)
    with pytest.raises(BadInput) as refused:
        require_fit(load_model(NAME, model_args={**ARGS, "num_classes": 3}), digits, adapted=True)
    assert "--adapt" not in str(refused.value)


@pytest.mark.parametrize("spec", ["runs/none", "./none", "/none/of/this"])
def test_a_path_without_a_run_is_not_taken_for_a_name(spec) -> None:
    with pytest.raises(BadInput, match="no run folder"):
        load_model(spec)


def test_pretrained_and_weights_are_not_mixed(tmp_path) -> None:
    with pytest.raises(BadInput, match="not both"):
        load_model(NAME, pretrained=True, weights=tmp_path / "x")
