"""Archive -> a dataset on disk, and class folders read back."""
