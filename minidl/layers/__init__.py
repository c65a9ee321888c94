"""The layers, one a file, each with its backward pass under its forward pass."""
