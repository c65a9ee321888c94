"""How the layers are made fast on NumPy: threads, work space, blocks, and in `cuts` every tuning constant."""
