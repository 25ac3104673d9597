"""Compressions on two processes whose calibrations do not agree: all end with what the first found, or one error."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from gates import digits
from safetensors.torch import load_file, save_file

from leanvit.anatomy import OpenModel
from leanvit.data import Preprocess
from leanvit.errors import Refused
from leanvit.recipe import Data, Kept, Root, compress, create, register
from leanvit.training import join_world

sys.path.append(str(Path(__file__).parents[1] / "training"))
from processes import run_on

SMALL = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 1, "in_chans": 1, "num_classes": 10}


@register("test_apart", title="Apart", summary="finds something else on each process")
@dataclass(frozen=True)
class Apart:
    """Knobs of the method."""

    refused: bool = False

    needs_data: ClassVar[bool] = True
    resumable: ClassVar[bool] = True

    def learn(self, model: OpenModel, data: Data) -> dict[str, Any]:
        rank = join_world().rank
        if self.refused and rank == 1:
            raise Refused("the second one cannot")
        work = {name: Kept({"it": torch.full((2,), float(rank))}, {"rank": rank}) for name in ("a", "b")}
        found = [
            (kept.tensors["it"].sum().item(), kept.facts["rank"])
            for _, kept in data.units("find", ["a", "b"], work.get)
        ]
        for number, p in enumerate(model.parameters()):
            p.data.add_(1e-6 * rank * number)
        return {"rank": rank, "found": found, "type": str(next(model.parameters()).dtype)}

    def shape(self, model: OpenModel, structure: dict[str, Any]) -> None:
        model.register_buffer("seen", torch.tensor(join_world().rank), persistent=False)
        flags = torch.full((3, 2), bool(join_world().rank)).T
        model.register_buffer("flags", flags)


def compressed(out: Path, refused: bool) -> None:
    torch.manual_seed(0)
    model = create(Root("vit_tiny_patch16_224", SMALL)).eval()
    data = Data(digits(20), Preprocess.of(model))
    rank = join_world().rank
    try:
        lean = compress(model, [Apart(refused)], data, out=out)
    except Refused as error:
        (out.parent / f"error-{rank}").write_text(str(error))
        return
    (plan,) = lean.history.plans
    assert plan.structure == {"rank": 0, "found": [(0.0, 0), (0.0, 0)], "type": "torch.float32"}
    assert int(lean.seen) == 0
    save_file({name: tensor.contiguous() for name, tensor in lean.state_dict().items()}, out.parent / f"weights-{rank}")


def test_all_end_with_what_the_first_one_found(tmp_path: Path) -> None:
    assert run_on(2, compressed, tmp_path / "run", False) == [0, 0]
    first, second = (load_file(tmp_path / f"weights-{rank}") for rank in (0, 1))
    assert not first["flags"].any() and first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_an_error_of_one_ends_all_and_leaves_nothing(tmp_path: Path) -> None:
    assert run_on(2, compressed, tmp_path / "run", True) == [0, 0]
    assert {(tmp_path / f"error-{rank}").read_text() for rank in (0, 1)} == {"the second one cannot"}
    assert not (tmp_path / "run").exists()
