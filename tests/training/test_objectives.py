import copy
import textwrap
from types import SimpleNamespace

import pytest
import torch
from timm.data.mixup import mixup_target
from tiny_training import make_model, make_preprocess
from torch import nn

from leanvit.data import Batch, loader
from leanvit.errors import BadInput
from leanvit.tasks import objectives
from leanvit.training import CrossEntropy, HardDistillation, Loss, Objective, SoftDistillation


class Fixed(nn.Module):
    """A model that returns what it is told to, whatever the images."""

    def __init__(self, *outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = nn.ParameterList(outputs)

    def forward(self, images, **context):
        return self.outputs[0] if len(self.outputs) == 1 else tuple(self.outputs)


@pytest.fixture
def logits():
    """Class, distillation and teacher logits (6, 4), targets (6,)."""
    generator = torch.Generator().manual_seed(3)
    cls, dist, teacher = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    targets = torch.randint(4, (6,), generator=generator)
    return SimpleNamespace(cls=cls.float(), dist=dist.float(), teacher=teacher.float(), targets=targets)


def loss_of(objective: Objective, model: nn.Module, targets: torch.Tensor) -> Loss:
    batch = Batch(torch.zeros(len(targets), 1, 8, 8), targets, [str(i) for i in range(len(targets))])
    return objective(model, batch, 0, {})


def by_hand_cross_entropy(logits, probabilities):
    total = 0.0
    for row, wanted in zip(logits.double().tolist(), probabilities.double().tolist(), strict=True):
        norm = torch.tensor(row).double().exp().sum().log().item()
        total += sum(p * (norm - z) for p, z in zip(wanted, row, strict=True))
    return total / len(logits)


def one_hot(targets, classes=4):
    return torch.eye(classes)[targets]


def test_cross_entropy_is_the_formula(logits):
    got = loss_of(CrossEntropy(), Fixed(logits.cls), logits.targets).total
    assert got.item() == pytest.approx(by_hand_cross_entropy(logits.cls, one_hot(logits.targets)), abs=1e-6)


def test_label_smoothing_on_hard_and_on_mixed_targets(logits):
    smoothed = 0.9 * one_hot(logits.targets) + 0.1 / 4
    got = loss_of(CrossEntropy(0.1), Fixed(logits.cls), logits.targets).total
    assert got.item() == pytest.approx(by_hand_cross_entropy(logits.cls, smoothed), abs=1e-6)

    # smoothing in the objective after mixing is what timm does while mixing
    mixed = mixup_target(logits.targets, 4, lam=0.3)
    timm_targets = mixup_target(logits.targets, 4, lam=0.3, smoothing=0.1)
    got = loss_of(CrossEntropy(0.1), Fixed(logits.cls), mixed).total
    assert got.item() == pytest.approx(by_hand_cross_entropy(logits.cls, timm_targets), abs=1e-6)


def test_cross_entropy_of_two_heads_takes_their_mean(logits):
    got = loss_of(CrossEntropy(), Fixed(logits.cls, logits.dist), logits.targets).total
    mean = (logits.cls + logits.dist) / 2
    assert got.item() == pytest.approx(by_hand_cross_entropy(mean, one_hot(logits.targets)), abs=1e-6)


@pytest.mark.parametrize("heads", [1, 2])
def test_soft_distillation_is_deit_equation_2(logits, heads):
    student = [logits.cls, logits.dist][:heads]
    objective = SoftDistillation(
        Fixed(logits.teacher), teacher_preprocess=make_preprocess(), alpha=0.3, temperature=3.0
    )
    got = loss_of(objective, Fixed(*student), logits.targets)

    kl = 0.0
    for zs, zt in zip((student[-1] / 3).double(), (logits.teacher / 3).double(), strict=True):
        p, q = zt.exp() / zt.exp().sum(), zs.exp() / zs.exp().sum()
        kl += sum(pi * (pi / qi).log() for pi, qi in zip(p, q, strict=True)).item() / 6
    base = by_hand_cross_entropy(logits.cls, one_hot(logits.targets))
    assert got.parts["distillation"].item() == pytest.approx(9 * kl, abs=1e-5)
    assert got.parts["base"].item() == pytest.approx(base, abs=1e-6)
    assert got.total.item() == pytest.approx(0.7 * base + 0.3 * 9 * kl, abs=1e-5)


@pytest.mark.parametrize("heads", [1, 2])
def test_hard_distillation_is_deit_equation_3(logits, heads):
    student = [logits.cls, logits.dist][:heads]
    objective = HardDistillation(
        Fixed(logits.teacher), teacher_preprocess=make_preprocess(), alpha=0.25, label_smoothing=0.1
    )
    got = loss_of(objective, Fixed(*student), logits.targets).total.item()
    base = by_hand_cross_entropy(logits.cls, 0.9 * one_hot(logits.targets) + 0.1 / 4)
    payload = by_hand_cross_entropy(student[-1], one_hot(logits.teacher.argmax(1)))  # never smoothed
    assert got == pytest.approx(0.75 * base + 0.25 * payload, abs=1e-6)


def test_the_teacher_is_frozen_in_eval_and_not_part_of_the_run(logits):
    teacher = make_model(drop_path_rate=0.5).train()
    objective = SoftDistillation(teacher, teacher_preprocess=make_preprocess())
    objective.train()
    assert not teacher.training
    assert list(objective.parameters()) == [] and objective.state_dict() == {}
    student = make_model(1)
    objective(student, Batch(torch.randn(6, 1, 8, 8), logits.targets, ["k"] * 6), 0, {}).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_context_reaches_the_student_and_not_the_teacher(logits):
    seen = []

    class Watching(Fixed):
        def forward(self, images, **context):
            seen.append(context)
            return super().forward(images)

    objective = HardDistillation(Watching(logits.teacher), teacher_preprocess=make_preprocess())
    batch = Batch(torch.zeros(6, 1, 8, 8), logits.targets, ["k"] * 6)
    objective(Watching(logits.cls), batch, 0, {"keep_rate": 0.5})
    assert seen == [{"keep_rate": 0.5}, {}]


def test_a_teacher_with_other_preprocessing_is_refused():
    objective = SoftDistillation(make_model(), teacher_preprocess=make_preprocess(mean=0.5))
    with pytest.raises(BadInput, match=r"mean=\(0\.5,\).*mean=\(0\.4,\)"):
        objective.bind(make_model(1), make_preprocess(mean=0.4))


def test_a_teacher_with_other_classes_is_refused():
    objective = HardDistillation(make_model(num_classes=7), teacher_preprocess=make_preprocess())
    with pytest.raises(BadInput, match="teacher has 7 outputs, the student 4"):
        objective.bind(make_model(1), make_preprocess())


def test_a_teacher_that_is_the_student_is_refused():
    model = make_model()
    objective = SoftDistillation(model, teacher_preprocess=make_preprocess())
    with pytest.raises(BadInput, match="share the parameter 'cls_token'"):
        objective.bind(model, make_preprocess())


def test_a_teacher_that_returns_no_logits_is_refused(logits):
    objective = SoftDistillation(Fixed(logits.cls, logits.dist), teacher_preprocess=make_preprocess())
    with pytest.raises(BadInput, match="teacher Fixed returned tuple, not logits"):
        loss_of(objective, Fixed(logits.cls), logits.targets)


@pytest.mark.parametrize("kwargs", [{"alpha": 1.5}, {"alpha": -0.1}, {"temperature": 0.0}])
def test_numbers_out_of_range_are_named(kwargs, logits):
    (name,) = kwargs
    with pytest.raises(BadInput, match=name):
        SoftDistillation(Fixed(logits.teacher), teacher_preprocess=make_preprocess(), **kwargs)


def test_label_smoothing_out_of_range_is_named():
    with pytest.raises(BadInput, match=r"label_smoothing is 1\.5"):
        CrossEntropy(1.5)


def test_the_loop_of_the_docstring_trains(data, preprocess):
    """The text itself is run, so that it stays true."""
    example = objectives.__doc__.split("In a loop of your own:")[1].split("    deit ")[0]
    model, teacher = make_model(), make_model(1)
    before = copy.deepcopy(model.state_dict())
    batches = [(batch.images, batch.targets) for batch in loader(data, preprocess, batch_size=48)]
    exec(
        textwrap.dedent(example),
        {**vars(objectives), "model": model, "teacher": teacher, "preprocess": preprocess, "batches": batches},
    )
    assert not torch.equal(before["head.weight"], model.head.weight)
