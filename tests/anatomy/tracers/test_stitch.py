"""Tracer: two nets stitched (SN-Netv2, arXiv 2307.00154): routes through the `run` seams of both, linears between."""

import torch
from torch.nn.functional import linear

from golden import Case, cases, vit
from leanvit.anatomy import open_model


def as_timm(weights):
    return {key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): t for key, t in weights.items()}


def follow(nets, stitches, route, images):
    """Embed with the first net of a route, run its span of each net in turn, classify with the last.

    The stored stitching weights already hold the low-rank update of a case that has one.
    """
    first_net, last_net = nets[route[0][0]], nets[route[-1][0]]
    x, state = first_net.embed(images, first_net.start(images))
    for net, (first, last), stitch in route:
        x, state = nets[net].run(x, state, first, last + 1)
        if stitch >= 0:
            at = f"{net}.{stitch}.transform"
            x = linear(x, stitches[f"{at}.weight"], stitches[f"{at}.bias"])
    return last_net.classify(x, state)


@cases("snnet", "forward")
@torch.no_grad()
def test_routes(case: Case):
    meta, output, images = case.meta, case.group("output/"), case.group("input/")["x"]
    stitches, nets = case.group("weights/stitch_layers."), []
    for i, anchor in enumerate(meta["anchors"]):
        weights = as_timm(case.group(f"weights/anchors.{i}."))
        nets.append(open_model(vit(anchor, weights, eps=anchor["norm_eps"], init_values=1.0, no_embed_class=True)))
    assert len(meta["all_cfgs_used"]) > 2
    for number in meta["all_cfgs_used"]:
        payload = meta["stitch_configs"][str(number)]
        order = payload["comb_id"]
        spans = payload.get("route", [[0, len(nets[order[0]].blocks) - 1]])
        route = list(zip(order, spans, payload.get("stitch_layer_ids", [-1]), strict=True))
        logits, state = follow(nets, stitches, route, images)
        torch.testing.assert_close(logits, output[f"logits_cfg{number}"], **meta["tolerance"])
        ran = sum(len(nets[net].blocks[first : last + 1]) for net, (first, last), _ in route)
        assert len(state.tokens) == ran  # one state went through both nets
