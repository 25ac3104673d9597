"""Tracer: compressed storage for backward (SlimFit) as an op set: what is stored, and the gradients that it gives."""

from functools import partial

import torch
from compressed_storage import Compressed, pack4, q8, u8, unpack4
from torch.nn import GELU, LayerNorm, Linear

from golden import Case, cases
from leanvit.anatomy import Ops, open_model
from zoo import build, images

exactly = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)


@cases("slimfit", "primitives")
def test_primitives(case: Case):
    given, want, ops = case.group("input/"), case.group("output/"), Compressed()
    x = given["x"]
    for stored, key in ((q8(x), "q_8bit"), (u8(x.softmax(-1)), "q_u8"), (pack4(x), "packed4")):
        assert torch.equal(stored.float(), want[key])
    assert torch.equal(unpack4(pack4(x), x.shape) * 2, want["q_4bit"])
    calls = {"gelu": partial(ops.act, "act", GELU()), "matmul": partial(ops.matmul, "matmul1")}
    calls["softmax_matmul"] = lambda scores, v: ops.matmul("matmul2", ops.softmax("softmax", scores), v)
    for name in (key.removesuffix(".y") for key in want if key.endswith(".y")):
        own = {key: t for key, t in case.group(f"input/{name}.").items() if key != "grad_out"} or {"x": x}
        leaves = {key: t.clone().requires_grad_() for key, t in own.items()}
        call = calls.get(name)
        if weights := case.group(f"weights/{name}."):
            norm = weights["weight"].ndim == 1
            module = LayerNorm(x.shape[-1], eps=1e-12) if norm else Linear(*weights["weight"].shape[::-1])
            module.load_state_dict(weights)
            module.weight.requires_grad_(name.endswith("frozen0"))
            site = "mlp.fc2" if "_q1_" in name else "mlp.fc1"  # the input of fc2 is stored in 8 bits
            call = partial(ops.norm if norm else ops.linear, site, module)
        out = call(*leaves.values())
        exactly(out, want[f"{name}.y"])
        out.backward(given[f"{name}.grad_out"])
        leaves |= {"w": module.weight, "b": module.bias} if weights else {}
        for key, t in leaves.items():
            exactly(t.grad, want.get(f"{name}.grad_{key}"))


def run(model, ops, x):
    """Logits, and the bytes saved for backward, parameters not counted."""
    kept, own = {}, {p.data_ptr() for p in model.parameters()}

    def pack(t):
        kept[t.data_ptr()] = 0 if t.data_ptr() in own else t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        return model(x, ops=ops), sum(kept.values())


def test_the_text_runs_and_stores_through_it():
    model = open_model(build("vit_tiny_patch16_224"))
    for block in model.blocks:
        block.attn.fused = False
    want, plain = run(model, Ops(), images(model))
    trained, some = run(model, Compressed(), images(model))
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    frozen, little = run(model, Compressed(), images(model))
    assert torch.equal(trained, want) and torch.equal(frozen, want)
    assert 1.5 * some < plain and 3 * little < plain
