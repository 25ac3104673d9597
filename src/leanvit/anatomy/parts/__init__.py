"""Parts of transformers that families share: blocks, attentions, projections, masks, positions, windows."""
