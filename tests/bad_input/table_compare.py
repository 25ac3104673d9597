"""Wrong calls of `compare-methods`."""

from __future__ import annotations

from wrong import NAME, Case, Cli, tiny

_DIGITS = ("--data", "digits")
_ADAPTED = (*tiny("img_size=8", "patch_size=2", "in_chans=1", "num_classes=10", "depth=2"), *_DIGITS)


def _compare(name: str, more: tuple[str, ...], *says: str, code: int = 2) -> Cli:
    return Cli(f"compare-methods {name}", ("compare-methods", NAME, *_ADAPTED, *more), says, code)


def _way(name: str, way: str, *says: str) -> Cli:
    return _compare(f"way of a recovery, {name}", ("--recover", "1", "--recover-with", way), *says)


CASES: list[Case] = []
CLI = [
    *(
        _compare(f"macs {share}", ("--macs", share), "macs is", "above 0 and below 1")
        for share in ("0", "1", "-1", "nan")
    ),
    _compare("tolerance", ("--tolerance", "0"), "tolerance is", r"above 0, up to 0\.5"),
    _compare("batch", ("--batch", "0"), "--batch is 0", "1 or more"),
    _compare("rounds", ("--rounds", "2"), "--rounds is 2", "3 or more"),
    _compare("runtime", ("--runtime", "openvin"), "openvin", "openvino"),
    _compare("int8 in torch", ("--int8",), "int8", "openvino or onnx"),
    _compare("method", ("--with", "evti"), "evti", "evit"),
    _compare("knob", ("--with", "evit:keep=0.5"), "no knob 'keep'", "keep_rate"),
    _compare("dial", ("--with", "evit:keep_rate=0.5"), "keep_rate", "leave it out"),
    _compare("cost knob of a search", ("--with", "diffrate:macs=0.5"), "macs", "leave it out"),
    _compare("method without a cost knob", ("--with", "int8"), "int8 has no knob"),
    _compare("twice", ("--with", "tome", "--with", "tome"), "tome is given twice"),
    _compare("recovery number without one", ("--recover-lr", "0.1"), "lr is given", "--recover EPOCHS"),
    _compare(
        "way of a recovery without one", ("--recover-with", "gmm_mask"), "--recover-with gmm_mask is given", "EPOCHS"
    ),
    _way("unknown", "gmm_masc", "unknown method 'gmm_masc'", "did you mean 'gmm_mask'"),
    _way("of another kind", "evit", "evit is a method that makes a trained model leaner, not a way to train"),
    _way("an architecture", "dhvt", "dhvt is an architecture, not a method"),
    _way("with parts", "gmm_mask", "gmm_mask puts parts into the model"),
    _way("knob", "gmm_mask:masc=elm", "method 'gmm_mask' has no knob 'masc'"),
    _compare("resume nothing", ("--resume", "--out", "nothing"), "--resume", "no comparison"),
    _compare("resume without out", ("--resume",), "--resume needs --out"),
]
