"""One counter: true MACs whatever the path of execution, nothing silently missed, the model left as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import set_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from leanvit.errors import BadInput
from leanvit.measure import count
from leanvit.measure.formulas import FORMULAS, NO_MACS


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def macs(function, *size: int, batch: int = 1) -> int:
    return count(Function(function), size, batch=batch).macs


def tiny_vit(**kwargs) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **(sizes | kwargs))


def vit_macs(*, tokens: int = 17, width: int = 48, depth: int = 2, classes: int = 5) -> int:
    """By hand: patches, then qkv, projection and MLP (12 width²) and two products of attention a block, head."""
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    return (tokens - 1) * 3 * 8 * 8 * width + depth * block + width * classes


# Published gmacs (timm's results tables) and ours; theirs also count norms, see `count`.
PUBLISHED = {
    "deit_tiny_patch16_224": (1.26, 1.2537),
    "deit_small_patch16_224": (4.61, 4.5989),
    "deit_base_patch16_224": (17.58, 17.5638),
    "resnet50": (4.11, 4.0892),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_gmacs_of_known_networks(name: str) -> None:
    published, products = PUBLISHED[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    model = model.to_empty(device="cpu")
    norms: list[int] = []
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            weight = 5 if isinstance(module, nn.LayerNorm) else 2
            module.register_forward_hook(lambda m, args, out, w=weight: norms.append(w * args[0].numel()))
    cost = count(model, (3, 224, 224))
    assert cost.uncounted == ()
    assert cost.gmacs == pytest.approx(products, abs=5e-5)
    assert (cost.macs + sum(norms)) / 1e9 == pytest.approx(published, abs=5e-3)  # the last published digit


def test_the_parity_table_of_dense_deits() -> None:
    shared = Path(os.environ.get("LEANVIT_SHARED", Path(__file__).parents[3] / "shared"))
    table = shared / "parity" / "evit" / "variants.json"
    if not table.exists():
        pytest.skip(f"no reference table at {table} (set LEANVIT_SHARED)")
    computed = json.loads(table.read_text())["computed"]
    for size in ("tiny", "small"):
        cost = count(timm.create_model(f"deit_{size}_patch16_224"), (3, 224, 224))
        expected = computed[f"deit_{size}_r1.0_drop"]
        assert (cost.params, round(cost.gmacs, 4)) == (expected["params"], expected["MACs_G"])


def test_a_vit_by_hand_fused_and_not() -> None:
    fused = count(tiny_vit(), (3, 32, 32))
    set_fused_attn(False)
    try:
        explicit = count(tiny_vit(), (3, 32, 32))
    finally:
        set_fused_attn(True)
    assert fused.macs == explicit.macs == vit_macs()
    assert "bmm" in explicit.by_op and "bmm" not in fused.by_op  # they really took different paths
    assert fused.by_module["blocks.1.attn"] == explicit.by_module["blocks.1.attn"]


@pytest.mark.parametrize("batch", [1, 3])
def test_macs_are_of_one_image(batch: int) -> None:
    assert count(tiny_vit(), (3, 32, 32), batch=batch).macs == vit_macs()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_may_enter_its_own_gradient_mode(context) -> None:
    """In inference mode operators arrive whole (`aten.linear`), with gradients decomposed."""
    inner = tiny_vit()

    def forward(x: Tensor) -> Tensor:
        with context():
            return inner(x)

    assert macs(forward, 3, 32, 32) == vit_macs()


def test_products_and_convolutions_as_torch_counts_them() -> None:
    """Where torch's own counter knows the operators, both agree."""
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.Conv2d(6, 6, (1, 3), dilation=2, bias=False),
        nn.Flatten(2),
        Function(lambda x: x @ x.mT + torch.einsum("bij,bkj->bik", x, x)),
        nn.Linear(6, 10),
        nn.Linear(10, 3, bias=False),
    )
    with FlopCounterMode(display=False) as reference, torch.no_grad():
        model(torch.randn(2, 4, 8, 8))
    assert count(model, (4, 8, 8), batch=2).flops * 2 == reference.get_total_flops() > 0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x @ torch.ones(7), 5 * 7),
        (lambda x: torch.dot(x.flatten(), x.flatten()), 35),
        (lambda x: torch.addbmm(torch.ones(5, 5), x, x.mT), 5 * 5 * 7),
        (lambda x: torch.baddbmm(torch.ones(1, 5, 5), x, x.mT), 5 * 5 * 7),
        (lambda x: F.linear(x, torch.ones(3, 7)), 5 * 3 * 7),
        (lambda x: torch._int_mm(torch.ones(32, 64).char(), torch.ones(64, 16).char()), 32 * 64 * 16),
        (lambda x: F.conv1d(x, torch.ones(4, 5, 3)), 4 * 5 * 5 * 3),
        (lambda x: x.softmax(-1) * x.sigmoid() + x.cumsum(-1).sort().values, 0),
    ],
)
def test_operators(function, expected: int) -> None:
    assert macs(function, 5, 7) == expected


