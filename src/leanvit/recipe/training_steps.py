"""The length of a training, known before it starts: its steps, and the numbers of them that suit a data set.

Numbers of steps are published for ImageNet. A method with such a default leaves its knob open (None) until it knows
the data, and takes then what suits so many images; the plan records the number. What a user gives stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from leanvit.errors import BadInput


@dataclass(frozen=True)
class Training:
    """One training of a compression, before it begins."""

    label: str  # "nvit", or "recovery"
    epochs: int
    steps: int
    images: int  # a step
    at_most: bool = False  # whether it ends earlier once its target is met

    def __str__(self) -> str:
        course = f"{counted(self.epochs, 'epoch')}, {counted(self.steps, 'step')} of {counted(self.images, 'image')}"
        return f"{self.label}: {'up to ' if self.at_most else ''}{course}"


def counted(number: int, thing: str) -> str:
    """`1 epoch`, `1,000 steps`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def steps_for(images: int, batch_size: int, *, passes: int, least: int, most: int) -> int:
    """Optimiser steps that go `passes` times over the images, at most `most`, and at least `least` in any case."""
    return max(least, min(most, passes * (images // batch_size)))


BATCH = 64  # images a forward where none are asked for, and there are as many
STEPS = 4  # an epoch has as many at least, where the batch is a default and training goes by epochs


def fitting_batch(images: int, *, default: int = BATCH, least: int = 2) -> int:
    """The default, or where an epoch would not have `STEPS` of it, the largest power of two that gives as many."""
    few = images // STEPS
    return max(1, min(images, max(least, min(default, 1 << max(few.bit_length() - 1, 0)))))


def steps_of_epoch(slug: str, batch_size: int, images: int) -> int:
    """Steps that a method's training takes through so many images. Raises `BadInput` where they do not fill a batch."""
    if images < batch_size:
        raise BadInput(
            f"{slug} trains on batches of {batch_size} images (batch_size={batch_size}), and there are {images} to "
            f"train on; accepted: up to {images} (--with {slug}:batch_size={max(images, 1)}), or more images"
        )
    return images // batch_size
