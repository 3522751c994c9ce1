"""Each change against an example by hand, in the shares that are asked for; the controller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.errors import ConfigError
from qdgs_jax.training import ada
from qdgs_jax.training.ada import Changes
from qdgs_jax.training.config import ADAConfig

KEY, SIDE = jax.random.key(0), 9
augment = jax.jit(ada.augment, static_argnums=0)
sample = jax.jit(ada.sample_changes, static_argnums=(0, 3, 4, 5))


def images(count: int, channels: int = 3) -> jax.Array:
    return jax.random.uniform(KEY, (count, SIDE, SIDE, channels), minval=-1.0)


@jax.jit
def moved(changes: Changes) -> jax.Array:
    return ada.resample(ada.source_matrices(changes, 1, SIDE, SIDE), images(1))[0]


@jax.jit
def recoloured(changes: Changes) -> jax.Array:
    return ada.recolour(ada.colour_matrices(changes, 1), images(1))[0]


def test_exact_changes_of_pixels() -> None:
    image = np.asarray(images(1)[0])
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    for changes, expected in (
        (Changes(), image),
        (Changes(flip=1.0), image[:, ::-1]),
        (Changes(quarter_turns=1), np.rot90(image, -1)),
        (Changes(quarter_turns=3), np.rot90(image)),
        (Changes(pixels_right=2.0, pixels_down=-1.0), padded[3 : 3 + SIDE, :SIDE]),
        (Changes(flip=1.0, quarter_turns=1), np.rot90(image[:, ::-1], -1)),
    ):
        np.testing.assert_array_equal(moved(jax.tree.map(jnp.asarray, changes)), expected)


def test_geometric_changes() -> None:
    image = np.asarray(images(1)[0])
    padded = np.pad(image, ((0, 0), (1, 0), (0, 0)), mode="reflect")
    half_right = (padded[:, :-1] + padded[:, 1:]) / 2
    turned = Changes(rotation_before=jnp.pi / 6, rotation_after=jnp.pi / 3)
    for changes, expected in (
        (Changes(right=0.5 / SIDE), half_right),
        (turned, np.rot90(image, -1)),
    ):
        result = moved(jax.tree.map(jnp.asarray, changes))
        np.testing.assert_allclose(result, expected, atol=1e-5)
    larger = moved(jax.tree.map(jnp.asarray, Changes(scale=2.0)))
    np.testing.assert_allclose(larger[::2, ::2], image[2:7, 2:7], atol=1e-5)
    stretched = moved(jax.tree.map(jnp.asarray, Changes(stretch=2.0)))
    np.testing.assert_allclose(stretched[2:7, ::2], image[::2, 2:7], atol=1e-5)
    # The order: a stretched image is turned after, so its columns are stretched.
    both = moved(jax.tree.map(jnp.asarray, Changes(stretch=2.0, rotation_after=jnp.pi / 2)))
    np.testing.assert_allclose(both, np.rot90(stretched, -1), atol=1e-5)


def test_changes_of_colours() -> None:
    image = np.asarray(images(1)[0])
    grey = image.mean(axis=-1, keepdims=True)
    for changes, expected in (
        (Changes(), image),
        (Changes(brightness=0.3), image + 0.3),
        (Changes(brightness=0.3, contrast=2.0), 2 * (image + 0.3)),
        (Changes(luma_flip=1.0), image - 2 * grey),
        (Changes(hue=2 * jnp.pi / 3), np.roll(image, 1, axis=-1)),  # red becomes green
        (Changes(saturation=0.0), np.repeat(grey, 3, axis=-1)),
        (Changes(saturation=1.5), grey + 1.5 * (image - grey)),
    ):
        result = recoloured(jax.tree.map(jnp.asarray, changes))
        np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_probability_zero_is_exact_and_keys_decide(channels: int) -> None:
    given = images(8, channels)
    np.testing.assert_array_equal(augment(ADAConfig(), KEY, 0.0, given), given)
    changed = augment(ADAConfig(), KEY, 1.0, given)
    assert np.isfinite(changed).all()
    np.testing.assert_array_equal(changed, augment(ADAConfig(), KEY, 1.0, given))
    other = augment(ADAConfig(), jax.random.key(1), 1.0, given)
    for image, again, before in zip(changed, other, given, strict=True):
        assert np.abs(image - before).mean() > 0.05
        assert np.abs(image - again).mean() > 0.05


def test_grey_images_are_changed_as_grey_rgb() -> None:
    grey = images(8, 1)
    rgb = augment(ADAConfig(), KEY, 1.0, jnp.repeat(grey, 3, axis=-1))
    expected = np.repeat(augment(ADAConfig(), KEY, 1.0, grey), 3, axis=-1)
    np.testing.assert_allclose(rgb, expected, atol=1e-4)


def test_probabilities_and_distributions() -> None:
    """Shares within 4 standard deviations; half of the flips, a quarter of the turns are none."""
    changes, neutral = sample(ADAConfig(), KEY, 0.3, 10_000, 32, 32), Changes()
    shares = {"flip": 0.15, "quarter_turns": 0.225, "luma_flip": 0.15}
    shares |= dict.fromkeys(("rotation_before", "rotation_after"), 1 - 0.7**0.5)
    shares |= dict.fromkeys(("pixels_right", "pixels_down"), 0.3 * 7 / 8)  # 0 with chance 1/8
    for name, values in vars(changes).items():
        share = np.mean(np.asarray(values) != getattr(neutral, name))
        expected = shares.get(name, 0.3)
        assert share == pytest.approx(expected, abs=4 * (0.3 * 0.7 / 10_000) ** 0.5), name
    certain = sample(ADAConfig(), KEY, 1.0, 10_000, 32, 32)
    for name, deviation in {
        "scale": 0.2,
        "stretch": 0.2,
        "contrast": 0.5,
        "saturation": 1.0,
    }.items():
        logarithms = np.log2(getattr(certain, name))
        assert logarithms.std() == pytest.approx(deviation, rel=0.05)
        assert abs(logarithms.mean()) < 0.05 * deviation
    for name, deviation in {"right": 0.125, "down": 0.125, "brightness": 0.2}.items():
        assert np.std(getattr(certain, name)) == pytest.approx(deviation, rel=0.05)
    assert np.abs(certain.pixels_right).max() == 4
    assert np.abs(certain.hue).max() == pytest.approx(np.pi, rel=0.01)


def test_families_that_are_off() -> None:
    config = ADAConfig(pixel=False, geometric=False)
    changes = sample(config, KEY, 1.0, 20, SIDE, SIDE)
    assert not changes.flip.any()
    assert not changes.rotation_after.any()
    assert changes.hue.all()
    with pytest.raises(ConfigError, match="2 channels"):
        ada.augment(ADAConfig(), KEY, jnp.ones(()), images(2, 2))


def test_gradients() -> None:
    """A change is affine, A x + b: its pull-back is A', and a gradient's penalty has one too."""
    given, other = images(8), jax.random.normal(jax.random.key(2), (8, SIDE, SIDE, 3))

    def change(images: jax.Array) -> jax.Array:
        return augment(ADAConfig(), KEY, jnp.float32(0.8), images)

    changed, pull = jax.vjp(change, given)
    linear = change(given) - change(jnp.zeros_like(given))
    np.testing.assert_allclose(jnp.vdot(linear, other), jnp.vdot(given, pull(other)[0]), atol=1e-2)

    def penalty(weight: jax.Array) -> jax.Array:  # R1 of D(x) = sum(weight change(x)^2) / 2
        gradient = jax.grad(lambda x: (weight * change(x) ** 2).sum() / 2)(given)
        return jnp.square(gradient).sum()

    expected = 2 * jnp.vdot(pull(2.0 * changed)[0], pull(changed)[0])  # its gradient is w A' (A x)
    np.testing.assert_allclose(jax.grad(penalty)(2.0), expected, rtol=1e-4)


def test_the_controller_by_hand() -> None:
    """Each 4 batches of 2 images of 100: steps of 0.08, by whether the mean sign is above 0.6."""
    config = ADAConfig(images=100)
    state = ada.init_ada()
    positive, mixed = jnp.array([0.1, 5.0]), jnp.array([2.0, -1.0])
    batches = [positive] * 7 + [mixed] + [positive, mixed] * 2 + [mixed] * 12
    _, probabilities = jax.lax.scan(
        lambda state, logits: ((new := ada.update_ada(config, state, logits)), new.probability),
        state,
        jnp.stack(batches),
    )
    expected = [0.0] * 3 + [0.08] * 4 + [0.16] * 4 + [0.08] * 4 + [0.0] * 9
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    full = state.replace(probability=jnp.array(0.97), signs=jnp.array(3.0), batches=jnp.array(3))
    assert ada.update_ada(config, full, positive).probability == 1
