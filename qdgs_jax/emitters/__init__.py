"""Emitters: they propose latents and learn from what the archive made of them."""
