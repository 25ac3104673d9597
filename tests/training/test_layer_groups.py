"""Rates of layer decay by recipe, against the rules of the papers' own code worked out by hand."""

import pytest
import timm
from test_optimizers import SMALL, rates
from tiny_training import make_model
from torch import nn

from leanvit.anatomy import open_model
from leanvit.errors import BadInput
from leanvit.training import FitConfig, fit


def scales(model: nn.Module, groups: str) -> dict[str, float]:
    found = rates(model, FitConfig(layer_decay=0.5, layer_groups=groups, weight_decay=0.1))
    return {name: scale for name, (scale, _) in found.items()}


@pytest.mark.parametrize("opened", [False, True])
def test_mae_counts_norms_heads_and_distillation_token_to_the_top(opened):
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=3, **SMALL)
    found = scales(open_model(model) if opened else model, "mae")
    bottom = {name: found[name] for name in found if name.startswith(("cls_token", "pos_embed", "patch_embed"))}
    assert len(bottom) == 4 and set(bottom.values()) == {0.5**4}
    for block in range(3):
        assert {found[name] for name in found if name.startswith(f"blocks.{block}.")} == {0.5 ** (3 - block)}
    top = {name for name in found if not name.startswith("blocks.")} - bottom.keys()
    assert {"dist_token", "norm.weight", "norm.bias", "head.weight", "head_dist.bias"} <= top
    assert {found[name] for name in top} == {1.0}
    timms = scales(model, "timm")
    assert {name for name in found if found[name] != timms[name]} == {"dist_token", "norm.weight", "norm.bias"}
    assert timms["norm.weight"] == 0.5 and timms["dist_token"] == 0.5**4


def test_weight_decay_does_not_depend_on_the_groups():
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=2, **SMALL)
    decays = [
        {name: decay for name, (_, decay) in rates(model, FitConfig(layer_decay=0.5, layer_groups=groups)).items()}
        for groups in ("timm", "mae")
    ]
    assert decays[0] == decays[1] and set(decays[0].values()) == {0.0, 0.05}


@pytest.mark.parametrize("opened", [False, True])
def test_tinyvit_has_one_layer_a_block(opened):
    shape = {"embed_dims": (8, 8, 16, 16), "depths": (1, 2, 3, 1), "num_heads": (1, 1, 2, 2), "num_classes": 4}
    model = timm.create_model("tiny_vit_5m_224", **shape)
    found = scales(open_model(model) if opened else model, "tinyvit")
    blocks = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0)]
    expected = {f"stages.{stage}.blocks.{block}.": 0.5 ** (6 - i) for i, (stage, block) in enumerate(blocks)}
    expected |= {"patch_embed.": 0.5**6, "head.": 1.0}
    # timm keeps a downsampling with the stage behind it: it goes with the last block before
    expected |= {"stages.1.downsample.": 0.5**6, "stages.2.downsample.": 0.5**4, "stages.3.downsample.": 0.5}
    met = set()
    for name, scale in found.items():
        (prefix,) = [one for one in expected if name.startswith(one)]
        met.add(prefix)
        assert scale == expected[prefix], name
    assert met == set(expected)
    timms = scales(model, "timm")
    assert timms["patch_embed.conv1.conv.weight"] == 0.5**8 and timms["stages.3.blocks.0.mlp.fc1.weight"] == 0.5


class Own(nn.Module):
    """Two layers that it states itself, and a head that it leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.head = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def layer_ids(self) -> dict[str, int]:
        return {"low.weight": 0, "low.bias": 0, "high.weight": 1, "high.bias": 1, "never": 2}

    def lr_scales(self) -> dict[str, float]:
        return {"low.bias": 0.1}


def test_a_model_states_its_own_layers():
    found = scales(Own(), "model")
    assert found == {
        **{"low.weight": 0.25, "low.bias": pytest.approx(0.025), "high.weight": 0.5, "high.bias": 0.5},
        **{"head.weight": 1.0, "head.bias": 1.0},
    }


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ("mae", "Own has no parameters with the names of its layers"),
        ("tinyvit", "Own has no parameters with the names of its layers"),
        ("model", r"Linear does not state its layers \(layer_ids\(\)\)"),
    ],
)
def test_a_model_without_these_layers_is_refused(groups, says):
    model = nn.Linear(2, 2) if groups == "model" else Own()
    with pytest.raises(BadInput, match=f"layer_groups='{groups}': {says}"):
        rates(model, FitConfig(layer_decay=0.5, layer_groups=groups))


def test_the_rate_of_a_step_is_that_of_the_layer(data, preprocess):
    seen = {}

    class Look:
        def after_step(self, run):
            names = {id(p): name for name, p in run.model.named_parameters()}
            seen.update({names[id(p)]: g["lr"] for g in run.optimizer.param_groups for p in g["params"]})

    config = FitConfig(epochs=1, batch_size=96, lr=0.01, schedule="constant", layer_decay=0.5, layer_groups="mae")
    fit(make_model(), data, preprocess=preprocess, config=config, callbacks=[Look()])
    assert seen["norm.weight"] == seen["head.weight"] == 0.01
    assert seen["blocks.1.norm1.weight"] == 0.005 and seen["cls_token"] == 0.00125
