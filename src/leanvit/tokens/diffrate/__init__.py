"""DiffRate: learned rates of pruning and merging (Chen et al., ICCV 2023, arXiv 2305.17997).

In every block, between attention and MLP, patch tokens are ranked by the class token's attention; those behind the
first p are dropped, those behind the first m merge into the most similar one that stays. How many stay is learned for
each block, with frozen weights, so that the whole meets a target in MACs (`diffrate_search.py`); the lists are the
plan, and can be written by hand. Counts are the published ones: patch tokens and one class token.

Departures: MACs are those of the model that runs (published: a formula for MLPs of four times the width, which counts
the class token into the patch embedding), and the penalty on them is relative to the dense model, so that its weight
does not depend on the model's size: 5 (ΔGFLOPs)² is 5 · GFLOPs(dense)² times as much. What a short search misses, its
end puts right (`settled`). Sizes stay above zero (published: similarity may be negative, and the logarithm of a size is
taken). All prefix tokens are protected. No token is left for a merge alone: m is 2 or more where it merges. Patch
dropout rests while searching.
"""

from leanvit.tokens.diffrate.method import DiffRate

__all__ = ["DiffRate"]
