"""Training: settings, the loop, metrics, and what a run writes."""
