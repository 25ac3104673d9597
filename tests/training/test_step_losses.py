"""What a step minimises, on one and on two processes: means over other things than images, several pieces, the clean
batch, pairs, and losses over the whole batch. Every run is one of `runs`; two processes are started once for all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from everything import DROPS
from processes import run_on
from safetensors.torch import load_file, save_file
from test_processes import Steps, assert_close, holed
from tiny_training import make_data, make_model, make_preprocess
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from leanvit.data import Batch, loader
from leanvit.data.loading import share_rows
from leanvit.errors import BadInput, Refused
from leanvit.tasks import Classification, Task, task
from leanvit.training import CrossEntropy, FitConfig, Loss, Objective, TaskLoss, WholeBatch, fit, join_world

SGD = FitConfig(epochs=1, batch_size=24, lr=0.05, optimizer="sgd")  # AdamW makes steps of the rounding of zeros


def keys_of(step: int, share: tuple[int, int] = (0, 1)) -> list[str]:
    """The images of a step of SGD, or of one process's share of it."""
    batches = list(loader(make_data(96), make_preprocess(), batch_size=24, train=True, share=share))
    return batches[step].keys


class Dense(Objective):
    """Cross-entropy of every bright patch, by a head of its own; the patches of some images are all ignored."""

    def __init__(self, ignored=(), counted=True, zero_over_zero=True):
        super().__init__()
        torch.manual_seed(5)
        self.head = nn.Linear(16, 4)
        self.ignored, self.counted, self.zero_over_zero = set(ignored), counted, zero_over_zero

    def seen(self, batch):
        kept = torch.tensor([key not in self.ignored for key in batch.keys], dtype=torch.bool)
        patches = F.avg_pool2d(batch.images, 4).flatten(1)
        return (patches > 0) & kept[:, None].to(patches.device)

    def terms(self, batch):
        return int(self.seen(batch).sum()) if self.counted else None

    def forward(self, model, batch, step, context):
        logits = self.head(model.forward_features(batch.images)[:, 1:])
        each = F.cross_entropy(logits.transpose(1, 2), batch.targets[:, None].expand(-1, 4), reduction="none")
        seen = self.seen(batch)
        loss = (each * seen).sum() / (seen.sum() if self.zero_over_zero else seen.sum().clamp(min=1))
        return Loss(loss, {"again": loss.detach()})


class Subnets(nn.Module):
    """The tiny transformer, of which one block can be left out."""

    def __init__(self, drops=DROPS):
        super().__init__()
        self.net = make_model(**drops)
        self.blocks = self.net.blocks

    def forward(self, images, without=None):
        x = self.net._pos_embed(self.net.patch_embed(images))
        for number, block in enumerate(self.blocks):
            x = x if number == without else block(x)
        return self.net.forward_head(self.net.norm(x))


class Sampled(CrossEntropy):
    """A subnet a piece: the second block and the first scale are of the first piece alone."""

    pieces = 2

    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList([torch.ones(()), torch.ones(())])

    def piece(self, number, model, batch, step, context):
        logits = self.scales[number] * model(batch.images, without=number or None)
        loss = self.of(logits, batch.targets)
        return Loss(loss, {f"of_{number}": loss.detach()})

    def forward(self, model, batch, step, context):
        return Loss(sum(self.piece(n, model, batch, step, context).total for n in range(2)))


class Summed(Sampled):
    """The same in one piece."""

    pieces = 1

    def piece(self, number, model, batch, step, context):
        return Loss(sum(super(Summed, self).piece(n, model, batch, step, context).total for n in range(2)))


class Clean(CrossEntropy):
    """Mixed images, and the clean ones beside them."""

    sees_clean = True

    def forward(self, model, batch, step, context):
        mixed = self.of(model(batch.images), batch.targets)
        if batch.clean is None:
            return Loss(mixed, {"clean": mixed.detach()})
        assert batch.clean.targets.ndim == 1 and batch.clean.keys == batch.keys
        clean = self.of(model(batch.clean.images), batch.clean.targets)
        return Loss(mixed + clean, {"clean": clean.detach()})


