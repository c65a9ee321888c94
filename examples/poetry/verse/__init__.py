"""Writing poems: sampling, the rules of regulated verse, and judging what came of it."""
