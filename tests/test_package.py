"""What `import leanvit` gives: light, and every public name works, also where a room has the name of a verb."""

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


@pytest.mark.parametrize(
    ("verb", "room"), [("compress", "leanvit.compress.tokens.evit"), ("report", "leanvit.report.page")]
)
def test_a_verb_stays_callable_after_its_room_was_imported(verb: str, room: str) -> None:
    python(
        f"import leanvit as lv\nbefore = lv.{verb}\nimport {room} as module\n"
        f"assert module.__name__ == {room!r}\n"
        f"try: lv.{verb}()\n"
        f"except TypeError as error: assert '{verb}() missing' in str(error), error\n"
        f"else: raise AssertionError('called without arguments')"
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="evitt"):
        leanvit.evitt  # noqa: B018
