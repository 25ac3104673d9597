"""How leanvit's own architectures enter timm, and the parts that several of them share."""
