from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import torch

from leanvit import __version__
from leanvit.measure import environment
from leanvit.measure.machine import PACKAGES, _flags


def test_environment_is_json_and_names_what_matters() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"] and found["cores_usable"] >= 1 and found["memory_bytes"] > 2**28
    assert found["threads"] == torch.get_num_threads()
    assert set(found["versions"]) == set(PACKAGES)
    assert (
        found["versions"]["torch"] == torch.__version__.split("+")[0] or found["versions"]["torch"] == torch.__version__
    )
    assert (found["cuda"] is not None) == torch.cuda.is_available()


def test_flags_are_those_the_cpu_has() -> None:
    assert _flags({"flags": "fpu avx2 avx512f amx_int8 amx_bf16x"}) == ["avx2", "avx512f", "amx_int8"]
    assert _flags({}) is None


def test_versions_are_read_without_importing() -> None:
    code = (
        "import sys; from leanvit.measure import environment; found = environment();"
        "heavy = {'torch', 'openvino', 'onnxruntime', 'timm'} & set(sys.modules);"
        "assert not heavy, heavy; assert found['versions']['torch'] and found['threads'] is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_openmp_was_told_is_recorded(monkeypatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = environment()
    assert found["omp_wait_policy"] == "PASSIVE" and found["omp_num_threads"] is None


def test_leanvit_has_a_version_without_metadata(monkeypatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("leanvit.measure.machine.version", missing)
    assert environment()["versions"]["leanvit"] == __version__
    assert environment()["versions"]["torch"] is None
