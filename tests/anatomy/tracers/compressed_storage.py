"""The op set of the tracer `test_storage.py`: compressed storage for backward (SlimFit, arXiv 2305.18513)."""

import torch
from torch.nn import functional

from leanvit.anatomy import Ops

q8 = lambda x: (x * 16).round().clamp(-128, 127).to(torch.int8)  # noqa: E731
u8 = lambda p: (p * 256).round().clamp(max=255).to(torch.uint8)  # noqa: E731
real = lambda t: {torch.int8: t / 16, torch.uint8: t / 256}.get(t.dtype, t)  # noqa: E731
pack4 = lambda x: ((x * 2).round().clamp(-8, 7) + 8).flatten().unflatten(0, (2, -1)).mul_(TWO).sum(0).byte()  # noqa: E731
unpack4 = lambda t, shape: (torch.cat([t // 16, t % 16]).view(shape) - 8.0) / 2  # noqa: E731
TWO = torch.tensor([[16.0], [1.0]])


class Stored(torch.autograd.Function):  # f(*inputs), whose backward sees the gradient and what was stored
    @staticmethod
    def forward(ctx, f, back, store, *inputs):
        ctx.back = back
        ctx.save_for_backward(*store())
        return f(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return None, None, None, *ctx.back(grad, *ctx.saved_tensors)


def normalised(x, eps):
    var, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
    return (x - mean) * (var + eps).rsqrt(), (var + eps).rsqrt()


class Compressed(Ops):
    fused = False

    def linear(self, site, m, x):
        def back(g, *x):
            rows = g.flatten(0, -2)
            return g @ m.weight, rows.T @ real(x[0]).flatten(0, -2) if x else None, rows.sum(0)

        store = lambda: [q8(x) if site.endswith("fc2") else x] if m.weight.requires_grad else []  # noqa: E731
        return Stored.apply(functional.linear, back, store, x, m.weight, m.bias)

    def norm(self, site, m, x):
        def back(g, kept, *sparse):
            n, rstd = normalised(kept, m.eps) if not sparse else (torch.zeros_like(g), sparse[1])
            if sparse:
                n.view(-1)[sparse[0].long()] = kept
            h, grad_w = g * m.weight, None if sparse else (g * n).flatten(0, -2).sum(0)
            grad_x = rstd * (h - h.mean(-1, keepdim=True) - n * (h * n).mean(-1, keepdim=True))
            return grad_x, grad_w, g.flatten(0, -2).sum(0)

        def store():
            n, rstd = normalised(x, m.eps)
            top = n.flatten().abs().topk(n.numel() // 10).indices
            return [x] if m.weight.requires_grad else [n.flatten()[top], top.int(), rstd]

        f = lambda x, w, b: functional.layer_norm(x, w.shape, w, b, m.eps)  # noqa: E731
        return Stored.apply(f, back, store, x, m.weight, m.bias)

    def act(self, site, m, x):
        shape = x.shape
        return Stored.apply(m, lambda g, t: torch.func.vjp(m, unpack4(t, shape))[1](g), lambda: [pack4(x)], x)

    def matmul(self, site, a, b):
        store = lambda: [getattr(a, "stored", q8(a)), q8(b)]  # noqa: E731
        return Stored.apply(torch.matmul, lambda g, a, b: (g @ real(b).mT, real(a).mT @ g), store, a, b)

    def softmax(self, site, x):
        p = u8(x.detach().softmax(-1))
        back = lambda g, p: [real(p) * (g - (real(p) * g).sum(-1, keepdim=True))]  # noqa: E731
        out = Stored.apply(lambda s: s.softmax(-1), back, lambda: [p], x)
        out.stored = p  # the product with v needs the same bytes
        return out
