from __future__ import annotations

import pickle
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from leanvit.data import (
    Augment,
    Boxes,
    Clips,
    Depths,
    Field,
    Masks,
    Preprocess,
    Texts,
    UnreadableImage,
    Values,
    keyed,
    loader,
    open_dataset,
)
from leanvit.data.classes import Matched
from leanvit.data.identity import changes, identity
from leanvit.data.joint import JointTransform
from leanvit.data.loading import augment_parts
from leanvit.data.stream import Encoded, Stream
from leanvit.errors import BadInput
from pictures import picture

GREY = Preprocess((1, 8, 8), (0.5,), (0.25,))
COLOUR = Preprocess((3, 16, 24), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), crop_pct=0.875)
CROPS = [Augment(crop=crop, hflip=flip) for crop in ("auto", "pad", "resized", "none") for flip in (0.5, 0.0)]
MOVING = [None, "light", Augment(color_jitter=0.4), *CROPS]
SHAPES = [(57, 44), (16, 24), (9, 40)]  # of images, (h, w)


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", "train", limit=41)


def code(key):
    """A number of a sample that nothing but its key decides."""
    return keyed.seed_of(key) % 2**40


def with_codes(dataset):
    """With a value for each sample, found in the source's own order, which is another one."""
    keys = sorted(dataset.keys, reverse=True)
    return dataset.with_field("code", Values([code(key) for key in keys], keys=keys))


def masked(dataset, **kw):
    """Every pixel's own value as its class: a mask that says where the pixels of the image went."""
    return dataset.with_field("mask", Masks([np.asarray(sample.image) for sample in dataset], **kw))


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


# --- joint transforms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("augment", MOVING, ids=str)
def test_the_image_is_that_of_the_transform_without_fields(augment, mode):
    for shape, interpolation in zip(SHAPES, ("bicubic", "bilinear", "nearest"), strict=True):
        preprocess = replace(COLOUR, crop_mode=mode, interpolation=interpolation)
        alone, joint = preprocess.u8_transform(augment), JointTransform.of(preprocess, Augment.of(augment))
        for seed in range(3):
            image = picture(seed, shape)
            with keyed.global_rng("joint", seed):
                wanted, after = alone(image), states()
            with keyed.global_rng("joint", seed):
                (pixels, geometry), drawn = joint(image), states()
            assert np.array_equal(pixels, wanted) and drawn == after
            if not (augment and Augment.of(augment).color_jitter):  # pictures of a clip are moved as the image is
                frame = geometry.pictured(image, Image.Resampling[interpolation.upper()])
                assert np.array_equal(np.asarray(frame), wanted)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("augment", [None, *CROPS], ids=str)
def test_masks_and_depth_go_where_the_pixels_go(augment, mode):
    """With the nearest pixel as interpolation an image and its mask are moved to the same values."""
    preprocess = Preprocess((1, 16, 24), (0.0,), (1.0,), "nearest", 0.875, mode)
    joint = JointTransform.of(preprocess, Augment.of(augment))
    values = np.random.default_rng(0).permutation(np.arange(1, 251)).astype(np.uint8)
    for shape in SHAPES:
        image = Image.fromarray(np.resize(values, shape))
        for seed in range(4):
            with keyed.global_rng("joint", seed):
                pixels, geometry = joint(image)
            mask = Masks(ignore=0).moved(Masks().checked(image, shape), geometry, preprocess)
            depth = Depths(missing=0.0).moved(Depths().checked(np.asarray(image) / 4, shape), geometry, preprocess)
            assert mask.shape == (16, 24) and mask.dtype == np.int64 and depth.dtype == np.float32
            assert (mask == pixels[..., 0]).mean() > 0.65  # Pillow takes the other of two that are equally near
            assert np.array_equal(depth * 4, mask)


def test_what_lies_outside_is_ignored():
    preprocess = Preprocess((3, 20, 20), (0.5,) * 3, (0.5,) * 3, crop_mode="border")
    joint = JointTransform.of(preprocess, None)
    _, geometry = joint(picture(0, (20, 10)))
    mask = Masks().moved(np.ones((10, 20), dtype=np.int64), geometry, preprocess)
    depth = Depths(missing=-1.0).moved(np.ones((10, 20), dtype=np.float32), geometry, preprocess)
    clip = Masks(ignore=7).moved(np.ones((2, 10, 20), dtype=np.int64), geometry, preprocess)
    assert mask[:5].tolist() == [[255] * 20] * 5 and (mask[5:15] == 1).all() and (mask[15:] == 255).all()
    assert (depth[:5] == -1).all() and clip.shape == (2, 20, 20) and set(clip.ravel()) == {1, 7}