@pytest.mark.parametrize(
    "attend",
    [
        lambda q: F.scaled_dot_product_attention(q, q, q),
        lambda q: F.scaled_dot_product_attention(q, q, q, attn_mask=torch.zeros(10, 10)),
        lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True),  # a causal mask counts in full
        lambda q: F.scaled_dot_product_attention(q.bfloat16(), q.bfloat16(), q.bfloat16()),
        lambda q: F.softmax(q @ q.mT, -1) @ q,
    ],
)
def test_attention_counts_the_same_in_every_kernel(attend) -> None:
    """torch 2.13 counts fused attention on the CPU as zero (pytorch issue 195460)."""
    assert macs(attend, 2, 10, 16) == 2 * 2 * 10 * 10 * 16


def test_attention_with_other_widths_for_values() -> None:
    assert macs(lambda q: F.scaled_dot_product_attention(q, q, q[..., :4]), 2, 10, 16) == 2 * 10 * 10 * (16 + 4)


def test_fast_paths_of_torchs_own_transformer() -> None:
    """Without gradients the whole layer is one operator; with them it is many."""
    layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=80, batch_first=True)
    fast = count(layer, (10, 32), batch=2)
    assert set(fast.by_op) == {"_transformer_encoder_layer_fwd"}
    slow = count(Function(torch.enable_grad()(layer.eval())), (10, 32), batch=2)
    assert "_transformer_encoder_layer_fwd" not in slow.by_op
    assert fast.macs == slow.macs == 10 * (4 * 32 * 32 + 2 * 32 * 80) + 2 * 10 * 10 * 32

    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    fast = count(Function(lambda x: attention.eval()(x, x, x)[0]), (10, 32))
    assert set(fast.by_op) == {"_native_multi_head_attention"}
    assert fast.macs == 10 * 4 * 32 * 32 + 2 * 10 * 10 * 32


def test_compiled_models_are_counted_as_written() -> None:
    model = tiny_vit().eval()
    plain, wrapped = count(model, (3, 32, 32)), count(torch.compile(model, backend="eager"), (3, 32, 32))
    assert wrapped == plain and plain.macs == vit_macs()
    model.blocks[0].compile(backend="eager")
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert count(model, (3, 32, 32)) == plain


def test_modules_are_inclusive_and_functional_calls_find_their_module() -> None:
    cost = count(tiny_vit(), (3, 32, 32))
    block = {name: n for name, n in cost.by_module.items() if name.startswith("blocks.0.")}
    assert cost.by_module[""] == cost.macs
    assert cost.by_module["blocks.0"] == block["blocks.0.attn"] + block["blocks.0.mlp"]
    attention = block["blocks.0.attn"] - block["blocks.0.attn.qkv"] - block["blocks.0.attn.proj"]
    assert attention == 2 * 17 * 17 * 48  # F.scaled_dot_product_attention, called inside the module
    assert sum(cost.by_op.values()) == cost.macs


def test_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count(model, (4,)).params == 16 + 4 + 4


