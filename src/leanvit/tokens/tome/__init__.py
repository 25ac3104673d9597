"""ToMe: token merging (Bolya et al., ICLR 2023, arXiv 2210.09461).

In every block, between attention and MLP, the r most similar pairs of tokens merge into their size-weighted mean; later
attention counts a token by its size. No parameters; works without training. Written from the paper.

Departures: prefix tokens beyond class and distillation (registers) are protected too; mean-pooled heads weigh tokens
by size for every such model; layer scale and q/k norm are respected because the anatomy runs them. With rotary
positions or a relative bias, similarity is that of keys before the rotation (what tokens hold, not where they are), and
a merged token is where its receiver was.
"""

from leanvit.tokens.tome.method import ToMe

__all__ = ["ToMe"]
