"""Static W8A8 post-training quantization: unsigned activations, signed weights with one scale per output channel.

The usual recipe of integer inference (Jacob et al., arXiv 1712.05877; Nagel et al., arXiv 2106.08295), with its ranges
from a calibration on training images. The patch convolution, every linear, the classifier and, by choice, both products
of attention are rounded; LayerNorm, softmax, GELU and the residual stream stay float, where a generic recipe loses most
of a ViT's accuracy.

How a value travels: `learn` leaves `model.calibration` (ranges and references to the float weights), `shape` installs
empty quantizers and takes the float weights out of their modules, `fold` fills the quantizers from `model.calibration`
and removes it. After a load there is no calibration: the state dict brings the values.
"""

from leanvit.quantize.int8.method import Int8

__all__ = ["Int8"]
