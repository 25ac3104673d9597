from __future__ import annotations

import subprocess
import sys

import pytest

import leanvit.data


def test_every_public_name_resolves():
    for name in leanvit.data.__all__:
        assert getattr(leanvit.data, name) is not None
    assert dir(leanvit.data) == sorted(leanvit.data.__all__)
    with pytest.raises(AttributeError, match="no attribute 'open_datasets'"):
        leanvit.data.open_datasets  # noqa: B018


def test_importing_the_room_is_light():
    code = "import sys, leanvit.data; print([m for m in ('torch', 'timm', 'numpy', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