class Neighbours(CrossEntropy):
    pairing = "neighbours"


class Contrastive(WholeBatch):
    """Images and their mirrored selves, as CLIP compares images and texts; places weigh, so that their order counts."""

    def __init__(self, chunk=None):
        super().__init__(chunk)
        torch.manual_seed(6)
        self.project, self.scale = nn.Linear(64, 8), nn.Parameter(torch.tensor(1.0))

    def features(self, model, batch, step, context):
        views = {"plain": batch.images, "mirrored": batch.images.flip(-1)}
        tokens = {name: model.forward_features(view)[:, 1:].flatten(1) for name, view in views.items()}
        return {"target": batch.targets, **{name: self.project(x) for name, x in tokens.items()}}

    def loss(self, features):
        one, two = (F.normalize(features[name], dim=-1) for name in ("plain", "mirrored"))
        logits = self.scale.exp() * one @ two.T
        places = torch.arange(len(one))
        weights = 1 + places + features["target"]
        each = F.cross_entropy(logits, places, reduction="none") + F.cross_entropy(logits.T, places, reduction="none")
        total = (each * weights).sum() / weights.sum()
        # small enough for the first scale of fp16
        return Loss(total / 20, {"images": torch.tensor(float(len(one)))})


class Normed(nn.Module):
    """A batch norm before the transformer."""

    def __init__(self):
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(1), make_model()

    def forward(self, images):
        return self.net(self.norm(images))

    def forward_features(self, images):
        return self.net.forward_features(self.norm(images))


class Reductions:
    """Counts how often DDP averages gradients."""

    def __init__(self):
        self.count = 0

    def start(self, run):
        if isinstance(run.forward, DistributedDataParallel):
            run.forward.register_comm_hook(None, self.counted)

    def counted(self, state, bucket):
        self.count += 1
        return allreduce_hook(None, bucket)


def runs(out: Path) -> None:
    data, preprocess = make_data(96), make_preprocess()
    second = keys_of(0, (1, 2))  # what the second of two processes has in the first step

    def run(name, objective, config=SGD, model=None, data=data):
        steps, reductions = Steps(), Reductions()
        model = make_model() if model is None else model
        fit(model, data, preprocess=preprocess, config=config, objective=objective, callbacks=[steps, reductions])
        assert reductions.count in (0, len(steps.rows))  # once a step, however many pieces it has
        if join_world().first:
            (out / f"{name}.json").write_text(json.dumps(steps.rows))
            tensors = {**model.state_dict(), **{f"objective.{n}": t for n, t in objective.state_dict().items()}}
            save_file({n: t.clone() for n, t in tensors.items()}, out / name)

    fsdp2 = replace(SGD, parallel="fsdp2")
    halves = replace(SGD, batch_size=12, accumulate=2)
    run("dense", Dense())
    run("dense accumulated", Dense(), halves)
    run("dense fsdp2", Dense(), fsdp2)
    run("dense by images", Dense(counted=False))
    run("dense empty", Dense(ignored=[*second, *keys_of(2)]))
    run("dense empty fsdp2", Dense([*second, *keys_of(2)], zero_over_zero=False), fsdp2)
    run("dense empty accumulated", Dense(ignored=[*second, *keys_of(2)]), halves)
    run("pieces", Sampled(), model=Subnets())
    run("pieces without drops", Sampled(), model=Subnets(drops={}))
    run("pieces summed", Summed(), model=Subnets(drops={}))
    run("pieces accumulated", Sampled(), halves, model=Subnets())
    run("pieces fsdp2", Sampled(), fsdp2, model=Subnets())
    run("clean", Clean(), replace(SGD, mixup=0.4, cutmix=1.0), make_model(**DROPS))
    run("neighbours", Neighbours(), replace(SGD, mixup=0.4, cutmix=1.0), make_model(**DROPS))
    run("contrastive", Contrastive(), model=make_model(**DROPS))
    run("contrastive chunk", Contrastive(chunk=5), model=make_model(**DROPS))
    run("contrastive fsdp2", Contrastive(), fsdp2, make_model(**DROPS))
    run("contrastive chunk fsdp2", Contrastive(chunk=5), fsdp2, make_model(**DROPS))
    for amp in ("bf16", "fp16"):
        run(f"contrastive {amp}", Contrastive(), replace(SGD, amp=amp))
        run(f"contrastive chunk {amp}", Contrastive(chunk=5), replace(SGD, amp=amp))
    rows = [int(key.partition("/")[2]) for key in second]
    run("dense unreadable", Dense(), data=holed("skip", tuple(rows)))
    run("contrastive empty", Contrastive(), data=holed("skip", tuple(rows)))
    run("contrastive empty chunk", Contrastive(chunk=5), data=holed("skip", tuple(rows)))
    run("contrastive empty chunk fsdp2", Contrastive(chunk=5), fsdp2, data=holed("skip", tuple(rows)))
    run("contrastive fewer", Contrastive(chunk=3), data=holed("skip", tuple(range(1, 60, 2))))


