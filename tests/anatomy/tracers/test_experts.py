"""Tracer: routed experts (M3ViT as in Edge-MoE, arXiv 2305.18691) in place of `block.mlp`, the task in the state."""

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, linear, one_hot

from golden import Case, cases, vit
from leanvit.anatomy import open_model


class Experts(nn.Module):
    """(x (B, N, C), state) -> (x, state): each token through its top k experts; scores are not renormalised."""

    def __init__(self, name, w, k):
        super().__init__()
        self.name, self.w, self.k = name, w, k

    def forward(self, x, state):
        tokens = x.flatten(0, 1)
        if f"gate.{state.task}.w_gate" in self.w:  # a gate for each task
            logits = tokens @ self.w[f"gate.{state.task}.w_gate"]
        else:  # one gate, told the task
            task = state.extra["edge_moe"].expand(len(tokens), -1)
            logits = torch.cat([tokens, task], dim=1) @ self.w["gate.w_gate"]
        score, index = logits.softmax(-1).topk(self.k)
        out = torch.zeros_like(tokens)
        for e in index.unique().tolist():
            which, choice = (index == e).nonzero(as_tuple=True)
            hidden = gelu(linear(tokens[which], *self.expert("htoh4", e)))
            out = out.index_add(0, which, score[which, choice, None] * linear(hidden, *self.expert("h4toh", e)))
        state = state.tapped(f"{self.name}.index", index).tapped(f"{self.name}.score", score)
        return out.view_as(x), state

    def expert(self, layer, e):
        return self.w[f"experts.{layer}.weight"][e], self.w[f"experts.{layer}.bias"][e]


def task_vector(w, task):
    """The task's embedding, (1, g): an MLP and a norm over its one-hot."""
    task = one_hot(torch.tensor([task]), w["fc1.weight"].shape[1]).float()
    hidden = gelu(linear(task, w["fc1.weight"], w["fc1.bias"]))
    out = linear(hidden, w["fc2.weight"], w["fc2.bias"])
    return layer_norm(out, out.shape[1:], w["norm.weight"], w["norm.bias"], 1e-6)


@cases("edge_moe", "m3vit")
@torch.no_grad()
def test_experts(case: Case):
    c, mid, output, x = case.meta["constructor"], case.group("mid/"), case.group("output/"), case.group("input/")["x"]
    model = open_model(vit({**c, "num_classes": 0}, final_norm=False))
    for i, block in enumerate(model.blocks):
        if i % 2:
            block.mlp = Experts(f"{block.name}.mlp", case.group(f"weights/{block.name}.mlp."), c["moe_top_k"])
    weights = {key: t for key, t in case.group("weights/").items() if key in model.state_dict()}
    model.load_state_dict(weights)
    tasks = sorted({int(key[4 : key.index("_")]) for key in output})
    embedding = case.group("weights/gate_task_represent.")
    for task in tasks:
        extra = {} if c["multi_gate"] else {"edge_moe": task_vector(embedding, task)}
        _, state = model.trace(x, task=task, extra=extra, tap=frozenset("*"))
        for i, block in enumerate(model.blocks):
            torch.testing.assert_close(state.taps[block.name], output[f"task{task}_block{i}"], **case.meta["tolerance"])
            if i % 2:
                index, score = (state.taps[f"{block.name}.mlp.{part}"] for part in ("index", "score"))
                assert torch.equal(index.int(), mid[f"task{task}_block{i}_topk_index"])
                torch.testing.assert_close(score, mid[f"task{task}_block{i}_topk_score"], **case.meta["tolerance"])
    assert len(tasks) > 1
