"""Methods that change how attention scores are made."""
