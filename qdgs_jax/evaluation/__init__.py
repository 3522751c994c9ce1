"""Figures of merit of trained networks."""
