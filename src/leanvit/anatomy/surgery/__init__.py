"""Changing an opened model: widths, norms, steps and score terms of methods."""
