"""Layer 5: the command line, one file per verb, each a thin shell over one call of `leanvit.verbs`."""
