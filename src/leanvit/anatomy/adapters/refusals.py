"""Why a timm model is not opened: one true reason for each class that has attention and no adapter.

A class leaves this table when an adapter for it comes. What is not listed gets the generic text.
"""

from __future__ import annotations

from torch import nn

_POOLS = "its stages pool keys and values or queries inside attention"
_LINEAR = "its attention is linear: there are no scores of pairs of tokens"
_TWO = "it runs two streams of tokens side by side"

REASONS: dict[str, str] = {
    # hybrids and pyramids
    "ByobNet": "a convolutional network with single attention layers in its last stages",
    "CoaT": "factorised attention with convolutional relative positions, in parallel streams of several scales",
    "ConVit": "its attention is a gated sum of content and position maps, learned for each head",
    "CPUBone": "a pyramid of convolutions, with convolutions inside its attention",
    "CrossVit": f"{_TWO}, of small and of large patches, that exchange class tokens",
    "CSATv2": "a pyramid of convolutions over discrete cosine coefficients, with attention over space in between",
    "DeepseekVitClassifier": "a wrapper around a language model's encoder, which takes any grid of patches",
    "DeepseekVitEncoder": "a language model's encoder: a projector of 3 x 3 tokens in place of a classifier",
    "EfficientViM": "it mixes tokens by a state space, not by attention",
    "EfficientViMDistilled": "it mixes tokens by a state space, not by attention",
    "FocalNet": "it modulates by gathered context and has no attention",
    "Gemma4VitClassifier": "a wrapper around a language model's encoder: blocks of four norms, masked tokens",
    "Gemma4VitEncoder": "a language model's encoder: blocks of four norms, tokens pooled by grid, no classifier",
    "Hiera": f"{_POOLS}; its tokens are kept in mask units, not in rows",
    "HieraDet": f"{_POOLS} and its windows",
    "LowFormer": "a pyramid of convolutions, with convolutions inside its attention",
    "MlpMixer": "it mixes tokens by MLPs and has no attention",
    "MobileNetV5": "a convolutional network with attention in its last stages",
    "MobileNetV5Encoder": "a convolutional network with attention in its last stages",
    "MultiScaleVit": _POOLS,
    "NaFlexVit": "it takes batches of patches with masks, of any number and aspect, not images of one size",
    "Qwen3VitClassifier": "a wrapper around a language model's encoder, which takes any grid of patches",
    "Qwen3VitEncoder": "a language model's encoder: a projector of 2 x 2 tokens in place of a classifier",
    "SwiftFormer": f"a pyramid of convolutions; {_LINEAR}",
    "TNT": f"{_TWO}: patches, and pixels inside of each patch",
    "Twins": "it alternates attention in local groups with attention on shrunk keys and values",
    "VisionTransformerSAM": "a segmentation encoder: windows and decomposed relative positions made from the queries",
    "VOLO": "outlook attention makes its maps without keys; the class token enters in the last blocks only",
    "Xcit": "its attention is over channels, not over tokens",
}


def reason(model: nn.Module) -> str:
    """The text of a refusal after the model's name."""
    name = type(model).__name__
    if name in REASONS:
        return REASONS[name]
    if not type(model).__module__.startswith("timm."):
        return "it is not a timm model (its class is not timm's own)"
    if any("attn" in key.rsplit(".", 1)[-1] for key, _ in model.named_modules()):
        return "no adapter of leanvit knows this class"
    return "it has no attention of a vision transformer: leanvit opens vision transformers"