@pytest.mark.parametrize("augment", [None, *CROPS], ids=str)
def test_boxes_go_where_their_pixels_go(augment):
    preprocess = replace(COLOUR, crop_mode="center")
    joint = JointTransform.of(preprocess, Augment.of(augment))
    given = np.array([[4, 6, 20, 30], [30, 1, 43, 12], [0, 0, 44, 57]], dtype=np.float32)
    value = Boxes().checked({"boxes": given, "labels": [3, 4, 5]}, (57, 44))
    for seed in range(6):
        with keyed.global_rng("joint", seed):
            _, geometry = joint(picture(seed, (44, 57)))
        found = Boxes().moved(value, geometry, preprocess)
        labels = found["labels"].tolist()
        assert found["boxes"].dtype == torch.float32 and found["labels"].dtype == torch.int64
        for label, (left, top, right, bottom) in zip((3, 4, 5), given.astype(int), strict=True):
            drawn = np.zeros((57, 44), dtype=np.int64)
            drawn[top:bottom, left:right] = 1
            rows, columns = np.nonzero(Masks(ignore=0).moved(drawn, geometry, preprocess))
            if label not in labels:  # cut off, but for a pixel
                assert len(rows) == 0 or min(np.ptp(rows), np.ptp(columns)) <= 1
                continue
            box = found["boxes"][labels.index(label)].tolist()
            ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else box
            assert np.abs(np.subtract(box, ends)).max() <= 1
            assert 0 <= box[0] < box[2] <= 24 and 0 <= box[1] < box[3] <= 16


def test_a_box_that_is_cut_off_goes_with_its_label():
    preprocess = Preprocess((1, 8, 8), (0.5,), (0.5,))
    _, geometry = JointTransform.of(preprocess, None)(Image.new("L", (16, 8)))  # the middle half is taken
    value = Boxes().checked({"boxes": [[0, 0, 4, 8], [3, 0, 16, 8]], "labels": [1, 2]}, (8, 16))
    found = Boxes().moved(value, geometry, preprocess)
    assert found["labels"].tolist() == [2] and found["boxes"].tolist() == [[0, 0, 8, 8]]
    nothing = Boxes().moved(Boxes().checked(np.empty((0, 4)), (8, 16)), geometry, preprocess)
    assert nothing["boxes"].shape == (0, 4) and nothing["labels"].shape == (0,)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_fields_are_collated_by_their_kind(digits, workers):
    size = len(digits)
    dataset = (
        masked(digits, ignore=300)
        .with_field("depth", Depths(np.ones((size, 8, 8))))
        .with_field("boxes", Boxes([np.array([[0, 0, 4, 4]] * (i % 3)).reshape(-1, 4) for i in range(size)]))
        .with_field("tokens", Values(np.arange(size * 3).reshape(size, 3)))
        .with_field("captions", Texts([["a digit"] * (1 + i % 2) for i in range(size)]))
        .with_field("clip", Clips([[sample.image] * 2 for sample in digits]))
        .with_field("plain", Field([{"row": i} for i in range(size)]))
    )
    batches = list(loader(dataset, GREY, batch_size=8, seed=1, epoch=3, train=True, augment="light", workers=workers))
    bare = list(loader(digits, GREY, batch_size=8, seed=1, epoch=3, train=True, augment="light"))
    for batch, without in zip(batches, bare, strict=True):
        count = len(batch)
        assert torch.equal(batch.images, without.images) and torch.equal(batch.targets, without.targets)
        assert batch.keys == without.keys and batch.epoch == 3 and batch.seeds == without.seeds
        assert batch["mask"].shape == (count, 8, 8) and batch["mask"].dtype == torch.int64
        assert batch["depth"].shape == (count, 8, 8) and batch["depth"].dtype == torch.float32
        assert batch["tokens"].shape == (count, 3) and batch["tokens"].dtype == torch.int64
        assert all(one["boxes"].shape[1] == 4 for one in batch["boxes"]) and len(batch["boxes"]) == count
        assert [len(one) for one in batch["captions"]] == [1 + one["row"] % 2 for one in batch["plain"]]
        assert batch["clip"].shape == (count, 2, 1, 8, 8) and torch.equal(batch["clip"][:, 0], batch.images)
        assert torch.equal(batch["clip"][:, 1], batch.images)
        assert torch.equal(batch["label"], batch.targets)
        seen = GREY.normalize(batch["mask"].clamp(max=255).to(torch.uint8)[..., None])
        inside = batch["mask"] != 300  # padding, which is black in the image
        assert torch.equal(seen[:, 0][inside], batch.images[:, 0][inside])
        assert torch.equal(batch["depth"] == 0, ~inside)
    with pytest.raises(BadInput, match="unknown field of a batch 'masks'"):
        batches[0]["masks"]


