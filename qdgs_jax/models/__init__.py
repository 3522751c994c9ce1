"""Ports of generators and encoders: they know nothing of prompts, archives or runs."""