class Found:
    """What the runs gave on one and on two processes: their steps, and the weights at their end."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders

    def steps(self, name: str, processes: int) -> list[dict[str, float]]:
        return json.loads((self.folders[processes - 1] / f"{name}.json").read_text())

    def weights(self, name: str, processes: int) -> dict[str, torch.Tensor]:
        return load_file(self.folders[processes - 1] / name)

    def assert_same(self, one: tuple[str, int], two: tuple[str, int], tolerance: float = 1e-5) -> None:
        assert_close(self.steps(*one), self.steps(*two), tolerance)
        mine, other = self.weights(*one), self.weights(*two)
        assert mine.keys() == other.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(other[name], tensor, atol=tolerance, rtol=0, msg=name)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Found:
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    assert run_on(2, runs, folders[1]) == [0, 0]
    runs(folders[0])
    return Found(*folders)


@pytest.mark.parametrize(
    "name",
    [
        "dense",
        "dense accumulated",
        "dense empty",
        "dense empty accumulated",
        "dense empty fsdp2",
        "dense unreadable",
        "pieces",
        "pieces accumulated",
        "clean",
        "neighbours",
        "contrastive",
        "contrastive chunk",
        "contrastive empty",
        "contrastive empty chunk",
        "contrastive fewer",
    ],
)
def test_two_processes_are_one(found, name):
    found.assert_same((name, 1), (name, 2))


@pytest.mark.parametrize("name", ["dense", "pieces", "contrastive", "contrastive chunk", "contrastive empty chunk"])
def test_fsdp2_is_one_process(found, name):
    found.assert_same((name, 1), (f"{name} fsdp2", 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mean_over_patches_is_that_of_the_whole_step(found, processes):
    found.assert_same(("dense", 1), ("dense accumulated", processes))
    apart = abs(found.steps("dense", 1)[1]["loss"] - found.steps("dense by images", 2)[1]["loss"])
    assert apart > 1e-4  # where each process's mean counts alike
    assert all(row["again"] == pytest.approx(row["loss"], abs=1e-6) for row in found.steps("dense", 2))


@pytest.mark.parametrize("name", ["dense empty", "dense empty accumulated", "dense empty fsdp2"])
def test_a_step_of_nothing_has_loss_0_and_no_gradient(found, name):
    rows = found.steps(name, 2)
    assert [row["terms"] > 0 for row in rows] == [True, True, False, True]
    assert rows[2]["loss"] == rows[2]["grad_norm"] == 0 and rows[3]["loss"] > 0
    full = found.steps("dense", 1)[0]["terms"]
    assert 0 < rows[0]["terms"] < full == int(full)


def test_a_task_may_say_what_its_mean_is_over():
    @task("halves")
    class Halves(Task):
        def loss(self, outputs, batch):
            return F.cross_entropy(outputs[: len(outputs) // 2], batch.targets[: len(outputs) // 2])

        def terms(self, batch):
            return len(batch) // 2

    steps = Steps()
    args = {"preprocess": make_preprocess(), "config": replace(SGD, accumulate=2), "callbacks": [steps]}
    fit(make_model(), make_data(96), objective=TaskLoss(Halves()), **args)
    assert [row["terms"] for row in steps.rows] == [24, 24]
    assert TaskLoss(Classification()).terms(Batch(torch.zeros(1), torch.zeros(1), [""])) is None


def test_pieces_add_up_to_their_sum(found):
    one, two = (found.steps(name, 1) for name in ("pieces without drops", "pieces summed"))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], abs=1e-6)
    assert [row["of_0"] + row["of_1"] for row in one] == pytest.approx([row["loss"] for row in one], abs=1e-6)
    for name, tensor in found.weights("pieces summed", 1).items():
        torch.testing.assert_close(found.weights("pieces without drops", 1)[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("processes", [1, 2])
def test_chunks_are_the_whole(found, processes):
    found.assert_same(("contrastive", processes), ("contrastive chunk", processes), 1e-6)
    found.assert_same(("contrastive empty", processes), ("contrastive empty chunk", processes), 1e-6)


@pytest.mark.parametrize("name", [f"contrastive {kind}" for kind in ("bf16", "fp16", "chunk bf16", "chunk fp16")])
def test_whole_batches_in_half_precision(found, name):
    found.assert_same((name, 1), (name, 2), 2e-3)
    found.assert_same((name, 1), (name.replace("chunk ", ""), 1), 2e-3)


def test_what_cannot_be_read_is_in_no_whole_batch(found):
    assert [row["images"] for row in found.steps("contrastive", 2)] == [24] * 4
    assert found.steps("contrastive empty", 2)[0]["images"] == 12
    assert sum(row["images"] for row in found.steps("contrastive fewer", 2)) == 66
    first, last = Contrastive().scale, found.weights("contrastive", 2)["objective.scale"]
    assert abs(first - last) > 1e-3


class Recorded(Clean):
    """Keeps the batches that it sees."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, model, batch, step, context):
        self.batches.append(batch)
        return super().forward(model, batch, step, context)


