"""Tracer: relevance propagation (LRP-QViT, arXiv 2401.11243; alpha 1, beta 0) as an op set with its own backward."""

import torch
from torch.nn import functional as F

from golden import Case, cases, close, vit
from leanvit.anatomy import Ops, open_model


def sd(a, b):
    return a / (b.clamp(min=1e-9) + b.clamp(max=1e-9) + (b == 0) * 1e-9) * (b != 0)


def shares(f, *parts):  # the rule that gives each part of z = f(parts), linear in each, its share of z
    z, back = torch.func.vjp(f, *parts)
    return lambda r: [part * grad for part, grad in zip(parts, back(sd(r, z)), strict=True)]


class Rule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, found, site, f, rule, *inputs):
        ctx.found, ctx.site, ctx.rule = found, site, rule
        return f(*inputs)

    @staticmethod
    def backward(ctx, *rs):
        handed = ctx.rule(*rs)
        for side, tensors in (("R_out", rs), ("R_in", handed)):
            ctx.found.update({f"{side}/{ctx.site}.{i}": r for i, r in enumerate(tensors)})
        return None, None, None, None, *(r / 2 if "matmul" in ctx.site else r for r in handed)


class Relevance(Ops):
    fused = False
    matmul = lambda self, at, a, b: Rule.apply(self.found, at, torch.matmul, shares(torch.matmul, a, b), a, b)  # noqa: E731
    norm = act = lambda self, at, f, x: Rule.apply(self.found, at, f, lambda r: [r], x)  # unchanged through these
    softmax = lambda self, at, x: self.norm(at, torch.nn.Softmax(-1), x)  # noqa: E731
    scale = lambda self, at, x, factor: self.norm(at, lambda t: t * factor, x)  # noqa: E731

    def __init__(self):
        self.found = {}

    def linear(self, at, module, x):
        w = module.weight.clamp(min=0).T, module.weight.clamp(max=0).T
        rule = shares(lambda a, b: a @ w[0] + b @ w[1], x.clamp(min=0), x.clamp(max=0))
        return Rule.apply(self.found, at, module, lambda r: [sum(rule(r))], x)

    def conv(self, at, module, x):
        low, high = (pick(x, (1, 2, 3), keepdim=True).expand_as(x) for pick in (torch.amin, torch.amax))
        w = torch.cat([module.weight, -module.weight.clamp(min=0), -module.weight.clamp(max=0)], dim=1)
        rule = shares(lambda *parts: F.conv2d(torch.cat(parts, 1), w, stride=module.stride), x, low, high)
        return Rule.apply(self.found, at, module, lambda r: [sum(rule(r))], x)

    def add(self, at, x, y):
        def rule(r):
            parts = shares(torch.add, x, y)(r)
            share = r.sum() / sum(p.sum().abs() for p in parts)
            return [p * sd(p.sum().abs() * share, p.sum()) for p in parts]

        return Rule.apply(self.found, at, torch.add, rule, x, y)

    def clone(self, at, x):  # the case names the shortcut first
        rule = lambda *rs: [x * sum(sd(r, x) for r in rs)]  # noqa: E731
        return Rule.apply(self.found, at, lambda t: (t.clone(), t.clone()), rule, x)[::-1]


@cases("lrp_qvit", "vit_lrp")
def test_relevance(case: Case):
    model, ops = vit(case.meta["constructor"], case.group("weights/")), Relevance()
    model.norm.eps, given = 1e-5, case.group("input/")
    logits = open_model(model)(given["x"].requires_grad_(), ops=ops)
    close(logits, case.group("output/")["logits"], 1e-5)
    logits.backward(F.one_hot(given["target"], logits.shape[1]).float())
    want = {key.replace("/add", "/pos_add"): r for key, r in case.group("mid/").items() if key.startswith("R_")}
    for key in want.keys() - {"R_in/pool", "R_out/pool"}:  # pooling only moves elements: left to the text
        got = ops.found[key if key[-2:] in (".0", ".1") else f"{key}.0"]
        close(got.mT if key.endswith("matmul1.1") else got, want[key], 3e-4)  # float32 sums differ with the processor
    close(given["x"].grad.sum(1), case.group("output/")["full"], 1e-3)
    assert len(want) > 20 * len(model.blocks)
