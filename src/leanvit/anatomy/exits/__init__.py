"""Heads inside of the depth, and the rules by which images stop there."""
