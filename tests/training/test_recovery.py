import copy

import pytest
import torch
from tiny_training import make_data, make_model
from torch.nn import functional as F

from leanvit.data import loader
from leanvit.errors import BadInput
from leanvit.training import FitConfig, fit, recover


@pytest.fixture(scope="module")
def dense(preprocess):
    config = FitConfig(epochs=8, batch_size=16, lr=1e-2, warmup_epochs=1)
    return fit(make_model(), make_data(256), preprocess=preprocess, config=config).model


def damaged(dense, size=0.05):
    """The network after something that hurt it."""
    generator = torch.Generator().manual_seed(0)
    lean = copy.deepcopy(dense)
    with torch.no_grad():
        for p in lean.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    return lean


def divergence(student, teacher, data, preprocess):
    """Mean KL(teacher || student) over the data."""
    (batch,) = loader(data, preprocess, batch_size=len(data))
    with torch.no_grad():
        mine, wanted = (F.log_softmax(m.eval()(batch.images), -1) for m in (student, teacher))
    return F.kl_div(mine, wanted, reduction="batchmean", log_target=True).item()


def test_the_student_moves_towards_the_teacher_which_stays(dense, val_data, preprocess, tmp_path):
    lean, before = damaged(dense), copy.deepcopy(dense.state_dict())
    hurt = divergence(lean, dense, val_data, preprocess)
    config = FitConfig(epochs=3, batch_size=16, lr=2e-3, label_smoothing=0.1)
    result = recover(
        lean, dense, make_data(256), preprocess=preprocess, config=config, alpha=1.0, out=tmp_path, validate=val_data
    )
    assert result.model is lean
    assert divergence(lean, dense, val_data, preprocess) < 0.3 * hurt
    assert {"base", "distillation"} <= result.history[0].keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert all(p.grad is None for p in dense.parameters())


def test_default_recipe_recovers(dense, val_data, preprocess):
    lean = damaged(dense)
    hurt = divergence(lean, dense, val_data, preprocess)
    recover(lean, dense, make_data(256), preprocess=preprocess)
    assert divergence(lean, dense, val_data, preprocess) < 0.9 * hurt


def test_the_lean_model_itself_is_no_teacher(dense, data, preprocess):
    with pytest.raises(BadInput, match="teacher and student share the parameter"):
        recover(dense, dense, data, preprocess=preprocess)
