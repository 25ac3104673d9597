"""What a compression leaves open until it knows its data, and what it says it will train."""

from __future__ import annotations

from typing import Any

import pytest

from leanvit import NViT
from leanvit.errors import BadInput
from leanvit.exits.lgvit import LGViT
from leanvit.recipe import Recovery, choices, fit_to_data, parse_with, trainings
from leanvit.recipe.registry import knobs_of


class Images:
    """As many as asked; nothing looks at them."""

    multi_label = False

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def settled(text: str, images: int, was: dict[str, Any] | None = None) -> Any:
    return fit_to_data([parse_with(text)], None, Images(images), was)[0][0]


@pytest.mark.parametrize(
    ("text", "images", "knobs", "says"),
    [
        ("nvit:macs=0.7", 270, (200, 64), "nvit: up to 50 epochs, 200 steps of 64 images"),
        ("nvit:macs=0.7", 38, (200, 38), "nvit: up to 200 epochs, 200 steps of 38 images"),
        ("nvit:macs=0.7", 1437, (660, 64), "nvit: up to 30 epochs, 660 steps of 64 images"),
        ("nvit:macs=0.7", 100_000, (1000, 64), "nvit: up to 1 epoch, 1,000 steps of 64 images"),
        ("nvit:macs=0.7,interval=7", 270, (119, 64), "nvit: up to 30 epochs, 119 steps of 64 images"),
        ("nvit:macs=0.7,interval=150", 270, (1500, 64), "nvit: up to 375 epochs, 1,500 steps of 64 images"),
        ("nvit:macs=0.7,max_steps=40,batch_size=8", 270, (40, 8), "nvit: up to 2 epochs, 40 steps of 8 images"),
        ("nvit:macs=1", 270, (None, None), None),
        ("diffrate:macs=0.7", 270, (300, 64), "diffrate: 75 epochs, 300 steps of 64 images"),
        ("diffrate:macs=0.7", 100_000, (1000, 64), "diffrate: 1 epoch, 1,000 steps of 64 images"),
        ("diffrate:macs=0.7,search=prune", 270, (None, None), None),
        ("lgvit", 270, (29, 32), "lgvit, heads: 29 epochs, 203 steps of 32 images"),
        ("lgvit", 100_000, (5, 64), "lgvit, heads: 5 epochs, 7,030 steps of 64 images"),
        ("lgvit:held_out=0,epochs=2", 20, (2, 4), "lgvit, heads: 2 epochs, 10 steps of 4 images"),
    ],
)
def test_defaults_fit_the_data_and_what_is_given_stays(
    text: str, images: int, knobs: tuple[int | None, int | None], says: str | None
) -> None:
    m = settled(text, images)
    assert (m.epochs if m.slug == "lgvit" else m.max_steps, m.batch_size) == knobs
    assert [str(t) for t in trainings([m], None, Images(images))] == ([] if says is None else [says])


def test_an_interrupted_compression_of_an_older_version_goes_on_with_its_own() -> None:
    older = {"methods": [{"slug": "nvit", **knobs_of(NViT(macs=0.7, max_steps=1000, batch_size=64))}]}
    assert settled("nvit:macs=0.7", 270, older).max_steps == 1000
    assert settled("nvit:macs=0.7,max_steps=60", 270, older).max_steps == 60  # what is given is compared, not replaced
    assert settled("nvit:macs=0.7", 270, {"methods": [{"slug": "evit"}]}).max_steps == 200


def test_recovery_takes_a_batch_that_the_data_fills() -> None:
    for given, images, batch in (
        (Recovery(), 42, 8),
        (Recovery(), 4200, 64),
        (Recovery(batch_size=8), 42, 8),
        (Recovery(settings={"mixup": 0.2}), 7, 2),
        (Recovery(settings={"accumulate": 2}), 42, 4),
    ):
        found = fit_to_data((), given, Images(images))[1]
        assert found is not None and found.batch == batch and found.to_json()["batch_size"] == batch
    older = {"recovery": {"batch_size": 64}}  # of an interrupted compression
    assert fit_to_data((), Recovery(), Images(100), older)[1] == Recovery(batch_size=64)
    assert Recovery().to_json() == Recovery(batch_size=64).to_json()  # as older versions wrote it
    methods = fit_to_data([parse_with("evit"), parse_with("lgvit")], Recovery(epochs=2), Images(1000))
    said = [str(t) for t in trainings(*methods, Images(1000))]
    assert said == ["recovery: 2 epochs, 30 steps of 64 images", "lgvit, heads: 15 epochs, 210 steps of 64 images"]


def test_choices_are_said_and_batches_that_cannot_be_filled_refused() -> None:
    given = [parse_with("evit"), parse_with("nvit:macs=0.7,batch_size=64")]
    methods, _ = fit_to_data(given, None, Images(38))
    assert choices(given, methods, Images(38)) == ["nvit: max_steps=200, chosen for 38 training images"]
    with pytest.raises(
        BadInput, match=r"nvit trains on batches of 64 images \(batch_size=64\), and there are 38.*nvit:batch_size=38"
    ):
        trainings(methods, None, Images(38))


def test_the_plan_records_what_was_chosen(tiny) -> None:
    from leanvit.data import Preprocess, open_dataset
    from leanvit.recipe import Data, compress

    data = open_dataset("digits", "train", limit=20)
    model = tiny(img_size=8, patch_size=4, in_chans=1, num_classes=10)
    asked = LGViT(exits=(1,), heads=("linear",), held_out=0, augment=None)
    lean = compress(model, [asked], Data(data, Preprocess.of(model)))
    (plan,) = lean.history.plans
    assert (plan.knobs["epochs"], plan.knobs["batch_size"]) == (40, 4) and asked.epochs is None
