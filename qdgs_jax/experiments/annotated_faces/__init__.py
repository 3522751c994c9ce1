"""Balanced, annotated faces: guidance by a classifier compared with a search (arXiv 2308.03495)."""