def test_batches_move_and_are_cut_with_their_fields(digits):
    dataset = masked(with_codes(digits)).with_field("boxes", Boxes([np.empty((0, 4))] * len(digits)))
    batch = next(iter(loader(dataset, GREY, batch_size=4, train=True, repeats=2, augment="light")))
    moved = batch.to("meta")
    assert moved["mask"].is_meta and moved["boxes"][0]["boxes"].is_meta and moved.epoch == batch.epoch
    some = batch.take([3, 0, 3])
    assert some.keys == [batch.keys[i] for i in (3, 0, 3)] and some.seeds == [batch.seeds[i] for i in (3, 0, 3)]
    assert torch.equal(some["code"], batch["code"][[3, 0, 3]]) and torch.equal(some.images, batch.images[[3, 0, 3]])
    assert len(some["boxes"]) == 3 and len(set(batch.seeds)) == 4 and len(set(batch.keys)) == 2


def test_a_seed_replays_its_view(digits):
    whole = loader(digits, GREY, batch_size=8, seed=5, epoch=2, train=True, augment="randaug", repeats=3)
    transform = GREY.train_transform(replace(Augment.of("randaug"), hflip=0.0))
    of_key = {sample.key: sample.image for sample in digits}
    batch = list(whole)[1]
    assert batch.seeds[0] == keyed.seed_of(*augment_parts(5, 2, batch.keys[0]), 2)  # the third view of an image
    for key, seed, image in zip(batch.keys, batch.seeds, batch.images, strict=True):
        with keyed.global_rng(cuda=False):
            keyed.set_global(seed)
            assert torch.equal(transform(of_key[key]), image)


def test_shares_hold_the_fields_of_the_whole_batch(digits):
    dataset = masked(with_codes(digits))
    whole = {}
    for batch in loader(dataset, GREY, batch_size=8, train=True, augment="light"):
        whole |= dict(zip(batch.keys, zip(batch["code"].tolist(), batch["mask"], strict=True), strict=True))
    for number in range(2):
        for batch in loader(dataset, GREY, batch_size=8, train=True, augment="light", share=(number, 2)):
            for key, value, mask in zip(batch.keys, batch["code"].tolist(), batch["mask"], strict=True):
                assert value == whole[key][0] == code(key) and torch.equal(mask, whole[key][1])


@dataclass(frozen=True)
class Broken:
    """A source of one's own, of which some rows cannot be read."""

    rows: tuple[int, ...]

    def __getitem__(self, row):
        if row in self.rows:
            raise OSError("gone")
        return np.full((8, 8), row, dtype=np.uint8)


def test_a_field_that_cannot_be_read_is_a_bad_sample(digits):
    dataset = with_codes(digits).with_field("mask", Masks(Broken((3, 9))))
    with pytest.raises(
        UnreadableImage, match=rf"^image '{digits.keys[3]}' has a field 'mask' that cannot be read: gone"
    ):
        list(loader(dataset, GREY, batch_size=8))
    batches = list(loader(dataset, GREY, batch_size=8, on_bad="skip", workers=1))
    assert [len(batch) for batch in batches] == [7, 7, 8, 8, 8, 1]
    assert all(len(batch["mask"]) == len(batch["code"]) == len(batch) for batch in batches)
    assert all(batch["code"].tolist() == [code(key) for key in batch.keys] for batch in batches)
    assert [bad.key for bad in dataset.bad] == [digits.keys[3], digits.keys[9]]
    skipping = replace(dataset, on_bad="skip", bad=[])
    for made in (skipping.readable(), skipping.cached()):
        assert len(made) == 39 and digits.keys[3] not in made.keys
        assert all(sample.fields["code"] == code(sample.key) for sample in made)


