"""StyleGAN2 in JAX: latents to styles, styles to images.

    from qdgs_jax.models import stylegan2

    config, params = stylegan2.load("ffhq.pkl")  # or a folder that `stylegan2.save` wrote
    z = jax.random.normal(key, (4, config.latent_size))
    ws = stylegan2.map_latents(config, params, z, truncation_psi=0.7)  # [N, layers, style_size]
    images = stylegan2.synthesize(config, params, ws)  # [N, H, W, C], about [-1, 1]

Weights are arguments: `jax.jit(functools.partial(stylegan2.synthesize, config))` takes them, and
`jax.grad` reaches the styles. Pickles are read without PyTorch, and nothing in them is executed.

Written from the papers. NVIDIA's networks come under NVIDIA's licences, most of them for
non-commercial use only; a converted file stays under the licence of its source.
"""

from qdgs_jax.models.stylegan2.modeling import (
    StyleGAN2Config,
    init,
    map_latents,
    synthesize,
)
from qdgs_jax.models.stylegan2.params import convert, is_pickle, load, save

__all__ = [
    "StyleGAN2Config",
    "convert",
    "init",
    "is_pickle",
    "load",
    "map_latents",
    "save",
    "synthesize",
]
