"""What `import leanvit` gives: light, and every public name works."""

import pkgutil
import subprocess
import sys

import pytest

import leanvit


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_is_light() -> None:
    python("import sys, leanvit; assert not {'torch', 'timm', 'numpy'} & set(sys.modules)")


@pytest.mark.parametrize("name", leanvit.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(leanvit, name) is not None


def test_no_public_name_is_also_a_room() -> None:
    """Python would bind the room over the verb as soon as the room is imported."""
    rooms = {m.name for m in pkgutil.iter_modules(leanvit.__path__)}
    assert not rooms & set(leanvit.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="evitt"):
        leanvit.evitt  # noqa: B018
