"""Makes the pages of README and docs that follow from the package and from benchmark results."""
