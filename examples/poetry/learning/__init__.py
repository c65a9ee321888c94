"""Training: settings, the loop, its figures, and what a run writes."""
