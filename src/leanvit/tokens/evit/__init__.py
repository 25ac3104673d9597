"""EViT: token reorganization by class attention (Liang et al., ICLR 2022, arXiv 2202.07800).

In a few blocks, between attention and MLP, only the patch tokens that the class token attends to most stay; the others
are dropped, or fused into one token by their attention. No new parameters; works without training.

Departures: all prefix tokens (distillation, registers) are protected and the class token scores, where the official
code knows a class token only; under dropout of attention the fused kernel scores without that dropout. With rotary
positions or a relative bias (unknown to the paper), the fused token is where the most attended of its tokens was.
"""

from leanvit.tokens.evit.method import EViT

__all__ = ["EViT"]
