"""A search's folder: checkpoints, resuming, results and pictures."""