def test_a_share_without_images_keeps_the_form_of_its_fields(digits):
    dataset = masked(with_codes(digits)).with_field("bad", Field(Broken(tuple(range(40)))))
    dataset = dataset.with_field("boxes", Boxes([np.empty((0, 4))] * 41)).with_field("text", Texts(["a"] * 41))
    empty = next(iter(loader(dataset, GREY, batch_size=8, train=True, on_bad="skip", share=(0, 2))))
    assert len(empty) == 0 and empty["mask"].shape == (0, 8, 8) and empty["boxes"] == []
    pair = empty.stand_in()
    assert pair.images.shape == (2, 1, 8, 8) and pair["mask"].shape == (2, 8, 8) and pair["code"].tolist() == [0, 0]
    assert (
        pair["code"].dtype == torch.int64 and pair["boxes"][1]["boxes"].shape == (0, 4) and pair["text"] == [[""]] * 2
    )


# --- a field stays with its sample ------------------------------------------------------------------------------------


def test_a_sample_still_unpacks_into_three(digits):
    sample = masked(digits)[5]
    image, target, key = sample
    assert (image, target, key) == (sample.image, sample.target, sample.key) and list(sample.fields) == ["mask"]
    assert not digits[5].fields and pickle.loads(pickle.dumps(sample)).fields.keys() == {"mask"}


def verbs(tmp_path):
    matched = Matched(tuple(range(9, -1, -1)), 10)
    return {
        "take": lambda d: d.take([7, 2, 2, 30]),
        "limited": lambda d: d.limited(13, seed=2),
        "few_shot": lambda d: d.few_shot(2, seed=1),
        "only_classes": lambda d: d.only_classes(["7", "3"]),
        "onto": lambda d: d.onto(matched, [str(n) for n in range(10)]),
        "cached": lambda d: d.cached(),
        "readable": lambda d: d.readable(),
        "without_labels": lambda d: d.without_labels(),
        "all": lambda d: d.only_classes([1, 2, 3]).cached().limited(9).take([5, 1]).without_labels().cached(),
    }


@pytest.mark.parametrize("verb", verbs(None))
def test_every_verb_keeps_fields_with_their_samples(digits, verb):
    shuffled = digits.take(np.random.default_rng(0).permutation(len(digits)))
    dataset = masked(with_codes(shuffled))
    made = verbs(None)[verb](dataset)
    assert len(made) and made.field_names == (*(("label",) if made.labelled else ()), "code", "mask")
    for sample in (*made, made[-1]):
        assert sample.fields["code"] == code(sample.key)
        assert np.array_equal(sample.fields["mask"], np.asarray(sample.image))


def test_labels_of_both_kinds_with_fields():
    several = open_dataset("digits", "train", limit=30)
    several = with_codes(replace(several, targets=np.eye(10, dtype=np.float32)[several.targets]))
    for made in (several.few_shot(1), several.only_classes([3, 5]), several.limited(7)):
        assert len(made) and all(sample.fields["code"] == code(sample.key) for sample in made)


@dataclass(frozen=True)
class Part:
    name: str = "part"
    count: int = 6

    def __iter__(self):
        for i in range(self.count):
            pixels = (np.arange(64).reshape(8, 8) + i).astype(np.uint8)
            yield Encoded(encoded(pixels), i % 2, f"{self.name}/{i}", fields={"mask": pixels})


def encoded(pixels):
    from io import BytesIO

    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_fields_of_a_stream_come_with_it_or_by_key():
    stream = Stream("s", "s", "train", ["a", "b"], (Part("one"), Part("two")), 12, 1, (8, 8))
    keys = [f"{name}/{i}" for name in ("two", "one") for i in range(6)]
    stream = stream.with_field("mask", Masks()).with_field("code", Values([code(key) for key in keys], keys=keys))
    seen = 0
    for batch in loader(stream, GREY, batch_size=4, train=True, augment="light", workers=1, repeats=2):
        inside = batch["mask"] != 255
        assert torch.equal(
            GREY.normalize(batch["mask"].to(torch.uint8)[..., None])[:, 0][inside], batch.images[:, 0][inside]
        )
        assert batch["code"].tolist() == [code(key) for key in batch.keys]
        seen += len(batch)
    assert seen == 12 and [sample.fields["code"] for sample in stream.limited(3)] == [code(key) for key in keys[6:9]]
    with pytest.raises(BadInput, match="a stream has no rows; accepted: keys="):
        stream.with_field("other", Values([1]))
    lost = stream.with_field("depth", Depths())
    with pytest.raises(UnreadableImage, match="image 'one/0' has a field 'depth' that is not accepted: is missing"):
        next(iter(lost))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_values_that_are_not_accepted_name_the_key(digits):
    def said(field):
        with pytest.raises(UnreadableImage) as caught:
            digits.take([4]).with_field("it", field)[0]
        assert str(caught.value).startswith(f"image '{digits.keys[4]}' has a field 'it' that is not accepted: ")
        return str(caught.value)

    assert "a mask of 8x9 pixels; accepted: those of the image, 8x8" in said(Masks([np.zeros((9, 8), dtype=int)]))
    assert "a mask of 3 channels (mode RGB)" in said(Masks([Image.new("RGB", (8, 8))]))
    assert "a mask of float64; accepted: whole numbers" in said(Masks([np.zeros((8, 8))]))
    assert "a depth map of 8x4 pixels" in said(Depths([np.zeros((4, 8))]))
    assert "box 1, [0.0, 0.0, 9.0, 8.0], is outside the image, 8x8" in said(Boxes([[[0, 0, 8, 8], [0, 0, 9, 8]]]))
    assert "box 0, [5.0, 0.0, 2.0, 8.0], is inverted or empty" in said(Boxes([[[5, 0, 2, 8]]]))
    assert "is outside the image" in said(Boxes([[[float("nan"), 0, 2, 8]]]))
    assert "1 boxes with labels of shape (2,)" in said(Boxes([{"boxes": [[0, 0, 1, 1]], "labels": [1, 2]}]))
    assert "a frame of 4x8 pixels" in said(Clips([[Image.new("L", (4, 8))]]))
    assert "a text, or a list of texts" in said(Texts([[3]]))


