"""Layer 2: early exits. A paper a folder; beside them what every method of the package shares (`cost`, `calibration`).

Rules and the run that lets images leave are in layer 0 (`anatomy/exits/`): artefacts use them too.
"""
