"""Changing widths of a model that is open."""
