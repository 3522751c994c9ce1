"""Quality-Diversity Generative Sampling in JAX."""
