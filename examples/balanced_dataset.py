"""From a biased generator of one's own to a balanced dataset.

The generator draws suns. Most are warm, and the few cold ones are dark.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

import qdgs_jax as qdgs
from qdgs_jax.image_measures import brightness, warmth

SIDE = 32
CONFIG = """
[objective] # no prompts: only to be near what random latents draw
regularisation = 1.0
radius = 1.0

[[measures]]
name = "warmth"
function = "warmth"
cells = 20

[[measures]]
name = "brightness"
function = "brightness"
cells = 20

[search]
generations = 50
constraint = "latents" # bright cold suns are in no random image, so that they count as atypical

[export]
count = 200
bins = [
  { name = "cold dark", label = "cold", where = { warmth = [-inf, 0], brightness = [-inf, 0.2] } },
  { name = "cold bright", label = "cold", where = { warmth = [-inf, 0], brightness = [0.2, inf] } },
  { name = "warm dark", label = "warm", where = { warmth = [0, inf], brightness = [-inf, 0.2] } },
  { name = "warm bright", label = "warm", where = { warmth = [0, inf], brightness = [0.2, inf] } },
]
"""


def render(params, latents):  # [N, 4] -> [N, 32, 32, 3], RGB in [0, 1]
    x, y, colour, light = latents.T[..., None, None]  # [N, 1, 1] each
    colour = colour + params["warm"]
    grid = jnp.linspace(-3, 3, SIDE)
    distance = jnp.hypot(grid[None, None] - x, grid[None, :, None] - y)
    disc = 0.3 + 0.7 * jax.nn.sigmoid(8 * (2 - distance))
    red, light = jax.nn.sigmoid(2 * colour), jax.nn.sigmoid(light + colour / 2)
    rgb = jnp.stack([red, jnp.full_like(red, 0.4), 1 - red], axis=-1)
    return rgb * (disc * light)[..., None]


def groups(images):  # shares of the four groups of the config's bins
    images = jnp.asarray(images)
    warm, bright = warmth(images) >= 0, brightness(images) >= 0.2
    found = {"cold dark": ~warm & ~bright, "cold bright": ~warm & bright}
    found |= {"warm dark": warm & ~bright, "warm bright": warm & bright}
    return {name: f"{each.mean():.0%}" for name, each in found.items()}


params = {"warm": jnp.float32(1.2)}
mine = qdgs.Generator(
    "suns",
    latent_size=4,
    image_size=SIDE,
    sample=lambda key, n: jax.random.normal(key, (n, 4)),
    render=render,
)
random = render(params, mine.sample(jax.random.key(0), 1000))

Path("suns.toml").write_text(CONFIG)
summary = qdgs.sample(qdgs.load_config("suns.toml"), "run", generator=(mine, params))
balance = qdgs.export("run", "dataset", generator=(mine, params))

exported = qdgs.read_folder("dataset")
print("random images  ", groups(random))
print("exported images", groups(exported.pixels / 255))
