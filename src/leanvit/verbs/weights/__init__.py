"""Weights from a file: our own names, or a checkpoint of another training loop or code base. Nothing in it is run.

`reading` opens a file of any kind, `choosing` finds the model's weights in it, `adapting` brings them to the model's
shapes, `describing` says what a file and a model look like, `flax` reads AugReg's arrays, `loading` is the whole.
"""

from leanvit.verbs.weights.loading import as_in_file, load_weights
from leanvit.verbs.weights.reading import Held, read_weights

__all__ = ["Held", "as_in_file", "load_weights", "read_weights"]