def test_names_and_sources_that_are_not_accepted(digits):
    for name in ("label", "image", "keys", "my mask", "", "it"):
        with pytest.raises(BadInput, match="field name"):
            digits.with_field("it", Values([0] * 41)).with_field(name, Values([0] * 41))
    with pytest.raises(BadInput, match="field 'mask' is a list; accepted: a Field"):
        digits.with_field("mask", [])
    with pytest.raises(BadInput, match="has 3 values, the data set 41 samples"):
        digits.with_field("it", Values([1, 2, 3]))
    with pytest.raises(BadInput, match=f"no value for the sample '{digits.keys[0]}'"):
        digits.with_field("it", Values([1], keys=["other"]))
    with pytest.raises(BadInput, match="'a' comes twice"):
        digits.with_field("it", Values([1, 2], keys=["a", "a"]))
    with pytest.raises(BadInput, match="has no source"):
        digits.with_field("it", Values())
    ragged = digits.with_field("it", Values([np.zeros(1 + i % 2) for i in range(41)]))
    with pytest.raises(BadInput, match=r"values of shapes \(1,\) and \(2,\) cannot be one batch"):
        list(loader(ragged, GREY, batch_size=4))


@pytest.mark.parametrize(
    ("augment", "name"),
    [("randaug", "auto_augment"), (Augment(erase=0.3), "erase"), (Augment(auto_augment="3a"), "auto_augment")],
)
def test_augmentation_that_parts_an_image_from_its_fields_is_refused(digits, augment, name):
    fields = {
        "mask": Masks(Broken(())),
        "depth": Depths(np.ones((41, 8, 8))),
        "boxes": Boxes([np.empty((0, 4))] * 41),
        "clip": Clips([[one.image] for one in digits]),
    }
    for field, kind in fields.items():
        with pytest.raises(BadInput, match=rf"Augment\.{name}=.* changes an image, but not its {field}"):
            loader(digits.with_field(field, kind), GREY, batch_size=4, train=True, augment=augment)
    loader(with_codes(digits), GREY, batch_size=4, train=True, augment=augment)
    with pytest.raises(BadInput, match=r"Augment\.color_jitter"):
        loader(
            digits.with_field("clip", fields["clip"]), GREY, batch_size=4, train=True, augment=Augment(color_jitter=1)
        )


def test_a_step_whose_moves_are_not_known_is_refused(monkeypatch):
    class Turned(transforms.RandomHorizontalFlip):
        pass

    known = Preprocess.steps
    monkeypatch.setattr(Preprocess, "steps", lambda self, augment=None: (*known(self, augment), Turned()))
    with pytest.raises(BadInput, match="Turned changes an image in ways that its fields cannot follow"):
        JointTransform.of(GREY, None)


def test_a_value_that_cannot_be_moved_is_a_bad_sample(digits):
    deep = Image.fromarray(np.full((8, 8), 300, dtype=np.int32))
    dataset = digits.take([4, 5]).with_field("clip", Clips([[deep], [digits[5].image]]))
    with pytest.raises(UnreadableImage, match=rf"image '{digits.keys[4]}' has a field that is not accepted: .*range"):
        list(loader(dataset, GREY, batch_size=2))
    assert [len(batch) for batch in loader(dataset, GREY, batch_size=2, on_bad="skip")] == [1]


