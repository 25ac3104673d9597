"""Hybrids opened as traced graphs: the same model in eval and train mode, and every product within reach."""

from __future__ import annotations

import copy
import re
from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from twins import same, same_draws, twins

from hybrid_zoo import HYBRIDS, build, images
from leanvit.anatomy import Ops, close_model, open_model
from leanvit.anatomy.traced.model import OpenTraced
from leanvit.errors import BadInput, Refused
from leanvit.measure import count
from leanvit.recipe.compat import check_order
from leanvit.tokens.evit import EViT
from leanvit.tokens.tome import ToMe
from matrix import every

NAMES = sorted(HYBRIDS)


def pair(name: str, **kwargs: Any) -> tuple[nn.Module, OpenTraced]:
    return twins(build(name, **kwargs))


class Counted(Ops):
    """Counts the multiply-accumulates that pass through the op set, and which sites did them."""

    fused = False

    def __init__(self) -> None:
        self.macs: Counter[str] = Counter()
        self.seen: list[tuple[str, str]] = []

    def conv(self, site: str, module: Any, x: Tensor) -> Tensor:
        out = module(x)
        self.macs[site] += out.numel() * module.weight[0].numel()
        return out

    def linear(self, site: str, module: Any, x: Tensor) -> Tensor:
        out = module(x)
        self.macs[site] += out.numel() * module.in_features
        return out

    def matmul(self, site: str, a: Tensor, b: Tensor) -> Tensor:
        out = a @ b
        self.macs[site] += out.numel() * a.shape[-1]
        return out

    def norm(self, site: str, module: Any, x: Tensor) -> Tensor:
        self.seen.append(("norm", site))
        return module(x)

    def act(self, site: str, module: Any, x: Tensor) -> Tensor:
        self.seen.append(("act", site))
        return module(x)

    def softmax(self, site: str, scores: Tensor) -> Tensor:
        self.seen.append(("softmax", site))
        return super().softmax(site, scores)


