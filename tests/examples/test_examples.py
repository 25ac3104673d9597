"""The examples as a stranger runs them: in a process without leanvit, and without torch unless it is the runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy_models import LABELS, PREPROCESS, photos, small, small_int8
from leanvit.data import Preprocess
from leanvit.deploy import export, load_artefact

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNTIMES = {"openvino": "run_openvino.py", "onnx": "run_onnxruntime.py", "torch": "run_torch_export.py"}
ABSENT = """
import sys, runpy
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name + " is absent here", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
assert not set({absent!r}) & set(sys.modules)
"""


def lines_of_code(path: Path) -> list[str]:
    body = path.read_text(encoding="utf-8").split('"""')[2]
    return [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def run_alone(runtime: str, artefact: Path, photo: Path) -> list[tuple[float, str]]:
    """(logit, label) of the lines that an example prints."""
    absent = {"leanvit", "timm", "torchvision", *(() if runtime == "torch" else ("torch",))}
    arguments = [str(EXAMPLES / RUNTIMES[runtime]), str(artefact), str(photo)]
    code = ABSENT.format(absent=sorted(absent), arguments=arguments)
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pairs = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    return [(float(logit), label) for logit, label in pairs]


@pytest.mark.parametrize(
    "runtime",
    [
        "openvino",
        pytest.param("torch", marks=pytest.mark.e2e),
        pytest.param("onnx", marks=pytest.mark.extra("onnxruntime", of="onnx")),
    ],
)
def test_fifteen_lines_and_the_runtime_alone_give_leanvits_answer(tmp_path: Path, runtime: str) -> None:
    artefact = export(
        small_int8(), tmp_path / "a", to=runtime, preprocess=PREPROCESS, input_type="u8", batch=1, labels=LABELS
    )
    photo = Image.fromarray(np.random.default_rng(8).integers(0, 256, (61, 95, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    printed = run_alone(runtime, artefact.path, tmp_path / "photo.png")
    logits = load_artefact(artefact).classify([photo])[0].numpy()
    order = np.argsort(-logits)[:5]
    assert [label for _, label in printed] == [LABELS[i] for i in order]
    np.testing.assert_allclose([logit for logit, _ in printed], logits[order], atol=2e-4 * np.abs(logits).max())


@pytest.mark.parametrize("name", RUNTIMES.values())
def test_at_most_fifteen_lines(name: str) -> None:
    assert 5 < len(lines_of_code(EXAMPLES / name)) <= 15


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("run_*.py")} == set(RUNTIMES.values())


@pytest.mark.parametrize(("size", "crop", "interpolation"), [(224, 0.9, "bicubic"), (32, 1.0, "bilinear")])
def test_their_preprocessing_is_leanvits_bit_for_bit(size: int, crop: float, interpolation: str) -> None:
    """The lines between reading and running, on photos of several shapes, give the pixels of `u8_transform`."""
    pre = Preprocess((3, size, size), (0.5,) * 3, (0.5,) * 3, interpolation, crop)
    lines = [lines_of_code(EXAMPLES / name) for name in RUNTIMES.values()]
    for code in lines:
        assert [line for line in code if "size" in line] == [line for line in lines[0] if "size" in line]
    steps = "\n".join(line for line in lines[0] if line.startswith(("size =", "left,", "image = image")))
    for shape in ((61, 95), (500, 333), (40, 40), (700, 1001)):
        image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8))
        want = pre.u8_transform()(image)
        names = {"image": image, "Image": Image, "height": size, "width": size, "pre": pre.to_json()}
        exec(steps, names)
        assert np.array_equal(np.asarray(names["image"]), want), shape


def test_the_float_model_says_the_same_of_photos_with_and_without_pixels(tmp_path: Path) -> None:
    plain = export(small(), tmp_path / "float", preprocess=PREPROCESS)
    pixels = export(small(), tmp_path / "u8", preprocess=PREPROCESS, input_type="u8")
    want = load_artefact(plain).classify(photos(3))
    np.testing.assert_allclose(load_artefact(pixels).classify(photos(3)), want, atol=1e-4 * float(want.abs().max()))
