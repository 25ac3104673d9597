"""What blocks compute with: operation sets, quantizers, and the pipeline of attention scores."""
