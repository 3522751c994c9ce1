"""A generator and the networks that find faces.

Faces of generated and of real people are found, aligned and resized by the same steps, since a
network of faces that are aligned in one way does not recognise those that are aligned in another.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from qdgs_jax import blazeface
from qdgs_jax.datasets.candidates import Look
from qdgs_jax.datasets.identities import offset_directions
from qdgs_jax.datasets.image_files import read_image
from qdgs_jax.datasets.readings import canvas_of
from qdgs_jax.generators import Generator
from qdgs_jax.image_measures import TONE_EDGES, skin_tone
from qdgs_jax.keys import make_key
from qdgs_jax.typing import Array, Images, Params

BASIS = 256
"""Random latents among whose differences the offsets' directions are sought."""


class Studio:
    """A generator and the networks that find faces, in compiled programs."""

    def __init__(self, generator: Generator, params: Params, chunk_size: int, size: int) -> None:
        """
        Args:
            chunk_size: images that a device renders at once.
            size: pixels a side of aligned faces.

        Raises:
            ConfigError: `make assets` has not fetched the networks.
        """
        self.generator = generator
        self.look = Look(generator, params, chunk_size)

        def resized(seen: tuple[Array, Images]) -> tuple[Array, Array]:
            found, faces = seen
            faces = jax.image.resize(faces, (len(faces), size, size, 3), "linear")
            return found, jnp.round(255 * faces.clip(0, 1)).astype(jnp.uint8)

        look = self.look
        self._faces = look.program(lambda params, latents: resized(look.faces(params, latents)))
        self._faces_on = look.program(
            lambda params, pixels: resized(look.faces_on(params, pixels / jnp.float32(255)))
        )
        self._tones = look.program(
            lambda params, latents: (skin_tone(look.images(params, latents)),)
        )

    @property
    def at_once(self) -> int:
        """Latents that all devices render at once."""
        return self.look.at_once

    def sample(self, seed: int, purpose: str, count: int) -> np.ndarray:
        """Random latents [count, D]."""
        return np.asarray(self.generator.sample(make_key(seed, purpose), count))

    def faces(self, latents: np.ndarray) -> np.ndarray:
        """Aligned faces [n, S, S, 3] uint8 of latents [n, D]."""
        return np.concatenate([faces for _, faces in self.look.mapped(self._faces, latents)])

    def tones(self, latents: np.ndarray) -> np.ndarray:
        """Classes of the skin [n], positions in TONES, of latents [n, D]."""
        angles = [angle for (angle,) in self.look.mapped(self._tones, latents)]
        return np.digitize(np.concatenate(angles), TONE_EDGES)

    def read(self, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
        """Whether each image has a face [n], and the aligned faces [n, S, S, 3] uint8."""
        seen: list[tuple[np.ndarray, ...]] = []
        for start in range(0, len(paths), self.at_once):
            some = paths[start : start + self.at_once]
            canvases = np.stack([canvas_of(read_image(path)) for path in some])
            seen += self.look.mapped(self._faces_on, canvases)
        found, faces = (np.concatenate(each) for each in zip(*seen, strict=True))
        return found >= blazeface.FOUND, faces

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """Directions [2, D] of all identities' offsets, found among random latents: arms differ in
        the people that they show, and not in how these look around."""
        random = self.sample(0, "latents of offsets", BASIS)
        return offset_directions(self.look, self.generator, random, 0)
