"""A generator of our own -> a balanced dataset: two-coloured gradients."""

import jax
import jax.numpy as jnp

import qdgs_jax as qdgs
from qdgs_jax.config import (
    ExportConfig,
    MeasureConfig,
    ObjectiveConfig,
    SearchConfig,
)


def render(params, latents):  # [N, D] -> [N, H, W, 3], RGB in [0, 1]
    colours = jax.nn.sigmoid(latents @ params["kernel"] - 1).reshape(-1, 2, 1, 1, 3)
    x = jnp.linspace(0, 1, 32)[None, None, :, None]
    return jnp.broadcast_to(colours[:, 0] * x + colours[:, 1] * (1 - x), (len(latents), 32, 32, 3))


params = {"kernel": jax.random.normal(jax.random.key(0), (8, 6)) / 2}
mine = qdgs.Generator(
    "gradients",
    latent_size=8,
    image_size=32,
    render=render,
    sample=lambda key, n: jax.random.normal(key, (n, 8)),
)
config = qdgs.Config(
    objective=ObjectiveConfig(),  # without prompts: images that are typical of the generator
    measures=(
        MeasureConfig(name="brightness", function="brightness", cells=20),
        MeasureConfig(name="warmth", function="warmth", cells=20),
    ),
    search=SearchConfig(generations=50),
    export=ExportConfig(count=100),
)
summary = qdgs.sample(config, "run", generator=(mine, params))
balance = qdgs.export("run", "dataset", generator=(mine, params))
print(f"{summary['elites']} elites; {balance}")
