"""Why a timm model is not opened: one true reason for each class that has attention and no adapter.

A class leaves this table when an adapter for it comes. What is not listed gets the generic text.
"""

from __future__ import annotations

from torch import nn

_POOLS = "its stages pool keys and values or queries inside attention"
_STAGES = "a pyramid of stages that mixes convolutions with attention"
_LINEAR = "its attention is linear: there are no scores of pairs of tokens"
_LEVIT = "batch norms in place of layer norms, and attention that shrinks the grid"
_TWO = "it runs two streams of tokens side by side"

REASONS: dict[str, str] = {
    # hybrids and pyramids
    "ByobNet": "a convolutional network with single attention layers in its last stages",
    "Cait": "its heads talk across attention maps, and the class token enters in the last blocks only",
    "CoaT": "factorised attention with convolutional relative positions, in parallel streams of several scales",
    "ConVit": "its attention is a gated sum of content and position maps, learned for each head",
    "CPUBone": "a pyramid of convolutions, with convolutions inside its attention",
    "CrossVit": f"{_TWO}, of small and of large patches, that exchange class tokens",
    "CSATv2": "a pyramid of convolutions over discrete cosine coefficients, with attention over space in between",
    "DaVit": "it alternates windows of tokens with attention over channels",
    "DeepseekVitClassifier": "a wrapper around a language model's encoder, which takes any grid of patches",
    "DeepseekVitEncoder": "a language model's encoder: a projector of 3 x 3 tokens in place of a classifier",
    "EdgeNeXt": "a pyramid of convolutions whose attention is over channels",
    "EfficientFormer": _STAGES,
    "EfficientFormerV2": _STAGES,
    "EfficientViM": "it mixes tokens by a state space, not by attention",
    "EfficientViMDistilled": "it mixes tokens by a state space, not by attention",
    "EfficientVit": f"a pyramid of convolutions; {_LINEAR}",
    "EfficientVitLarge": f"a pyramid of convolutions; {_LINEAR}",
    "EfficientVitMsra": "its heads run one after the other, each on its own slice of the channels",
    "FastVit": _STAGES,
    "FocalNet": "it modulates by gathered context and has no attention",
    "Gemma4VitClassifier": "a wrapper around a language model's encoder: blocks of four norms, masked tokens",
    "Gemma4VitEncoder": "a language model's encoder: blocks of four norms, tokens pooled by grid, no classifier",
    "GlobalContextVit": "its windows take queries from a global map of the image",
    "Hiera": f"{_POOLS}; its tokens are kept in mask units, not in rows",
    "HieraDet": f"{_POOLS} and its windows",
    "IFormer": _STAGES,
    "Levit": _LEVIT,
    "LevitDistilled": _LEVIT,
    "LowFormer": "a pyramid of convolutions, with convolutions inside its attention",
    "MaxxVit": "convolutional stages with attention in windows and in grids",
    "MetaFormer": "a pyramid whose mixers are pooling, convolutions or attention by stage",
    "MlpMixer": "it mixes tokens by MLPs and has no attention",
    "MobileNetV5": "a convolutional network with attention in its last stages",
    "MobileNetV5Encoder": "a convolutional network with attention in its last stages",
    "MultiScaleVit": _POOLS,
    "NaFlexVit": "it takes batches of patches with masks, of any number and aspect, not images of one size",
    "Nest": "blocks of the image are attended apart and merged by convolution and pooling",
    "NextViT": _STAGES,
    "PoolingVisionTransformer": "convolutions shrink the grid between its stages",
    "PyramidVisionTransformerV2": "keys and values are shrunk by convolutions inside attention",
    "Qwen3VitClassifier": "a wrapper around a language model's encoder, which takes any grid of patches",
    "Qwen3VitEncoder": "a language model's encoder: a projector of 2 x 2 tokens in place of a classifier",
    "SHViT": "one head of attention on a slice of the channels, among convolutions",
    "SwiftFormer": f"a pyramid of convolutions; {_LINEAR}",
    "SwinTransformer": "windows and shifts of windows over a pyramid of grids",
    "SwinTransformerV2": "windows and shifts of windows, cosine attention and positions made by an MLP",
    "SwinTransformerV2Cr": "windows and shifts of windows, cosine attention and positions made by an MLP",
    "TinyVit": "convolutional stages before attention in windows with a local convolution",
    "TNT": f"{_TWO}: patches, and pixels inside of each patch",
    "Twins": "it alternates attention in local groups with attention on shrunk keys and values",
    "VisionTransformerSAM": "a segmentation encoder: windows and decomposed relative positions made from the queries",
    "Visformer": "convolutional stages, with batch norms in place of layer norms in its attention",
    "VOLO": "outlook attention makes its maps without keys; the class token enters in the last blocks only",
    "Xcit": "its attention is over channels, not over tokens",
}


def reason(model: nn.Module) -> str:
    """What a refusal says after the model's name."""
    name = type(model).__name__
    if name in REASONS:
        return REASONS[name]
    if not type(model).__module__.startswith("timm."):
        return "it is not a timm model (its class is not timm's own)"
    if any("attn" in key.rsplit(".", 1)[-1] for key, _ in model.named_modules()):
        return "no adapter of leanvit knows this class"
    return "it has no attention of a vision transformer: leanvit opens vision transformers"