def recorded(objective: Recorded, **settings) -> list[Batch]:
    config = replace(SGD, batch_size=6, **settings)
    fit(make_model(), make_data(24), preprocess=make_preprocess(), config=config, objective=objective)
    assert len(objective.batches) == 4
    return objective.batches


@pytest.mark.parametrize("pairing", ["reversed", "neighbours"])
def test_the_clean_batch_and_the_pairs_that_are_mixed(pairing):
    objective = Recorded()
    objective.pairing = pairing
    partner = torch.tensor([5, 4, 3, 2, 1, 0] if pairing == "reversed" else [1, 0, 3, 2, 5, 4])
    for batch in recorded(objective, mixup=0.4):
        clean, share = batch.clean, batch.targets.max(1).values.min()
        other = F.one_hot(clean.targets, 4)[partner]
        mixes = [(lam, lam * clean.images + (1 - lam) * clean.images[partner]) for lam in (share, 1 - share)]
        lam = next(lam for lam, images in mixes if torch.allclose(images, batch.images, atol=1e-5))
        torch.testing.assert_close(batch.targets, lam * F.one_hot(clean.targets, 4) + (1 - lam) * other)


def test_without_mixing_or_being_asked_for_there_is_no_clean_batch():
    assert all(batch.clean is None for batch in recorded(Recorded()))
    objective = Recorded()
    objective.sees_clean = False
    assert all(batch.clean is None for batch in recorded(objective, mixup=0.4))


def test_a_chunk_is_all_that_runs_with_gradients():
    seen = {True: [], False: []}

    class Watched(Contrastive):
        def features(self, model, batch, step, context):
            seen[torch.is_grad_enabled()].append(batch.keys)
            return super().features(model, batch, step, context)

    config = replace(SGD, batch_size=16)
    fit(make_model(), make_data(16), preprocess=make_preprocess(), config=config, objective=Watched(chunk=6))
    assert [len(keys) for keys in seen[True]] == [6, 6, 4] and seen[True] == seen[False]


