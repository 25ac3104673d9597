from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch

from leanvit.data import Augment, Preprocess, keyed, loader, open_dataset
from leanvit.data.loading import augment_parts
from leanvit.errors import BadInput

GREY = Preprocess((1, 8, 8), (0.5,), (0.25,))
COLOUR = Preprocess((3, 16, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", "train", limit=53)


def gathered(batches):
    batches = list(batches)
    keys = [key for batch in batches for key in batch.keys]
    return keys, torch.cat([b.images for b in batches]), torch.cat([b.targets for b in batches])


def equal(a, b):
    return a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])


def test_evaluation_keeps_the_order_and_matches_the_transform(digits):
    batches = list(loader(digits, GREY, batch_size=16))
    assert [len(b) for b in batches] == [16, 16, 16, 5]
    keys, images, targets = gathered(batches)
    assert keys == list(digits.keys) and targets.tolist() == digits.targets.tolist()
    assert images.dtype == torch.float32 and targets.dtype == torch.int64 and images.is_contiguous()
    assert torch.equal(images[7], GREY.eval_transform()(digits[7].image))


@pytest.mark.parametrize("augment", [None, "light", "randaug"])
def test_workers_change_nothing(digits, augment):
    runs = [
        gathered(loader(digits, GREY, batch_size=8, seed=1, epoch=2, train=True, augment=augment, workers=w))
        for w in (0, 2)
    ]
    assert equal(*runs)


@pytest.mark.parametrize("augment", ["light", "randaug", Augment(color_jitter=0.4)])
def test_augmentation_belongs_to_seed_epoch_and_key(digits, augment):
    keys, images, _ = gathered(loader(digits, GREY, batch_size=8, seed=1, epoch=2, train=True, augment=augment))
    chosen = Augment.of(augment)
    direct = GREY.train_transform(Augment(**{**chosen.__dict__, "hflip": 0.0}))
    for index, sample in enumerate(digits):
        with keyed.global_rng(*augment_parts(1, 2, sample.key)):
            assert torch.equal(direct(sample.image), images[keys.index(digits.keys[index])])


def test_order_and_augmentation_change_with_seed_and_epoch(digits):
    def run(**kw):
        return gathered(loader(digits, GREY, batch_size=8, train=True, augment="light", **kw))

    base = run(seed=0, epoch=0)
    for other in (run(seed=1, epoch=0), run(seed=0, epoch=1)):
        assert base[0] != other[0] and sorted(base[0]) == sorted(other[0])
        common = digits.keys[:20]
        assert any(not torch.equal(base[1][base[0].index(k)], other[1][other[0].index(k)]) for k in common)
    assert equal(base, run(seed=0, epoch=0))


def test_order_is_a_property_of_the_keys(digits):
    backwards = digits.take(np.arange(len(digits))[::-1])
    a, b = (gathered(loader(d, GREY, batch_size=8, train=True, augment="light")) for d in (digits, backwards))
    assert equal(a, b) and a[0] != list(digits.keys)


def test_skip_is_the_rest_of_the_epoch(digits):
    def run(skip):
        return loader(digits, GREY, batch_size=8, seed=3, train=True, augment="light", skip=skip)

    whole, rest = list(run(0)), list(run(4))
    assert len(run(4)) == len(rest) == len(whole) - 4
    assert equal(gathered(whole[4:]), gathered(rest))
    assert list(run(7)) == []
    with pytest.raises(BadInput, match="skip is 8; accepted: 0 to 7"):
        run(8)


def test_skipped_batches_are_not_read(folder):
    dataset = open_dataset(folder)
    (folder / dataset.keys[0]).unlink()
    assert len(list(loader(dataset, COLOUR, batch_size=4, skip=1))) == 4


def test_drop_last(digits):
    assert [len(b) for b in loader(digits, GREY, batch_size=16, drop_last=True)] == [16, 16, 16]


def test_a_loader_can_be_iterated_again(digits):
    batches = loader(digits, GREY, batch_size=16, train=True, augment="light")
    assert equal(gathered(batches), gathered(batches))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_left_alone(digits, workers):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    list(loader(digits, GREY, batch_size=16, train=True, augment="randaug", workers=workers))
    assert state() == before


def test_digits_are_never_mirrored_but_photographs_are(digits, folder):
    flips = Augment(crop="none", hflip=1.0)
    _, images, _ = gathered(loader(digits, GREY, batch_size=8, train=True, augment=flips))
    _, plain, _ = gathered(loader(digits, GREY, batch_size=8, train=True))
    assert torch.equal(images, plain)
    pets = open_dataset(folder)
    _, images, _ = gathered(loader(pets, COLOUR, batch_size=8, train=True, augment=flips))
    _, plain, _ = gathered(loader(pets, COLOUR, batch_size=8, train=True))
    assert torch.equal(images, plain.flip(-1))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_stops_with_its_key(folder, workers):
    dataset = open_dataset(folder)
    (folder / "dog" / "001.png").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"^image 'dog/001\.png' cannot be decoded"):
        list(loader(dataset, COLOUR, batch_size=5, workers=workers))


