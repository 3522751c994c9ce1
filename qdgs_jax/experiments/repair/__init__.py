"""Repair of biased classifiers (QDGS, shapes domain)."""
