"""An artefact on disk becomes a runner, verified first."""

from __future__ import annotations

from pathlib import Path

from leanvit.arguments import require_path
from leanvit.deploy.artefact import Artefact, read_artefact
from leanvit.deploy.running import Runner
from leanvit.deploy.runtimes import Options, open_runtime
from leanvit.deploy.segments import open_segments
from leanvit.errors import CheckpointError, Refused


def load_artefact(source: str | Path | Artefact, *, options: Options | None = None, trusted: bool = False) -> Runner:
    """Load an artefact, verified first.

    Args:
        source: its folder; or the `Artefact` that `export` returned, which must still match what is on disk.
        options: precision, hint, threads.
        trusted: load a torch archive although nothing proves where it comes from. Reading one can run code
            (`torch.export.load` unpickles parts of it); the other runtimes only parse.

    Raises:
        BadInput: there is no artefact, or an option that the runtime lacks.
        CheckpointError: it is truncated, changed, foreign, from a newer leanvit, or not what `source` states.
        Refused: a torch archive from a path without `trusted`.
    """
    known = source if isinstance(source, Artefact) else None
    if known is None:
        require_path(source, "source")
    artefact = read_artefact(known.path if known else source)  # type: ignore[arg-type]
    if known and known.seal != artefact.seal:
        raise CheckpointError(f"{artefact.path} is not the artefact that was exported: it was replaced since")
    if artefact.runtime == "torch" and not (known or trusted):
        raise Refused(
            f"{artefact.path} is a torch.export archive, and reading one can run code: load the Artefact that export "
            "returned, or pass trusted=True if you know where it comes from"
        )
    options = options or Options()
    if artefact.segments is not None:
        return open_segments(artefact, options)
    call = open_runtime(artefact.runtime, artefact.path, options, heads=bool(artefact.outputs))
    return Runner(artefact, call, options)