def test_files_and_bytes_of_masks(tmp_path, digits):
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), mode="P")
    palette.putpalette([value for _ in range(64) for value in (9, 9, 9)])
    palette.save(tmp_path / "mask.png")
    deep = Image.fromarray((np.arange(64).reshape(8, 8) * 1000).astype(np.uint16))
    deep.save(tmp_path / "depth.png")
    dataset = digits.take([0]).with_field("mask", Masks([(tmp_path / "mask.png").read_bytes()]))
    dataset = dataset.with_field("depth", Depths([tmp_path / "depth.png"]))
    fields = dataset[0].fields
    assert fields["mask"].ravel().tolist() == list(range(64)) and fields["depth"].ravel()[3] == 3000.0


def test_classes_of_masks_and_boxes_are_checked(digits):
    one = digits.take([4])

    def said(field):
        with pytest.raises(UnreadableImage) as caught:
            one.with_field("it", field)[0]
        return str(caught.value)

    mask = np.zeros((8, 8), dtype=np.int64)
    mask[0], mask[1] = 2, 255
    assert "a mask with the value 2, which is no class; accepted: 0 to 1 (a, b), or 255" in said(
        Masks([mask], classes=("a", "b"))
    )
    assert "a mask with the value 255, which is no class" in said(Masks([mask], classes=("a", "b", "c"), ignore=9))
    assert "the value -1" in said(Masks([mask - 1], classes=("a", "b"), ignore=254))
    assert np.array_equal(one.with_field("it", Masks([mask], classes=("a", "b", "c")))[0].fields["it"], mask)
    assert "a box of class 2; accepted: 0 to 1" in said(
        Boxes([{"boxes": [[0, 0, 1, 1]], "labels": [2]}], classes=("a", "b"))
    )


def test_boxes_of_another_form_and_scaled_depths(digits):
    boxes = Boxes([[[1, 2, 3, 4], [0, 0, 8, 8]]], form="xywh")
    depth = np.full((8, 8), 500, dtype=np.uint16).astype(np.float32)
    depth[0] = np.nan
    one = digits.take([4]).with_field("box", boxes).with_field("depth", Depths([depth], scale=0.001, missing=-1.0))
    fields = one[0].fields
    assert fields["box"]["boxes"].tolist() == [[1, 2, 4, 6], [0, 0, 8, 8]]
    assert (fields["depth"][0] == -1).all() and fields["depth"][1:].tolist() == [[0.5] * 8] * 7
    text = r"box 0, \[1.0, 2.0, 0.0, 4.0\], is inverted or empty, 8x8; accepted: left, top, width, height"
    with pytest.raises(UnreadableImage, match=text):
        digits.take([4]).with_field("box", Boxes([[[1, 2, 0, 4]]], form="xywh"))[0]
    with pytest.raises(BadInput, match="unknown form of boxes 'cxcywh'"):
        Boxes([], form="cxcywh")


# --- identity ---------------------------------------------------------------------------------------------------------


def test_identity_covers_fields_and_is_as_it_was_without(digits):
    plain, fielded = identity(digits), identity(masked(with_codes(digits)))
    assert "fields" not in plain and {k: v for k, v in fielded.items() if k != "fields"} == plain
    assert changes(fielded, identity(masked(with_codes(digits)))) == []
    assert changes(fielded, identity(masked(with_codes(digits)).cached())) == []
    assert changes(fielded, identity(digits)) == ["data: the fields changed: code, mask"]
    for other in (with_codes(digits), masked(with_codes(digits), ignore=7)):
        assert changes(fielded, identity(other)) == ["data: the fields changed: mask"]
    assert changes(plain, fielded) == ["data: the fields changed: code, mask"]
    plain_kinds = [kind.settings() for kind in (Masks(), Boxes(), Depths())]
    assert plain_kinds == ["Masks ignore=255", "Boxes", "Depths missing=0.0"]  # of runs that are resumed
    named = [Masks(classes=("a",)), Boxes(classes=("a",)), Boxes(form="xywh"), Depths(scale=2.0)]
    assert not {kind.settings() for kind in named} & {*plain_kinds}
    wrong = digits.with_field("code", Values([code(key) + 1 for key in digits.keys]))
    assert changes(identity(with_codes(digits)), identity(wrong)) == ["data: the fields changed: code"]
