"""Tracer: integer-only arithmetic (I-ViT, arXiv 2207.01405, section 3) as an op set whose values carry their scale."""

from collections import namedtuple

import torch

from golden import Case, cases, vit
from leanvit.anatomy import Ops, open_model


class Q(namedtuple("Q", "i s")):  # integers in float64, scale in float32 (None: a float before its first quantizer)
    shape = property(lambda self: self.i.shape)
    value = property(lambda self: self.i if self.s is None else self.i.float() * self.s)

    def on(self, s):
        if self.s is None:
            return (self.i / s).round().double()
        mantissa, exponent = torch.frexp(self.s.double() / s.double())
        return (self.i * (mantissa * 2**31 + 0.5).floor() / 2.0 ** (31 - exponent)).round()


class Integer(Ops):
    fused, tracking = False, True
    over = lambda self, total, top=2**31 - 1: (top / total.clamp(max=top)).floor()  # noqa: E731
    matmul = lambda self, site, a, b: Q(a.i @ b.i, a.s * b.s)  # noqa: E731
    scale = lambda self, site, x, factor: Q(x.i, x.s * factor)  # noqa: E731
    rearrange = lambda self, site, x, fn: Q(fn(x.i), x.s)  # noqa: E731
    cat = lambda self, site, xs: Q(torch.cat([x.i for x in xs], 1), xs[-1].s)  # noqa: E731
    expand = lambda self, site, p, x: Q(Q(p, None).on(x.s).expand(len(x.i), -1, -1), x.s)  # noqa: E731
    param = lambda self, site, p, x: self.quantize(site, 16, Q(p, None))  # noqa: E731
    add = lambda self, site, x, y: self.quantize(site, 16, x, y)  # noqa: E731
    conv = lambda self, site, m, x: self.linear(site, m, Q(x, None), lambda *a: torch.conv2d(*a, m.stride))  # noqa: E731

    def quantize(self, site, bits, *xs):  # the sum of `xs` on the scale of the range that was tracked at `site`
        new, old = torch.stack(torch.aminmax(sum(x.value for x in xs))), self.range.get(site)
        self.range[site] = new if old is None else 0.95 * old + 0.05 * new if self.tracking else old
        s = self.range[site].abs().max() / (2 ** (bits - 1) - 1)
        return self.seen.setdefault(site, Q(sum(x.on(s) for x in xs).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), s))

    def linear(self, site, module, x, op=torch.nn.functional.linear):
        x, w = self.quantize(f"{site}.in", 8, x), module.weight
        s = (w.flatten(1).abs().amax(1) / 127).view(-1, *[1] * (w.ndim - 2))  # over the last dimension, or a map
        w, b = (w / s.unsqueeze(1)).round().clamp(-128, 127), (module.bias / (s.flatten() * x.s)).round()
        out = Q(op(x.i, w.double(), b.double()), s * x.s)
        return out if site == "head" else self.quantize(site, 16 if site.endswith(("proj", "fc2")) else 8, out)

    def exp(self, i, s, n):
        i, x0 = i + (i / 2).floor() - (i / 16).floor(), (-1 / s).floor().double()
        q = (i.maximum(n * x0) / x0).floor()
        return (((i.maximum(n * x0) - x0 * q) / 2 - x0) * 2 ** (n - q)).floor().clamp(min=0)

    def norm(self, site, module, x):
        y, k, s = x.i - x.i.mean(-1, keepdim=True).round(), 2.0**16, torch.tensor(x.shape[-1]).sqrt() / 2**30
        for _ in range(10):
            k = ((k + (y.square().sum(-1, keepdim=True) / k).floor()) / 2).floor()
        return Q((y * self.over(k) / 2).floor() + (module.bias / module.weight / s).floor(), s * module.weight)

    def softmax(self, site, scores):
        e = self.exp((x := self.quantize(site, 8, scores)).i - x.i.amax(-1, keepdim=True), x.s, 15)
        return Q((e * self.over(e.sum(-1, keepdim=True)) / 2**16).floor(), torch.tensor(2.0**-15))

    def act(self, site, module, x):
        e, e0 = (self.exp(t - x.i.amax(-1, keepdim=True), 1.702 * x.s, 23) for t in (x.i, torch.zeros_like(x.i)))
        return Q(x.i * (e * self.over(e + e0) / 2**24).floor(), x.s * 2**-7)


@cases("ivit", "deit")
@torch.no_grad()
def test_integer_only(case: Case):
    model, ops = open_model(vit(case.meta["constructor"], case.group("weights/"))), Integer()
    given, mid, output, ops.range = case.group("input/"), case.group("mid/"), case.group("output/"), {}
    slack = 3 * case.meta["measured"]["exact_integer_softmax_gelu_vs_official_max_abs"]
    for batch in ("calib0", "calib1", "eval"):
        ops.tracking, ops.seen = batch != "eval", {}
        got, want = model(given[batch], ops=ops).value, output[batch.replace("calib", "train")]
        torch.testing.assert_close(got, want, rtol=0, atol=slack)
        assert ((got.argmax(1) == want.argmax(1)) | (want.topk(2).values.diff().abs()[:, 0] < 2 * slack)).all()
    for ours, theirs in {"pos_add": "qact1", "blocks.0.attn.qkv": "blocks.0.attn.qact1"}.items():  # before any softmax
        assert torch.equal(ops.seen[ours].i, (mid[f"{theirs}.out"] / mid[f"{theirs}.scale"]).double().round())
