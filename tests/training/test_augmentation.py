"""What the augmentations do to images, in the shares that a config asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from qdgs_jax.training import augmentation
from qdgs_jax.training.augmentation import augment
from qdgs_jax.training.config import AugmentationConfig

NONE = {"flip": 0.0, "crop": 0.0, "low_resolution": 0.0, "photometric": 0.0}
SIDE = 20
NUMBERS = np.random.default_rng(0).random((300, 4), np.float32)


def images(count: int) -> jax.Array:
    """None of them is its own mirror image, grey, or black anywhere."""
    random = np.random.default_rng(9).random((count, SIDE, SIDE, 3), np.float32)
    return jnp.asarray(0.1 + 0.8 * random)


def test_no_probability_changes_nothing() -> None:
    given = images(3)
    np.testing.assert_array_equal(
        augment(AugmentationConfig(**NONE), jax.random.key(0), given), given
    )


def test_probabilities_and_independence_of_the_batch() -> None:
    given, key = images(400), jax.random.key(0)
    change = jax.jit(augment, static_argnums=0)
    flipped = change(AugmentationConfig(**{**NONE, "flip": 0.3}), key, given)
    mirrored = (flipped == given[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (flipped == given).all(axis=(1, 2, 3))
    assert (mirrored | same).all()
    assert mirrored.mean() == pytest.approx(0.3, abs=0.07)
    changed = change(AugmentationConfig(), key, given)
    assert ((changed >= 0) & (changed <= 1)).all()
    unchanged = (changed == given).all(axis=(1, 2, 3)).mean()
    assert unchanged == pytest.approx(0.5 * 0.8**3, abs=0.07)


def test_crops() -> None:
    """A rectangle of the allowed area and shape stays in its place; the rest is black."""
    (given,) = images(1)
    crop = jax.jit(jax.vmap(augmentation.crop, in_axes=(0, None)))
    crops = crop(NUMBERS[:, :4], given)
    kept = np.asarray((crops > 0).all(axis=-1))
    np.testing.assert_array_equal(crops, jnp.where(kept[..., None], given[None], 0))
    heights, widths = kept.any(axis=2).sum(axis=1), kept.any(axis=1).sum(axis=1)
    assert (kept.sum(axis=(1, 2)) == heights * widths).all()
    area = heights * widths / SIDE**2
    assert 0.17 < area.min() < 0.25
    assert 0.85 < area.max() <= 1
    ratio = widths / heights
    assert 0.68 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.45
    assert kept.any(axis=0).all()


@pytest.mark.parametrize(
    ("kind", "pillow"),
    [(0, Image.Resampling.NEAREST), (1, Image.Resampling.BILINEAR), (2, Image.Resampling.BICUBIC)],
)
def test_enlarging_is_pillows(kind: int, pillow: Image.Resampling) -> None:
    small = np.random.default_rng(0).random((6, 6), np.float32)
    expected = Image.fromarray(small).resize((SIDE, SIDE), pillow)
    padded = np.pad(small, (0, SIDE - 6))
    matrix = np.asarray(jax.jit(augmentation._resizing, static_argnums=3)(kind, 6.0, SIDE, SIDE))
    np.testing.assert_allclose(matrix @ padded @ matrix.T, expected, atol=1e-5)


def test_making_smaller_by_means() -> None:
    matrix = jax.jit(augmentation._resizing, static_argnums=3)(3, 6, 4.0, 6)
    expected = np.zeros((6, 6))
    expected[:4] = (
        np.array([[2, 1, 0, 0, 0, 0], [0, 1, 2, 0, 0, 0], [0, 0, 0, 2, 1, 0], [0, 0, 0, 0, 1, 2]])
        / 3
    )
    np.testing.assert_allclose(matrix, expected, atol=1e-6)


def test_low_resolution_keeps_flat_images_and_loses_detail() -> None:
    numbers = NUMBERS[:60, :3]
    lower = jax.jit(jax.vmap(augmentation.lower_resolution, in_axes=(0, None)))
    flat = jnp.full((SIDE, SIDE, 3), 0.3)
    np.testing.assert_allclose(lower(numbers, flat), np.full((60, SIDE, SIDE, 3), 0.3), atol=1e-5)
    (given,) = images(1)
    changed = lower(numbers, given)
    error = np.abs(changed - given[None]).mean(axis=(1, 2, 3))
    assert error.max() > 0.15
    assert len(np.unique(error.round(6))) > 30


def test_colours_by_hand() -> None:
    """Factors 0.8, 0.5 and 1.5, in another order."""
    image = np.asarray(images(1))[0]
    bright = 0.8 * image
    grey = bright @ np.array([0.299, 0.587, 0.114])
    contrasted = 0.5 * bright + 0.5 * grey.mean()
    grey = contrasted @ np.array([0.299, 0.587, 0.114])
    expected = 1.5 * contrasted - 0.5 * grey[..., None]
    changed = augmentation.change_colours(jnp.array([0.3, 0.0, 1.0]), jnp.asarray(image))
    np.testing.assert_allclose(changed, expected.clip(0, 1), atol=1e-6)