@pytest.mark.parametrize("name", every(4, NAMES))
def test_the_opened_model_is_the_original_and_every_product_passes_through_the_op_set(name: str) -> None:
    """Outputs, gradients and statistics bit for bit; MACs counted by site are all that the original executes."""
    model, opened = pair(name)
    assert {k: v.shape for k, v in opened.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    x, counted = images(model), Counted()
    with torch.no_grad():
        same(model(x), opened(x))
        opened(x[:1], ops=counted)
    check_reach(model, opened, counted)
    want, got = (run(net.train(), x) for net in (model, opened))
    same(want, got)
    for out in (want, got):
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    grads = {key: p.grad for key, p in opened.named_parameters() if p.grad is not None}
    wanted = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert set(grads) == set(wanted) and len(wanted) > 40
    largest = max(grad.abs().max().item() for grad in wanted.values())
    for key, grad in wanted.items():
        # cuts are replayed part by part, so sums of their gradients may be taken in another order
        atol = 1e-5 * largest if name == "iformer_s" else 0
        torch.testing.assert_close(grads[key], grad, rtol=0, atol=atol, msg=key)
    same_state(model, opened)  # running statistics moved alike


def run(net: nn.Module, x: Tensor) -> Any:
    torch.manual_seed(5)  # some models drop paths by default
    return net(x)


def check_reach(model: nn.Module, opened: OpenTraced, counted: Counted) -> None:
    size = model.pretrained_cfg["input_size"]
    cost, ours = count(model, size), count(opened, size)
    assert sum(counted.macs.values()) == cost.macs and cost.macs > 1e6
    assert (ours.macs, ours.by_op, ours.params) == (cost.macs, cost.by_op, cost.params)
    assert set(opened.sites()) | set(opened.products()) == set(counted.macs)
    sites = [site for _, site in counted.seen]
    assert len(sites) == len(set(sites))
    norms = [n for n, m in model.named_modules() if re.search("BatchNorm|LayerNorm|GroupNorm", type(m).__name__)]
    ran = [site for kind, site in counted.seen if kind == "norm"]
    assert set(ran) <= set(norms) and len(ran) > len(norms) / 2  # some models hold norms that they do not run


def same_state(model: nn.Module, opened: nn.Module) -> None:
    theirs = opened.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.parametrize("name", ["mobilevit_xxs", "tiny_vit_5m_224"])
def test_fused_attention_is_decomposed_only_for_op_sets_that_must_see_it(name: str) -> None:
    class Fused(Counted):
        fused = True

        def attention(self, site: str, *args: Any, **kwargs: Any) -> Any:
            self.seen.append(("attention", site))
            return super().attention(site, *args, **kwargs)

    model, opened = pair(name)
    x = images(model)
    fused, apart = Fused(), Counted()
    with torch.no_grad():
        same(model(x), opened(x, ops=fused))
        torch.testing.assert_close(opened(x, ops=apart), model(x), rtol=1e-4, atol=1e-4)
    whole = [site for kind, site in fused.seen if kind == "attention"]
    assert whole and not any("matmul" in site for site in fused.macs)
    assert {f"{site}.matmul{i}" for site in whole for i in (1, 2)} <= set(apart.macs)
    assert {f"{site}.softmax" for site in whole} == {site for kind, site in apart.seen if kind == "softmax"}


def test_sites_are_paths_of_modules_with_kind_and_number() -> None:
    opened = pair("efficientformer_l1")[1]
    assert any(re.fullmatch(r"stages\.3\..+\.token_mixer\.qkv", site) for site in opened.sites())
    assert all(isinstance(m, nn.Conv2d | nn.Linear) for m in opened.sites().values())
    assert all(re.fullmatch(r".+\.token_mixer\.matmul[12]", site) for site in opened.products())


@pytest.mark.parametrize("size", [(96, 64), (80, 112)])
def test_other_image_sizes_where_the_architecture_takes_them(size: tuple[int, int]) -> None:
    model, opened = pair("mobilevit_xxs")
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same(model(x), opened(x))


def test_a_size_that_the_model_cannot_take_is_named() -> None:
    opened = pair("efficientformer_l1")[1]
    with pytest.raises(BadInput, match=r"images are 3x192x192, the model takes 3x224x224"):
        opened(torch.zeros(1, 3, 192, 192))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_what_they_are(dtype: torch.dtype) -> None:
    model = build("mobilevit_xxs").to(dtype)
    opened = open_model(copy.deepcopy(model))
    x = images(model).to(dtype)
    with torch.no_grad():
        same(model(x), opened(x))


def test_autocast_is_followed() -> None:
    model, opened = pair("mobilevit_xxs")
    x = images(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        same(model(x), opened(x))
    with torch.no_grad():
        same(model(x), opened(x))


def test_regularisation_draws_the_same_numbers() -> None:
    model, opened = pair("mobilevit_xxs", drop_path_rate=0.3, drop_rate=0.2)
    same_draws(model, opened, images(model, 6))


def test_a_frozen_norm_stays_frozen_in_training() -> None:
    model, opened = pair("mobilevit_xxs")
    for net in (model, opened):
        net.train()
        net.stem.bn.eval()
    same(model(images(model)), opened(images(model)))
    same_state(model, opened)


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformerv2_s0"])
def test_bias_tables_follow_their_parameter(name: str) -> None:
    """timm keeps gathered bias tables in eval mode; neither the opened nor the closed model may see an old one."""
    model, opened = pair(name)
    x = images(model)
    with torch.no_grad():
        before = model(x)  # fills timm's cache
        for net in (model, opened):
            for key, p in net.named_parameters():
                if key.endswith("attention_biases"):
                    p.add_(torch.linspace(-3, 3, p.numel()).view_as(p))
        assert torch.equal(model(x), before)  # the stale table that must not be copied
        after = opened(x)
        assert not torch.equal(after, before)
        model.train()  # empties timm's cache
        model.eval()  # some of timm's modules return nothing here
        same(model(x), after)
        same(close_model(opened)(x), after)


def test_a_stale_table_does_not_hinder_opening() -> None:
    model = build("efficientformer_l1")
    with torch.no_grad():
        model(images(model))
        for key, p in model.named_parameters():
            if key.endswith("attention_biases"):
                p.add_(1 + torch.arange(p.numel()).view_as(p))
        opened = open_model(model)
        assert torch.equal(opened(images(model)), close_model(opened)(images(model)))


def test_distilled_training_gives_two_logits_in_train_mode_only() -> None:
    model, opened = pair("levit_128s")
    x = images(model)
    for net in (model, opened):
        net.set_distilled_training(True)
    with torch.no_grad():
        same(model(x), opened(x))
        want, got = model.train()(x), opened.train()(x)
    assert isinstance(got, tuple) and len(got) == 2
    same(want, got)
    with pytest.raises(Refused, match="no distillation head"):
        pair("mobilevit_xxs")[1].set_distilled_training()


# --- what a timm model offers -------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilevit_xxs", "edgenext_xx_small"])
def test_features_head_and_intermediates(name: str) -> None:
    model, opened = pair(name)
    x = images(model)
    with torch.no_grad():
        features = model.forward_features(x)
        same(features, opened.forward_features(x))
        same(model.forward_head(features), opened.forward_head(features))
        same(model.forward_head(features, pre_logits=True), opened.forward_head(features, pre_logits=True))
        same(model.forward_intermediates(x), opened.forward_intermediates(x))
        options: dict[str, Any] = {"indices": [0, -1], "intermediates_only": True}
        same(model.forward_intermediates(x, **options), opened.forward_intermediates(x, **options))
    assert opened.feature_info == model.feature_info and opened.num_features == model.num_features


@pytest.mark.parametrize("name", ["mobilevit_xxs", "efficientformer_l1"])
def test_a_new_classifier(name: str) -> None:
    model, opened = pair(name)
    opened.reset_classifier(11)
    assert opened.num_classes == 11 and opened(images(model)).shape == (2, 11)
    closed = close_model(opened)
    assert type(closed) is type(model) and closed.num_classes == 11
    with torch.no_grad():
        same(closed(images(model)), opened(images(model)))
    assert type(opened.get_classifier()) is type(closed.get_classifier())


def test_closed_again_it_is_the_timm_model_with_the_new_weights() -> None:
    model = build("mobilevit_xxs")
    opened = copy.deepcopy(open_model(model))
    with torch.no_grad():
        opened.head.fc.weight.add_(1)
    closed = close_model(opened)
    x = images(model)
    with torch.no_grad():
        same(closed(x), opened(x))
        assert not torch.equal(closed(x), model(x))


def test_gradient_checkpointing_is_refused() -> None:
    opened = pair("mobilevit_xxs")[1]
    opened.set_grad_checkpointing(False)
    with pytest.raises(Refused, match="gradient checkpointing"):
        opened.set_grad_checkpointing()
    model = build("mobilevit_xxs")
    model.set_grad_checkpointing()
    with pytest.raises(Refused, match="gradient checkpointing"):
        open_model(model)


@pytest.mark.parametrize("method", [EViT(), ToMe()], ids=["evit", "tome"])
def test_methods_that_need_blocks_are_refused_by_name(method: Any) -> None:
    with pytest.raises(Refused, match=rf"{method.slug} needs .*transformer blocks .*which this model does not have"):
        check_order(pair("mobilevit_xxs")[1].traits(), [method])


# --- export and compilation ---------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilevit_xxs", "efficientformer_l1"])
def test_exported_for_any_batch(name: str) -> None:
    from leanvit.deploy.tracing import trace

    model, opened = pair(name)
    with torch.no_grad():
        program = trace(opened, model.pretrained_cfg["input_size"], None)
        for batch in (1, 5):
            x = images(model, batch)
            torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)


@pytest.mark.e2e
@pytest.mark.skipif(torch.__version__.startswith("2.9."), reason="the compiler of torch 2.9 breaks the graph")
def test_captured_whole_by_the_compiler() -> None:
    model, opened = pair("efficientvit_b0")
    compiled = torch.compile(opened, backend="eager", fullgraph=True)
    with torch.no_grad():
        same(model(images(model)), compiled(images(model)))


# --- refusals ------------------------------------------------------------------------


class Toy(nn.Module):
    """One convolution and whatever a test hangs onto it."""

    def __init__(self, then: Any = None, **parts: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        for key, part in parts.items():
            self.add_module(key, part)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.conv(x))


def traced(toy: nn.Module) -> OpenTraced:
    opened = OpenTraced(source=toy, size=(3, 8, 8))
    opened.sites()
    return opened


@pytest.mark.parametrize(
    ("then", "parts", "reason"),
    [
        (lambda m, x: m.rnn(x), {"rnn": nn.LSTM(4, 4)}, "rnn is a LSTM, which the traced level does not know"),
        (lambda m, x: torch.fft.fft(x).real, {}, "calls fft_fft, which the traced level does not know"),
        (lambda m, x: nn.functional.conv2d(x, m.conv.weight[:, :1].expand(4, 4, 3, 3)), {}, "calls conv2d"),
        (lambda m, x: m.conv(x[:, :3]), {}, r"conv \(Conv2d\) runs 2 times in one forward"),
        (lambda m, x: x + 1 if x.shape[0] > 4 else x * 2, {}, "another way for another batch size"),
        (lambda m, x: x * (1 / x.shape[0]), {}, "depends on the batch size in a way"),
        (lambda m, x: x[:, 0] if x.sum() else x[:, 1], {}, "cannot be recorded"),
        (lambda m, x: x + KEPT, {}, "neither a parameter, a buffer nor computed"),
        (lambda m, x: x.__setitem__(0, 0.0) or x, {}, "writes into a tensor"),
        (lambda m, x: x.max(1)[0], {}, "calls max"),
    ],
)
def test_what_cannot_be_followed_is_named(then: Any, parts: dict[str, nn.Module], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        traced(Toy(then, **parts))


KEPT = torch.ones(1)


def test_a_part_that_takes_a_name_of_ours_is_refused() -> None:
    with pytest.raises(Refused, match="'embed'"):
        traced(Toy(lambda m, x: x, embed=nn.Identity()))


def test_numbers_that_depend_on_the_batch_are_replayed() -> None:
    toy = Toy(lambda m, x: x.reshape(x.shape[0] * 4, 6, 6)[: x.shape[0] * 2 + 1].sum((1, 2)))
    opened = traced(toy)
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 8, 8)
        same(toy(x), opened(x))


def test_a_convolutional_network_is_no_hybrid() -> None:
    with pytest.raises(Refused, match="not of a family"):
        open_model(timm.create_model("regnetz_b16", num_classes=3))


def test_a_patched_forward_and_hooks_are_named() -> None:
    model = build("mobilevit_xxs")
    model.stem.forward = lambda x: x
    with pytest.raises(Refused, match="stem has a forward of its own"):
        open_model(model)
    model = build("mobilevit_xxs")
    model.head.register_forward_hook(lambda *args: None)
    with pytest.raises(Refused, match="head carries forward"):
        open_model(model)


def test_nothing_is_left_on_the_modules() -> None:
    model = build("mobilevit_xxs")
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    open_model(model)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before
    with pytest.raises(Refused):
        traced(toy := Toy(lambda m, x: torch.fft.fft(x).real))
    assert "forward" not in vars(toy.conv)


def test_surgery_on_widths_asks_for_a_new_recording() -> None:
    toy = Toy(lambda m, x: m.fc(x.reshape(x.shape[0], m.width, -1).mean(2)), fc=nn.Linear(4, 2))
    toy.width = 4
    opened = traced(toy)
    toy.width, toy.fc, opened.fc = 2, nn.Linear(2, 2), nn.Linear(2, 2)
    toy.conv = opened.conv = nn.Conv2d(3, 2, 3)
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(RuntimeError):
        opened(x)
    opened.retrace()
    assert opened(x).shape == (2, 2)
