"""Floor 3: the command line, one file per verb. Each is a thin shell over one call of `leanvit.verbs` or `leanvit.report`."""
