"""Layers that several ports share."""
