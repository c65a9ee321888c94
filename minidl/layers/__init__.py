"""The layers, one per file, each with its backward pass under its forward pass."""
