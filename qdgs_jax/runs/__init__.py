"""The folder of a search: checkpoints, resuming, results and pictures."""
