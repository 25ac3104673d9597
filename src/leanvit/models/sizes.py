"""Image sizes that models take: when they are built, and when they run."""

from __future__ import annotations

from timm.layers import register_notrace_function
from torch import Tensor

from leanvit.errors import BadInput, is_whole


def checked_size(img_size: object, multiple: int = 1) -> tuple[int, int]:
    """(H, W) of a side or of two, in pixels. Raises `BadInput` unless both are multiples of a number."""
    sides = tuple(img_size) if isinstance(img_size, tuple | list) else (img_size, img_size)
    if len(sides) != 2 or not all(is_whole(side, least=multiple) and side % multiple == 0 for side in sides):
        which = f", multiples of {multiple}" if multiple > 1 else " in pixels"
        raise BadInput(f"img_size is {img_size!r}; accepted: a side or (H, W){which}")
    return sides[0], sides[1]


@register_notrace_function
def of_size(images: Tensor, multiple: int, exact: tuple[int, int] | None, accepted: str) -> Tensor:
    """The images (B, C, H, W) as they are. One step where `torch.fx` traces, which cannot follow what sizes decide.

    Args:
        multiple: of which both sides are. exact: the one size (H, W) there is, or None.
        accepted: what an error says behind the size.

    Raises:
        BadInput: another size, or images of whole numbers.
    """
    if not images.is_floating_point():
        raise BadInput(f"images are {images.dtype}; accepted: floating-point numbers, normalised")
    height, width = images.shape[2:]
    if height % multiple or width % multiple or exact not in (None, (height, width)):
        raise BadInput(f"images are {height}x{width}{accepted}")
    return images
