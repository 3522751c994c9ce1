"""Networks that are trained on datasets."""
