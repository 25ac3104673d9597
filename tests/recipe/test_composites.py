"""Models of parts: composed, compressed part by part, saved and loaded bit for bit, and refused with reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanvit import DiffRate, EViT, Int8, LGViT, NViT, STViT, ToMe
from leanvit.anatomy import open_model
from leanvit.anatomy.composite import Composite, OpenPart, Wiring, foreign, part, wiring
from leanvit.data import Preprocess, open_dataset
from leanvit.errors import BadInput, CheckpointError, Refused
from leanvit.files import seal_of
from leanvit.measure import count
from leanvit.recipe import (
    CompositeRoot,
    Data,
    ForeignRoot,
    Plan,
    Recovery,
    Root,
    compose,
    compress,
    load,
    load_run,
    missed,
    reapply,
    rebuilt,
    save,
)
from leanvit.recipe.roots import described, root_from_json
from leanvit.runs.token_maps import trace_tokens
from leanvit.tasks import Task, task
from leanvit.training import CrossEntropy, FitConfig, fit
from leanvit.verbs.models import row_name

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 3, "in_chans": 1, "num_classes": 3}
ROOT = Root("vit_tiny_patch16_224", SMALL)


@part("test_two_linears")
class TwoLinears(OpenPart):
    """Features (B, C) to `classes` answers."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(channels, 8), nn.GELU(), nn.Linear(8, classes)

    def forward(self, x: Any) -> Any:
        x = self.ops.act("act", self.act, self.ops.linear("fc1", self.fc1, x))
        return self.ops.linear("fc2", self.fc2, x)


