"""Layer 3: the record of a run folder: which files it has, who writes them, and what can be read from them.

`layout` names the files, `record.read_run` reads them into a `RunRecord`, `saving` and `measurements` write what a
compression and a measurement leave; `folders`, `locking` and `clearing` are about the folder itself. Verbs write
through this package, the report reads through it.
"""