class Refusing(Contrastive):
    """Features that are no rows of images."""

    def features(self, model, batch, step, context):
        return {"mean": model(batch.images).mean(0)}


class Vague(CrossEntropy):
    pieces = 2


class Odd(CrossEntropy):
    pairing = "odd"


class Attending(nn.Module):
    """Dropout inside of a fused attention."""

    def __init__(self):
        super().__init__()
        self.net = make_model()
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.5, batch_first=True)

    def forward_features(self, x):
        y = self.net.forward_features(x)
        return y + self.attention(y, y, y)[0]


def checkpointed():
    model = make_model()
    model.set_grad_checkpointing()
    return model


@pytest.mark.parametrize(
    ("objective", "model", "settings", "says"),
    [
        (
            Contrastive,
            make_model,
            {"accumulate": 2},
            "accumulate=2 would part .* batch_size=24, .* chunk=N to Contr",
        ),
        (Contrastive, make_model, {"batch_size": 1}, "batch_size=1 is too small for Contrastive"),
        (
            Contrastive(4),
            Normed,
            {},
            "chunk=4 of Contrastive would give the batch norm 'norm' the statistics",
        ),
        (Contrastive(4), make_model, {"compile": True}, "chunk=4 of Contrastive needs compile=False"),
        (Contrastive(4), checkpointed, {}, "chunk=4 of Contrastive .* checkpointing off"),
        (Contrastive(4), Attending, {}, "aten.* draws random numbers .* number of processes"),
        (
            Refusing,
            make_model,
            {},
            r"Refusing gives 'mean' of shape \(4,\) for 12 images; accepted: \(12, ...\)",
        ),
        (Vague, make_model, {}, "Vague has pieces=2, but does not define piece"),
        (Odd, make_model, {}, "pairing of Odd is 'odd'; accepted: reversed or neighbours"),
    ],
)
def test_what_cannot_be_is_refused(objective, model, settings, says):
    objective = objective() if isinstance(objective, type) else objective
    config = replace(SGD, **{"batch_size": 12, **settings})
    with pytest.raises((BadInput, Refused), match=says):
        fit(model(), make_data(24), preprocess=make_preprocess(), config=config, objective=objective)
    with pytest.raises(BadInput, match="chunk is 0"):
        Contrastive(0)


def test_a_chunked_model_may_keep_the_averages_of_its_batch_norms():
    config = replace(SGD, train_mode="eval")
    fit(Normed(), make_data(24), preprocess=make_preprocess(), config=config, objective=Contrastive(5))


@pytest.mark.parametrize("name", ["Patches", "Mirrored"])
def test_the_objectives_of_the_docs_train(name):
    page = Path(__file__).parents[2] / "docs/internals/training.md"
    names = {"Objective": Objective, "WholeBatch": WholeBatch, "Loss": Loss, "F": F, "nn": nn, "torch": torch}
    for text in page.read_text().split("```python\n")[1:]:
        exec(text.partition("```")[0], names)
    steps, config = Steps(), replace(SGD, epochs=8)
    args = {"preprocess": make_preprocess(), "config": config, "objective": names[name](), "callbacks": [steps]}
    fit(make_model(), make_data(96), **args)
    assert steps.rows[-1]["loss"] < steps.rows[0]["loss"] - 0.1


@pytest.mark.parametrize(("count", "of"), [(12, 1), (12, 2), (12, 3)])
def test_neighbours_stay_on_one_process(count, of):
    shares = [share_rows(count, number, of, "neighbours") for number in range(of)]
    assert sorted(np.concatenate(shares)) == list(range(count))
    assert all((share[::2] + 1 == share[1::2]).all() and (share[::2] % 2 == 0).all() for share in shares)
