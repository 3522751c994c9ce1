"""Graph models of TensorFlow.js: files of JSON and weights, run in JAX."""

from qdgs_jax.models.tfjs.modeling import Graph, Node, apply
from qdgs_jax.models.tfjs.params import load

__all__ = ["Graph", "Node", "apply", "load"]