@pytest.fixture
def damaged(folder):
    """20 pets, two of which cannot be read: rows 3 and 13."""
    for name in ("cat/003.png", "dog/001.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:70])
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_leave_their_batch_and_no_other(damaged, workers):
    dataset = open_dataset(damaged)
    whole = list(loader(dataset, COLOUR, batch_size=5, workers=workers, on_bad="skip"))
    assert [len(b) for b in whole] == [4, 5, 4, 5]
    assert [bad.key for bad in dataset.bad] == ["cat/003.png", "dog/001.png"]
    assert "cannot be decoded" in dataset.bad[0].reason

    def trained(**kw):
        chosen = {"train": True, "augment": "light", "on_bad": "skip", "workers": workers}
        return list(loader(dataset, COLOUR, seed=1, **{**chosen, **kw}))

    fives, rest = trained(batch_size=5), trained(batch_size=5, skip=2)
    assert equal(gathered(fives[2:]), gathered(rest))
    assert equal(gathered(fives), gathered(trained(batch_size=3))), "the order knows nothing of the batch size"
    assert len(dataset.bad) == 2


def test_skipping_can_be_the_choice_of_the_spec(damaged):
    dataset = open_dataset(f"{damaged}?on_bad=skip")
    assert sum(len(b) for b in loader(dataset, COLOUR, batch_size=4)) == 18
    for made in (dataset.readable(), dataset.cached()):
        assert len(made) == 18 and "cat/003.png" not in made.keys
        assert np.array_equal(made[3].image, open_dataset(damaged)[4].image)
    with pytest.raises(BadInput, match=r"image 'cat/003\.png' cannot be decoded"):
        list(loader(dataset, COLOUR, batch_size=4, on_bad="error"))
    with pytest.raises(BadInput, match="unknown on_bad 'drop'"):
        loader(dataset, COLOUR, batch_size=4, on_bad="drop")


def test_a_batch_of_nothing_but_bad_images(damaged):
    dataset = open_dataset(damaged).take([3, 13, 0])
    assert [b.keys for b in loader(dataset, COLOUR, batch_size=2, on_bad="skip")] == [["cat/000.png"]]
    with pytest.raises(BadInput, match="no image of a whole batch can be read: image 'cat/003"):
        list(loader(dataset.take([0, 1]), COLOUR, batch_size=2, train=True, on_bad="skip"))
    with pytest.raises(BadInput, match="none of its 2 images can be read"):
        open_dataset(f"{damaged}?on_bad=skip").take([3, 13]).readable()


@pytest.mark.parametrize("argument", [{"batch_size": 0}, {"epoch": -1}, {"workers": -1}, {"skip": -1}])
def test_arguments_outside_their_range(digits, argument):
    name, value = next(iter(argument.items()))
    with pytest.raises(BadInput, match=f"{name} is {value}; accepted: a whole number, "):
        loader(digits, GREY, **{"batch_size": 4, **argument})


def test_augment_needs_train(digits):
    with pytest.raises(BadInput, match="augment is for training: give train=True"):
        loader(digits, GREY, batch_size=4, augment="light")


def test_batches_move_to_a_device(digits):
    batch = next(iter(loader(digits, GREY, batch_size=4)))
    moved = batch.to("meta")
    assert moved.images.is_meta and moved.targets.is_meta and moved.keys == batch.keys


def test_a_loader_travels_to_spawned_workers(folder, digits):
    for dataset, preprocess in ((open_dataset(folder), COLOUR), (digits, GREY)):
        whole = loader(dataset, preprocess, batch_size=8, train=True, augment="randaug")
        assert equal(gathered(whole), gathered(pickle.loads(pickle.dumps(whole))))


def test_repeats_are_views_of_one_image_in_a_row(digits):
    light = {"train": True, "augment": "light", "batch_size": 6, "seed": 3, "epoch": 2}
    once, thrice = gathered(loader(digits, GREY, **light)), gathered(loader(digits, GREY, repeats=3, **light))
    assert len(thrice[0]) == 53  # an epoch stays as long: it meets a third of the images
    assert thrice[0] == [key for key in once[0] for _ in range(3)][:53]
    views = thrice[1][:51].unflatten(0, (17, 3))
    assert torch.equal(views[:, 0], once[1][:17])  # the first view is the one without repeats
    assert not torch.equal(views[:, 0], views[:, 1]) and not torch.equal(views[:, 1], views[:, 2])
    rest = gathered(loader(digits, GREY, repeats=3, skip=4, workers=1, **light))
    assert equal(rest, (thrice[0][24:], thrice[1][24:], thrice[2][24:]))
    other_batches = gathered(loader(digits, GREY, repeats=3, **{**light, "batch_size": 11}))
    assert equal(other_batches, thrice)


def test_an_epoch_of_views_is_a_multiple_of_256():
    from leanvit.data import epoch_length

    data = open_dataset("digits", "train")
    assert (epoch_length(data), epoch_length(data, 3)) == (1438, 1280)
    assert sum(len(b) for b in loader(data, GREY, batch_size=128, train=True, repeats=3)) == 1280
    with pytest.raises(BadInput, match="repeats is for training"):
        loader(data, GREY, batch_size=8, repeats=2)
