"""Writing poems: sampling, the rules of regulated verse, and judging the results."""
