"""A toy of a method that compresses: the last patch tokens go in front of the last block's MLP."""

from toy_papers.tokens.toy_first.method import ToyFirst

__all__ = ["ToyFirst"]