class Text(nn.Module):
    """A foreign tower, with a buffer that its state dict does not hold."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(5, width)
        self.register_buffer("shift", torch.arange(width) * 0.5, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).mean(dim=1) + self.shift


@foreign("test_text")
def build_text(size: Mapping[str, int]) -> nn.Module:
    return Text(**size)


@wiring("test_headed")
@dataclass(frozen=True)
class Headed(Wiring):
    """The class token, then a head; `scale` times the mean of a text where there is one."""

    scale: float = 1.0

    required: ClassVar[tuple[str, ...]] = ("head",)
    keeps: ClassVar[Mapping[str, frozenset[str]]] = {"backbone": frozenset({"class_token", "width"})}

    def check(self, parts: Mapping[str, nn.Module]) -> None:
        backbone: Any = parts["backbone"]
        head: Any = parts["head"]
        if backbone.embed_dim != head.fc1.in_features:
            raise BadInput(f"head takes {head.fc1.in_features} channels, the backbone gives {backbone.embed_dim}")

    def run(self, model: Composite, images: Any, **context: Any) -> Any:
        tokens = context.pop("tokens", None)
        parts: Any = model
        state = parts.backbone.start(images, **context)
        x, state = parts.backbone.run(*parts.backbone.embed(images, state))
        feature = parts.backbone._pool(parts.backbone.norm(x), state)
        if tokens is not None:
            feature = feature + self.scale * parts.text(tokens)
        return parts.head(feature), state

    def outputs(self, parts: Mapping[str, nn.Module]) -> int:
        head: Any = parts["head"]
        return int(head.fc2.out_features)


@wiring("test_mapped")
class Mapped(Wiring):
    """The mean of the last map."""

    keeps: ClassVar[Mapping[str, frozenset[str]]] = {"backbone": frozenset({"maps"})}

    def run(self, model: Composite, images: Any, **context: Any) -> Any:
        maps, state = model.main_part.trace_maps(images, **context)
        return maps[-1].mean(dim=(2, 3)), state


HEAD = Root("test_two_linears", {"channels": 24, "classes": 3})


def headed(*, text: bool = False, backbone: Any = ROOT) -> Composite:
    torch.manual_seed(0)
    more = {"text": ForeignRoot("test_text", {"size": {"width": 24}})} if text else {}
    return compose(Headed(scale=0.5), {"backbone": backbone, "head": HEAD, **more}).eval()


@pytest.fixture(scope="module")
def digits() -> Data:
    return Data(open_dataset("digits", "train").only_classes([0, 1, 2]).limited(24), Preprocess.of(headed()))


IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_model_of_parts_is_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    model, tokens = headed(text=True), torch.tensor([[0, 1], [2, 3]])
    assert [*model.parts] == ["backbone", "head", "text"] and [*model.opened_parts] == ["backbone", "head"]
    assert "backbone.patch_embed.proj.weight" in model.state_dict() and model.num_classes == 3
    save(model, tmp_path / "run", preprocess=Preprocess.of(model))
    again = load(tmp_path / "run")
    assert torch.equal(again(IMAGES, tokens=tokens), model(IMAGES, tokens=tokens))
    assert again.history == model.history and again.wiring == Headed(0.5)  # type: ignore[attr-defined]
    content = json.loads((tmp_path / "run" / "leanvit.json").read_text())
    assert (content["format"], content["features"]) == (3, ["parts"])
    assert content["root"]["parts"]["text"]["config"] == {"size": {"width": 24}}


def test_methods_reach_parts_through_the_whole(tmp_path: Path, digits: Data) -> None:
    model = headed()
    assert torch.equal(digits.inside(model, "backbone").run(model.backbone, IMAGES), model(IMAGES))
    lean = compress(model, [ToMe(r=2), Int8(images=8)], digits)
    lean = compress(lean, [Int8(images=8)], digits, part="head")
    assert [(plan.part, plan.slug) for plan in lean.history.plans] == [
        ("backbone", "tome"),
        ("backbone", "int8"),
        ("head", "int8"),
    ]
    assert [plan.slug for plan in lean.opened_parts["head"].history.plans] == ["int8"]  # type: ignore[attr-defined]
    assert row_name(lean) == "tome (backbone) + int8 (backbone) + int8 (head)"
    rows = {row["site"] for row in lean.history.plans[2].structure["sites"]}
    assert rows == {"fc1", "fc2"} and lean.precision == "int8 simulated" and not missed(lean)
    assert torch.nn.functional.cosine_similarity(lean(IMAGES), model(IMAGES)).min() > 0.95
    save(lean, tmp_path / "lean")
    assert torch.equal(load(tmp_path / "lean")(IMAGES), lean(IMAGES))
    assert load_run(tmp_path / "lean").model.history == lean.history


@task("one_of_three")
@dataclass(frozen=True)
class OneOfThree(Task):
    """The task of the tests: one class an image, told by these two functions alone."""

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch.targets)

    def divergence(self, outputs: Tensor, taught: Tensor, batch: Any, *, temperature: float = 1.0) -> Tensor:
        return F.kl_div(outputs.log_softmax(1), taught.log_softmax(1), reduction="batchmean", log_target=True)


@pytest.mark.parametrize("task", [None, OneOfThree()])
def test_methods_that_train_a_part_train_the_whole(tmp_path: Path, digits: Data, task: Any) -> None:
    model, data = headed(), replace(digits, task=task)
    nvit = NViT(macs=0.8, interval=2, max_steps=4, batch_size=8, mlp_group=4, v_group=2, qk_group=2, head_group=1)
    recovery = Recovery(epochs=1, batch_size=8, lr=1e-3)
    methods = [nvit, DiffRate(macs=0.9, max_steps=3, batch_size=8)]
    lean = compress(model, methods, data, recovery=recovery, out=tmp_path)
    assert [(plan.part, plan.slug) for plan in lean.history.plans] == [("backbone", "nvit"), ("backbone", "diffrate")]
    assert lean.backbone.embed_dim == 24 and lean.blocks[0].mlp.fc2.in_features < 96
    assert not torch.equal(lean.head.fc1.weight, model.head.fc1.weight)
    save(lean, tmp_path)
    assert torch.equal(load(tmp_path)(IMAGES), lean(IMAGES))


@task("without_divergence")
@dataclass(frozen=True)
class Untaught(Task):
    """A task that no teacher teaches."""

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch.targets)


@pytest.mark.parametrize("method", [ToMe(r=2), NViT(macs=0.8, interval=2, max_steps=4, batch_size=8)])
def test_without_a_divergence_nothing_is_distilled_and_nothing_begun(tmp_path: Path, digits: Data, method: Any) -> None:
    recovery = None if isinstance(method, NViT) else Recovery(epochs=1, batch_size=8)
    with pytest.raises(BadInput, match="task without_divergence has no divergence from a teacher"):
        compress(headed(), [method], replace(digits, task=Untaught()), recovery=recovery, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_compression_changes_no_bit() -> None:
    model = headed()
    assert torch.equal(compress(model, [])(IMAGES), model(IMAGES))
    assert torch.equal(compress(model, [ToMe(r=0)])(IMAGES), model(IMAGES))


def test_parts_of_runs_move_into_another_composite_with_their_plans(tmp_path: Path, digits: Data) -> None:
    lean = compress(headed(), [ToMe(r=2)], digits)
    moved = compose(Headed(scale=2.0), {"backbone": lean.backbone, "head": lean.head})
    assert [(plan.part, plan.slug) for plan in moved.history.plans] == [("backbone", "tome")]
    assert torch.equal(moved.eval()(IMAGES), lean(IMAGES))
    alone = compress(open_model(timm.create_model("vit_tiny_patch16_224", **SMALL)), [EViT(keep_rate=0.5, blocks=(0,))])
    save(compose(Headed(), {"backbone": alone, "head": HEAD}), tmp_path / "run")
    assert load(tmp_path / "run").blocks[0].reduces_tokens
    again = reapply(headed(), [Plan("tome", {"r": 2}, lean.history.plans[0].structure, part="backbone")])
    assert torch.equal(again(IMAGES), lean(IMAGES))


def test_what_a_wiring_needs_of_a_part_cannot_be_taken_away(digits: Data) -> None:
    with pytest.raises(Refused, match=r"stvit takes a class token away, which the model around this part needs"):
        compress(headed(), [STViT()])
    with pytest.raises(Refused, match=r"stvit takes feature maps .* away, which the model around this part needs"):
        compress(compose(Mapped(), {"backbone": ROOT}), [STViT()])
    lean = compress(timm.create_model("vit_tiny_patch16_224", **SMALL), [STViT()])
    with pytest.raises(Refused, match="wiring test_mapped needs of its part 'backbone' what it does not have: maps"):
        compose(Mapped(), {"backbone": lean})
    with pytest.raises(Refused, match="lgvit puts classifiers into a classifier"):
        compress(headed(), [LGViT(epochs=0, held_out=0)], digits)
    with pytest.raises(Refused, match="cannot cut embedding channels of this model: the model around this part"):
        compress(headed(), [NViT(macs=0.8, kinds=("embed", "mlp"), max_steps=20)], digits)
    with pytest.raises(BadInput, match="head takes 24 channels, the backbone gives 12"):
        headed(backbone=Root("vit_tiny_patch16_224", {**SMALL, "embed_dim": 12}))


def test_wrong_parts_are_named(tmp_path: Path) -> None:
    model = headed(text=True)
    with pytest.raises(BadInput, match="part is 'neck'; accepted: backbone, head"):
        compress(model, [ToMe(r=2)], part="neck")
    with pytest.raises(BadInput, match="part is 'text'; accepted: backbone, head"):
        compress(model, [ToMe(r=2)], part="text")
    with pytest.raises(BadInput, match="part is 'backbone'; accepted: none, the model is no model of parts"):
        compress(timm.create_model("vit_tiny_patch16_224", **SMALL), [ToMe(r=2)], part="backbone")
    with pytest.raises(Refused, match="tome needs transformer blocks"):
        compress(model, [ToMe(r=2)], part="head")
    with pytest.raises(BadInput, match="wiring test_headed needs an opened model as its part 'backbone'"):
        compose(Headed(), {"head": HEAD})
    with pytest.raises(BadInput, match="part 'head' is a TwoLinears whose arguments are not known"):
        compose(Headed(), {"backbone": ROOT, "head": TwoLinears(24, 3)})
    with pytest.raises(BadInput, match="part 'forward': accepted"):
        compose(Headed(), {"backbone": ROOT, "head": HEAD, "forward": HEAD})
    with pytest.raises(BadInput, match="part test_two_linears cannot be built with"):
        compose(Headed(), {"backbone": ROOT, "head": Root("test_two_linears", {"channels": 24})})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(features=["parts", "streams"]),
            "uses the feature 'streams'; this leanvit .* knows parts, sparse",
        ),
        (lambda c: c.update(format=4), "has format 4; this leanvit .* reads up to 3"),
        (lambda c: c["root"].update(wiring="gone", module="my.heads"), "registered by the module 'my.heads': import"),
        (lambda c: c["root"]["parts"].pop("head"), "wiring test_headed needs the part 'head'"),
        (lambda c: c["root"]["parts"].update(head=3), "has not the keys and types of one"),
        (lambda c: c["root"]["arguments"].update(scal=1), "unknown argument of the wiring test_headed 'scal'"),
        (lambda c: c["root"].update(more=3), "has not the keys and types of one"),
        (lambda c: c["root"]["parts"]["head"]["kwargs"].update(channels=12), "head takes 12 channels"),
        (
            lambda c: c["root"]["parts"].update(head=c["root"]["parts"]["backbone"]),
            "does not take the parts .*fc1",
        ),
        (lambda c: c.update(root=_nested(c["root"])), "models of parts lie more than 8 deep in one another"),
        (lambda c: c["plans"].append({"slug": "tome", "knobs": {}, "structure": {}, "part": "neck"}), "part is 'neck'"),
    ],
)
def test_tampered_runs_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        _tampered(tmp_path, headed(), change)


def _nested(root: dict[str, Any]) -> dict[str, Any]:
    for _ in range(20):
        root = {"wiring": "test_headed", "parts": {"backbone": root}}
    return root


@pytest.mark.parametrize(
    "root",
    [
        {"wiring": "w", "parts": [1]},
        {"wiring": "w", "parts": {"a": 3}},
        {"wiring": "w", "parts": {"a": {"name": "v", "kwargs": [1]}}},
        {"name": "v", "kwargs": [1]},
        {"name": ["v"]},
        {},
    ],
)
def test_a_root_of_another_shape_is_damage_before_it_is_described_or_built(root: dict[str, Any]) -> None:
    for read in (described, root_from_json):
        with pytest.raises(CheckpointError, match=r"has not the keys and types of one|a root has the keys"):
            read(root)


def test_parts_of_parts_end_somewhere() -> None:
    root: dict[str, Any] = {"name": "vit_tiny_patch16_224"}
    for _ in range(2000):
        root = {"wiring": "w", "parts": {"a": root}}
    for read in (described, root_from_json):
        with pytest.raises(CheckpointError, match="models of parts lie more than 8 deep in one another"):
            read(root)


def test_a_run_of_parts_is_described_without_its_modules() -> None:
    root = headed().history.root
    assert described(root.to_json()) == (root.name, dict(root.kwargs))


def _tampered(folder: Path, model: Composite, change: Any) -> None:
    save(model, folder / "run", overwrite=True)
    file = folder / "run" / "leanvit.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps({**content, "seal": seal_of(content)}))
    load(folder / "run")


def test_parts_follow_other_constructor_arguments() -> None:
    model, said = compress(headed(), [ToMe(r=2)]), list[str]()
    larger = rebuilt(model, {"backbone.img_size": 16, "backbone.num_classes": 0}, log=said.append)
    assert larger.input_size() == (1, 16, 16) and [plan.part for plan in larger.history.plans] == ["backbone"]
    assert larger.history.root.kwargs["backbone.img_size"] == 16 and any("head.weight" in line for line in said)
    assert torch.equal(larger.head.fc1.weight, model.head.fc1.weight) and larger(torch.randn(1, 1, 16, 16)).shape == (
        1,
        3,
    )
    with pytest.raises(
        BadInput, match=r"model argument 'head\.classes': accepted of this model of parts: backbone\.ARG"
    ):
        rebuilt(model, {"head.classes": 4})


def test_decay_and_rates_of_parts_are_those_of_the_parts() -> None:
    model = headed()
    assert "backbone.pos_embed" in model.no_weight_decay()
    assert model.sites().keys() >= {"backbone.blocks.0.attn.qkv", "head.fc1"}


# --- what parts may not be, and what a whole model of them does ------------------------------------------------------


@pytest.mark.parametrize("name", ["a.b", "forward", "training", "num_classes", "classes", "history", "exits", "ops"])
def test_a_part_has_no_name_of_an_attribute(name: str) -> None:
    with pytest.raises(BadInput, match=f"part '{name}': accepted: a Python name that is no attribute of a model"):
        compose(Headed(), {"backbone": ROOT, "head": HEAD, name: HEAD})


def test_wrong_arguments_of_a_composite_are_named() -> None:
    root: Any = ROOT
    with pytest.raises(BadInput, match="models of parts lie 9 deep in one another; accepted: up to 8"):
        for _ in range(9):
            root = CompositeRoot("test_several", {}, {"backbone": root})
    assert root.depth == 8
    with pytest.raises(BadInput, match="wired is a NoneType; accepted: a Wiring"):
        compose(None, {})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="parts is a list; accepted: models or roots by the names"):
        compose(Headed(), [ROOT])  # type: ignore[arg-type]
    model = headed()
    with pytest.raises(BadInput, match="parts 'head' and 'other' are one module: give it once"):
        Composite(Headed(), {**model.parts, "other": model.parts["head"]})
    bare = Composite(Headed(), model.parts)
    with pytest.raises(BadInput, match=r"model is of parts, whose roots it does not know: compose\(wiring, parts\)"):
        compress(bare, [ToMe(r=2)])


@foreign("test_broken")
def broken(kind: str) -> Any:
    return 5 if kind == "number" else {}[kind]


def test_what_a_foreign_library_does_wrong_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"foreign part test_broken is built as a int; accepted: an nn\.Module"):
        compose(Headed(), {"backbone": ROOT, "head": HEAD, "text": ForeignRoot("test_broken", {"kind": "number"})})
    with pytest.raises(BadInput, match="foreign part test_broken cannot be built of its configuration: 'other'"):
        compose(Headed(), {"backbone": ROOT, "head": HEAD, "text": ForeignRoot("test_broken", {"kind": "other"})})
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(BadInput, match="configuration of test_text is not JSON: maximum recursion depth"):
        ForeignRoot("test_text", {"size": deep})
    assert ForeignRoot("test_text", {"size": {1: (2, 3)}}).config == {"size": {"1": [2, 3]}}, "as a file gives it"


def test_a_foreign_part_in_half_precision_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    model, images, tokens = headed(text=True).bfloat16(), IMAGES.bfloat16(), torch.tensor([[0, 1], [2, 3]])
    again = load(save(model, tmp_path / "run"))
    assert torch.equal(again(images, tokens=tokens), model(images, tokens=tokens))


def test_layers_are_those_of_the_main_part_and_the_rest_is_the_top(digits: Data) -> None:
    scales: dict[str, float] = {}

    class Look:
        def start(self, run: Any) -> None:
            names = {id(p): name for name, p in run.model.named_parameters()}
            found = {names[id(p)]: g.get("lr_scale", 1.0) for g in run.optimizer.param_groups for p in g["params"]}
            scales.update(found)

    config = FitConfig(epochs=1, batch_size=24, layer_decay=0.5)
    fit(headed(text=True), digits.dataset, preprocess=digits.preprocess, config=config, callbacks=[Look()])
    wanted = {"cls_token": 0.125, "blocks.0.mlp.fc1.weight": 0.25, "blocks.1.mlp.fc1.weight": 0.5, "head.weight": 1.0}
    assert {name: scales[f"backbone.{name}"] for name in wanted} == wanted
    assert scales["head.fc1.weight"] == scales["text.table.weight"] == 1.0


@wiring("test_several")
@dataclass(frozen=True)
class Several(Wiring):
    """A mapping of outputs, which are no classes."""

    def run(self, model: Composite, images: Any, **context: Any) -> Any:
        logits, state = model.main_part.trace(images, **context)
        return {"logits": logits, "twice": (logits, 2 * logits)}, state


def test_outputs_that_are_no_logits(tmp_path: Path, digits: Data) -> None:
    model = compose(Several(), {"backbone": ROOT}).eval()
    config = FitConfig(epochs=1, batch_size=8)
    with pytest.raises(Refused, match="training without an objective needs a model that tells classes of images apart"):
        fit(model, digits.dataset, preprocess=digits.preprocess, config=config)
    with pytest.raises(BadInput, match=r"the model gave a dict; accepted: logits \(B, classes\).*say by a task"):
        fit(model, digits.dataset, preprocess=digits.preprocess, config=config, objective=CrossEntropy())
    lean = load(save(compress(model, [ToMe(r=2), Int8(images=8)], digits), tmp_path / "run"))
    assert lean(IMAGES)["twice"][1].shape == (2, 3) and lean.classes == ()
    assert count(lean, (1, 8, 8)).macs < count(model, (1, 8, 8)).macs


def test_token_maps_are_of_the_main_part_and_answers_of_the_whole(digits: Data) -> None:
    lean = compress(headed(), [ToMe(r=2)], digits)
    maps = trace_tokens(lean, digits.dataset, digits.preprocess, name="lean", count=3)
    assert maps.tokens == (15, 13) and len(maps.pictures) == 3
    transform = digits.preprocess.eval_transform()
    images = torch.stack([transform(sample.image) for sample in digits.dataset.limited(3)])
    assert [picture.answer for picture in maps.pictures] == lean(images).argmax(1).tolist()
    no_classes = compress(compose(Several(), {"backbone": ROOT}), [ToMe(r=2)], digits)
    assert trace_tokens(no_classes, digits.dataset, digits.preprocess, name="lean", count=3).pictures == ()
