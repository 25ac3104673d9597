"""Constructor arguments of DHVT and DualToken-ViT, and architectures where a method is asked for."""

from __future__ import annotations

from typing import Any

from wrong import Case, Cli

from leanvit.recipe import Root, create, parse_with
from leanvit.verbs import train

DHVT, DUAL = "dhvt_tiny_cifar_patch4", "dualtoken_vit_small"


def _built(name: str, says: str, **kwargs: Any) -> Case:
    shown = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    return Case(f"{name} {shown}", lambda: create(Root(name, kwargs)), (f"cannot build {name}", says))


CASES = [
    _built(DHVT, "patch_size is 8; accepted: 2, 4, 16", patch_size=8),
    _built(DHVT, "patch_size is '4'; accepted: 2, 4, 16", patch_size="4"),
    _built(DHVT, "img_size is 30; accepted: .* multiples of 4", img_size=30),
    _built(DHVT, "num_heads is 2.5; accepted: a whole number", num_heads=2.5),
    _built(DHVT, "embed_dim is 190; accepted: multiples of 4", embed_dim=190),
    _built(DHVT, "norm is 'gn'; accepted: bn or syncbn", norm="gn"),
    _built(DHVT, "global_pool is 'map'; accepted: 'token'", global_pool="map"),
    _built(DUAL, "img_size is 230; accepted: .* multiples of 32", img_size=230),
    _built(DUAL, "token_side is 5; accepted for images of 224x224: 7", token_side=5),
    _built(DUAL, r"dims is \(64, 128\); accepted: a list of 3, each a whole number", dims=[64, 128]),
    _built(DUAL, "depths is 2; accepted: a list of 3, each a whole number", depths=2),
    _built(DUAL, r"num_heads is \(2, 4\); accepted: a list of 3, each a whole number", num_heads=[2, 4]),
    _built(DUAL, "multiples of 4 and of the stage's heads", num_heads=[2, 4, 7]),
    _built(DUAL, "g_mlp is 'none'; accepted: mix or normal", g_mlp="none"),
    _built(DUAL, "fuse_alpha is -0.1; accepted: a number from 0 to 1", fuse_alpha=-0.1),
    _built(DUAL, "conv_ratio is 'wide'; accepted: a number above 0", conv_ratio="wide"),
    _built(DUAL, "neck_dim is 1.5; accepted: a whole number", neck_dim=1.5),
    _built(DUAL, "global_pool is 'token'; accepted: 'avg'", global_pool="token"),
    Case("an architecture as a method", lambda: parse_with("dhvt"), ("dhvt is an architecture, not a method",)),
    Case(
        "a paper as a model",
        lambda: train("dhvt", "digits", adapt=True),
        ("'dhvt' is an architecture; accepted: dhvt_tiny_cifar_patch4",),
    ),
]
CLI = [
    Cli("an architecture for --with", ("compress", "run", "--with", "dhvt"), ("dhvt is an architecture", "by name")),
    Cli(
        "an image that no patch divides",
        ("export", DHVT, "--model-arg", "img_size=33", "--out", "new"),
        ("img_size is 33", "multiples of 4"),
    ),
]
