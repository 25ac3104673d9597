"""What models, blocks and attentions say of themselves, over every family; who works on models asks that, no class."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import hybrid_zoo
import zoo
from backbones.small import SMALL
from leanvit.anatomy import OpenModel, Step, open_model
from leanvit.anatomy.arithmetic.score import proportional
from leanvit.anatomy.surgery.steps import add_term, insert_step
from leanvit.anatomy.surgery.widths import set_attention_widths, set_embed_width
from leanvit.anatomy.traced.model import REACHED_BY_PATH, OpenTraced
from leanvit.errors import BadInput, Refused

SRC = Path(__file__).resolve().parents[2] / "src" / "leanvit"
CAPABILITIES = {  # a letter for each; of blocks and attentions: whether all of a model's have it
    "I": lambda model: model.isotropic,
    "H": lambda model: model.hierarchical,
    "P": lambda model: model.plain,
    "W": lambda model: model.windowed,
    "R": lambda model: model.reads_positions,
    "b": lambda model: every(block.plain for block in model.blocks),
    "a": lambda model: every(attn.plain for attn in attentions(model)),
    "r": lambda model: every(attn.reads_positions for attn in attentions(model)),
    "c": lambda model: every([*(b.prunable for b in model.blocks), *(attn.prunable for attn in attentions(model))]),
    "w": lambda model: not model.width_refusal(),
}
PLAIN, ROTARY, RELATIVE, SWIN, SWIN_V2, TRACED = "IPbacw", "IRbr", "IRbar", "HWRbarc", "HWRrc", ""
EXPECTED: dict[str, str] = {
    **dict.fromkeys(zoo.ZOO, PLAIN),
    **dict.fromkeys(zoo.ODD, ROTARY),
    "eva_giant_patch14_224": "Ib",  # the bias of q and v is kept apart; no rotary positions
    "eva02_enormous_patch14_clip_224": "I",  # and norms behind
    "vit_base_patch16_siglip_224": "IPbac",  # attention pooling, as wide as the stream
    "vit_so400m_patch14_siglip_224": "IPbac",
    "vit_so150m_patch16_reg4_map_256": "IPbac",
    "vit_small_patch16_18x2_224": "IPa",  # several attentions in a block
    "vit_base_patch16_xp_224": "IP",  # attention and MLP side by side
    "vit_pwee_patch16_reg1_gap_256": "IP",
    "vit_dpwee_patch16_reg1_gap_256": "IP",
    "vit_dwee_patch16_reg1_gap_256": "IPbw",  # the difference of two maps of scores
    "vit_base_patch16_rpn_224": "IPac",  # norms behind attention and MLP
    **{name: RELATIVE for name in zoo.ODD if name.startswith(("vit_relpos", "vit_srelpos"))},
    "vit_relpos_base_patch32_plus_rpn_256": "IRar",
    **{name: ROTARY for name in zoo.ODD if name.startswith("beit")},  # biases; q and v have theirs apart
    **{name: SWIN_V2 if name.startswith("swinv2") else SWIN for name in zoo.ZOO_SWIN},
    **dict.fromkeys(hybrid_zoo.HYBRIDS, TRACED),
    **dict.fromkeys(SMALL, TRACED),
    "revit_tiny": PLAIN,
    "gmm_vit_cifar": "IPRbarcw",  # its masks read where tokens are
    "elm_vit_cifar": "IPRbarcw",
    "gmm_swin_cifar": SWIN,
    "lvvit_small": "Iac",  # branches are scaled, and the stem is several convolutions
    "sit_large": "Iac",
    "t2t_vit_7": PLAIN,
    "t2t_vit_t_14": PLAIN,
}


def every(values: object) -> bool:
    """Of none: false."""
    values = list(values)  # type: ignore[call-overload]
    return bool(values) and all(values)


def attentions(model: OpenModel) -> list:
    return [attn for block in model.blocks for attn in block.attentions()]


def built(name: str) -> nn.Module:
    if name in SMALL:
        return timm.create_model(name, **SMALL[name])
    if name in hybrid_zoo.HYBRIDS:
        return hybrid_zoo.build(name)
    return zoo.build_swin(name) if name in zoo.ZOO_SWIN else zoo.build(name)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_family_says_what_it_can_and_can_what_it_says(name: str) -> None:
    model = open_model(built(name), check=False).eval()
    assert "".join(letter for letter, ask in CAPABILITIES.items() if ask(model)) == EXPECTED[name]
    if not len(model.blocks):
        with pytest.raises(Refused, match="no grid of patches"):
            model.grid()
        with pytest.raises(BadInput, match="the model has no blocks"):
            model.block(0)
        return
    images = torch.zeros(1, *model.probe_size())
    x, state = model.embed(images, model.start(images))
    assert model.grid() == state.grid and x.shape[1] == state.num_prefix + state.num_patches
    assert model.windowed == any(hasattr(attn, "window") and hasattr(attn, "shift") for attn in attentions(model))
    with torch.no_grad():
        for i in range(len(model.blocks)):
            x, state = model.run(x, state, i, i + 1)
            assert model.width_of(i) == x.shape[-1]
        make_narrower(model)
        model(images)


def make_narrower(model: OpenModel) -> None:
    """Widths change where the model says so, and nowhere else."""
    for attn in (block.attn for block in model.blocks if block.prunable):
        if attn.prunable:
            set_attention_widths(attn, heads=1)
        else:
            with pytest.raises(Refused, match="widths can be changed where"):
                set_attention_widths(attn, heads=1)
    if not model.width_refusal():
        set_embed_width(model, 8)
    else:
        with pytest.raises(Refused, match="the embedding width can be changed of plain"):
            set_embed_width(model, 8)


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("vit_tiny_patch16_224", (0,)),
        ("deit_tiny_distilled_patch16_224", (0, 1)),
        ("vit_medium_patch16_gap_240", ()),
        ("vit_base_patch16_siglip_224", ()),
        ("swin_tiny_patch4_window7_224", ()),
        ("gmm_pit_cifar", ()),
    ],
)
def test_which_tokens_are_classified(name: str, positions: tuple[int, ...]) -> None:
    assert open_model(built(name), check=False).classified_tokens() == positions


@pytest.mark.parametrize("name", REACHED_BY_PATH)
def test_a_traced_model_may_call_its_parts_like_a_capability(name: str) -> None:
    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Conv2d(3, 5, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.get_submodule(name)(x).mean((2, 3))

    source, images = Toy().eval(), torch.ones(2, 3, 16, 16)
    opened = OpenTraced(source=source, size=(3, 16, 16))
    assert torch.equal(opened(images), source(images)) and list(opened.sites()) == [name]
    assert (opened.plain, opened.windowed, opened.isotropic, opened.hierarchical) == (False,) * 4


# --- steps and terms -----------------------------------------------------------------


class Nothing(Step):
    source = "nothing"

    def forward(self, x, state):
        return x, state


def test_a_step_goes_behind_the_others_in_the_mode_of_the_model() -> None:
    model = open_model(zoo.build("vit_tiny_patch16_224")).eval()
    other, step = Step(), Nothing()
    insert_step(model, 1, "after", other)
    insert_step(model, 1, "after", step)
    assert list(model.blocks[1].after) == [other, step] and not step.training
    first = Step()
    insert_step(model.train(), 1, "after", first, first=True)
    assert list(model.blocks[1].after) == [first, other, step] and first.training


def test_a_step_that_does_not_belong_is_refused() -> None:
    model = open_model(zoo.build("vit_tiny_patch16_224"))
    insert_step(model, 0, "between", Nothing())
    with pytest.raises(Refused, match=r"blocks\.0 already reduces tokens by nothing: give it other blocks"):
        insert_step(model, 0, "between", Nothing())
    with pytest.raises(BadInput, match="block is 3; accepted: 0 to 2"):
        insert_step(model, 3, "between", Nothing())
    with pytest.raises(BadInput, match="block is True; accepted: 0 to 2"):
        insert_step(model, True, "between", Nothing())
    with pytest.raises(BadInput, match="slot 'betwen'"):
        insert_step(model, 1, "betwen", Nothing())


def test_a_term_acts_once_in_every_attention() -> None:
    model = open_model(zoo.build("vit_small_patch16_18x2_224"))

    def other(phases, state):
        return phases

    for term in (proportional, other, proportional):
        add_term(model, term)
    assert len(attentions(model)) == 2 * len(model.blocks)
    assert all(attn.terms == (other, proportional) for attn in attentions(model))


# --- nobody asks for classes ---------------------------------------------------------


def family_classes() -> set[str]:
    """Names of the opened families, and of the attentions and blocks that adapters make their parts of."""
    parts = ("blocks", "windows", "projections", "parallel", "differential")
    files = [SRC / "anatomy" / "parts" / f"{part}.py" for part in parts]
    files += [*(SRC / "anatomy" / "families").glob("*.py"), *(SRC / "backbones").rglob("opened.py")]
    classes = [node for path in files for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef)]
    kinds = ("Open", "Heads", "Attention", "Block")
    return {c.name for c in classes if c.name.startswith("Open") or c.name.endswith(kinds[1:])}


def asked_for(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every name that an object's type is held against."""
    for node in ast.walk(tree):
        against: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            against = node.args[1:]
        elif isinstance(node, ast.Compare) and ast.unparse(node.left).startswith("type("):
            against = node.comparators
        for one in against:
            yield from ((name.lineno, name.id) for name in ast.walk(one) if isinstance(name, ast.Name))


def test_methods_and_exports_ask_for_capabilities_not_for_classes() -> None:
    known = family_classes()
    assert {"OpenSwin", "OpenT2TViT", "SwinAttention", "PostNormBlock", "Attention"} <= known
    rooms = ("tokens", "prune", "exits", "quantize", "deploy")
    files = [path for room in rooms for path in (SRC / room).rglob("*.py")] + [SRC / "backbones/gmm_mask/method.py"]
    found = [
        f"{path.relative_to(SRC)}:{line} asks for {name}"
        for path in files
        for line, name in asked_for(ast.parse(path.read_bytes()))
        if name in known
    ]
    assert not found, found
    assert list(asked_for(ast.parse("isinstance(a, B | C); type(a) not in (D, E)"))) == [(1, name) for name in "BCDE"]
