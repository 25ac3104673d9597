"""One opened model a family: plain ViT, EVA, Swin."""