@torch.library.custom_op("leanvit_test::product", mutates_args=())
def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.from_numpy(a.numpy() @ b.numpy())


def test_an_unknown_operator_is_named_with_its_module_and_shapes() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Function(lambda x: _product(_product(x, x), x)))
    with pytest.warns(UserWarning, match="leanvit_test.product in 1 on .* 2 calls in all"):
        cost = count(model, (6,), batch=6)
    (gap,) = cost.uncounted
    assert (gap.op, gap.module, gap.shapes, gap.calls) == ("leanvit_test.product", "1", ((6, 6), (6, 6)), 2)
    assert cost.macs == 36  # what is known still counts


@pytest.mark.filterwarnings("ignore:MACs are a lower bound", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("function", "op"),
    [
        (nn.LSTM(8, 4), "rnn"),
        (lambda x: x.to_sparse() @ x.mT, "mm"),  # a layout whose work is not the shapes' product
        (lambda x: torch.nested.as_nested_tensor([x, x[:4]]) @ torch.nested.as_nested_tensor([x, x]), "matmul|bmm"),
        (lambda x: torch.cdist(x, x), "_cdist_forward"),  # its kernel may multiply matrices
        (lambda x: torch.fft.rfft(x), "_fft_r2c"),
    ],
)
def test_work_that_has_no_formula_is_named(function, op: str) -> None:
    inner = function
    names = [gap.op for gap in count(Function(lambda x: inner(x[0])), (8, 8)).uncounted]
    assert any(part in name for name in names for part in op.split("|")), names


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_linears_of_torch_count() -> None:
    """Packed weights are no tensors: the operator has one float tensor argument and still multiplies matrices."""
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU())
    try:
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        model(torch.ones(1, 16))
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this torch has no dynamic quantization: {error}")
    assert count(model, (5, 16), batch=2).macs == 5 * 16 * 8


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(tiny_vit(), nn.Dropout(0.5), nn.BatchNorm1d(5), Function(lambda x: x + torch.rand(1)))
    model.train()
    model[0].blocks[0].eval()
    modes = [m.training for m in model.modules()]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    count(model, (3, 32, 32), batch=2)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled() and model(torch.randn(2, 3, 32, 32)).requires_grad


def test_nothing_stays_behind_when_the_model_fails() -> None:
    from torch.nn.modules import module as torch_module

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("broken on purpose")

    model = nn.Sequential(nn.Linear(3, 3), Function(fail)).train()
    hooks = len(torch_module._global_forward_hooks), len(torch_module._global_forward_pre_hooks)
    with pytest.raises(RuntimeError, match="on purpose"):
        count(model, (3,))
    assert (len(torch_module._global_forward_hooks), len(torch_module._global_forward_pre_hooks)) == hooks
    assert all(m.training for m in model.modules())


def test_make_input_decides_what_the_model_sees() -> None:
    calls: list[int] = []

    def pair(batch: int) -> tuple[Tensor, Tensor]:
        calls.append(batch)
        return torch.ones(batch, 4, 6), torch.ones(batch, 6, 5)

    class Product(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a @ b

    assert count(Product(), (4, 6), batch=2, make_input=pair).macs == 4 * 6 * 5
    assert calls == [2]


def test_half_precision_models_get_their_own_dtype() -> None:
    assert count(nn.Linear(6, 4).bfloat16(), (6,)).macs == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": len}, "model must be a torch.nn.Module"),
        ({"input_size": 224}, "input_size must be positive integers"),
        ({"input_size": (3, 0, 4)}, "input_size must be positive integers"),
        ({"input_size": ()}, "input_size must be positive integers"),
        ({"batch": 0}, "batch must be a positive integer"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    accepted = {"model": nn.Linear(4, 4), "input_size": (4,), "batch": 1} | arguments
    with pytest.raises(BadInput, match=message):
        count(accepted["model"], accepted["input_size"], batch=accepted["batch"])


def test_no_operator_is_both_counted_and_harmless() -> None:
    assert not {name.removeprefix("aten.") for name in FORMULAS} & NO_MACS
