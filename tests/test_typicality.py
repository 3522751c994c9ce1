"""Random latents and images are typical, others are not, and gradients lead back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import typicality
from qdgs_jax.errors import ConfigError
from qdgs_jax.generators import Generator
from qdgs_jax.typicality import LatentRange, Typical, bring_into, distance, range_of_latents

SIDE = 32
KEY = jax.random.key(1)


def render(params: jax.Array, latents: jax.Array) -> jax.Array:
    """Smooth images of a sum of ten waves."""
    y, x = (jnp.arange(SIDE) / SIDE for _ in range(2))
    waves = [jnp.sin(3 * (k % 3 + 1) * x[None] + k + k * y[:, None]) for k in range(10)]
    images = jax.nn.sigmoid(0.2 * jnp.einsum("nk,khw->nhw", latents, jnp.stack(waves)))
    return params * jnp.stack([images, images**2, 1 - images], axis=-1)


def normal(key: jax.Array, n: int) -> jax.Array:
    return jax.random.normal(key, (n, 10))


GENERATOR = Generator("waves", 10, SIDE, normal, render)


@pytest.fixture(scope="module")
def typical() -> Typical:
    return typicality.fit_images(GENERATOR, jnp.float32(1))


def test_most_random_images_are_typical(typical: Typical) -> None:
    images = render(jnp.float32(1), normal(KEY, 1000))
    share = (distance(typical, images) <= 1).mean()
    assert abs(share - typicality.REGION) < 0.06


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda images: images[:, :, ::-1], id="a mirror image"),
        pytest.param(lambda images: images[..., ::-1], id="other colours"),
        pytest.param(
            lambda images: images + 0.03 * (-1.0) ** jnp.arange(SIDE)[None, None, :, None],
            id="fine stripes",
        ),
        pytest.param(lambda images: jnp.clip(3 * images - 1, 0, 1), id="glare"),
    ],
)
def test_other_images_are_not(typical: Typical, change) -> None:
    images = render(jnp.float32(1), normal(KEY, 200))
    assert (distance(typical, change(images)) > 1).mean() > 0.9


def test_nothing_reaches_beyond_random_images() -> None:
    """Such as in brightness, where images are so diverse that their nearest neighbours are far."""
    random = np.random.default_rng(0)
    features = random.standard_t(3, (2048, 100)) * np.where(np.arange(100) < 8, 1, 0.01)
    features[:, 0] = random.uniform(-4, 4, 2048)
    typical = typicality.fit((typicality.small,), [jnp.asarray(features)])
    reaching = jnp.zeros((3, 100)).at[:, 0].set(jnp.array([-4.8, 3.5, 6]))
    distances = typicality.distance_of(typical, [reaching])
    assert (np.asarray(distances) <= 1).tolist() == [False, True, False]


def test_colours_beyond_random_ones_are_seen_among_larger_differences() -> None:
    """Each of the largest components of such images holds a pattern, and none their colour."""

    def patterns(params: jax.Array, latents: jax.Array) -> jax.Array:
        grey = 0.5 + 0.1 * (latents[:, :-1] @ params).reshape(-1, 4, 4, 1)
        warmth = latents[:, -1, None, None, None] * jnp.array([[[[1.0, 0.0, -1.0]]]])
        return grey.repeat(8, axis=1).repeat(8, axis=2) + 0.01 * warmth

    def sample(key: jax.Array, n: int) -> jax.Array:
        return jax.random.normal(key, (n, 16)) / 2

    weights = jnp.linalg.svd(jax.random.normal(KEY, (15, 16)), full_matrices=False)[2]
    fitted = typicality.fit_images(Generator("p", 16, SIDE, sample, patterns), weights)
    latents = sample(KEY, 200)
    warm = latents.at[:, -1].set(1.6)  # more than 3 standard deviations
    shares = [
        float((distance(fitted, patterns(weights, each)) <= 1).mean()) for each in (latents, warm)
    ]
    assert shares[0] > 0.5
    assert shares[1] < 0.05


def test_gradients_lead_back(typical: Typical) -> None:
    image = render(jnp.float32(1), 3 * normal(KEY, 1))

    def loss(image: jax.Array) -> jax.Array:
        return distance(typical, image).sum()

    assert loss(image) > 1
    assert loss(image - 1e-3 * jnp.sign(jax.grad(loss)(image))) < loss(image)


def test_details_of_images_of_any_size() -> None:
    for shape in ((2, 20, 28, 3), (2, 32, 32, 3), (2, 200, 130, 3)):
        features = typicality.details(jax.random.uniform(KEY, shape))
        assert features.shape == (2, 3 * 4 * 4 * 3)
        assert np.isfinite(features).all()


def test_colours_that_are_not_in_range_are_told() -> None:
    tanh = Generator("t", 10, SIDE, normal, lambda params, latents: 2 * render(params, latents) - 1)
    with pytest.raises(ConfigError, match="renders colours from -0"):
        typicality.fit_images(tanh, jnp.float32(1))


def test_images_that_are_all_alike_are_typical() -> None:
    flat = Generator("f", 10, 8, normal, lambda p, latents: jnp.full((len(latents), 8, 8, 3), 0.5))
    typical = typicality.fit_images(flat, None)
    images = jnp.full((2, 8, 8, 3), jnp.array([0.5, 0.9])[:, None, None, None])
    assert (np.asarray(distance(typical, images)) <= 1).tolist() == [True, False]


def within(blocks: int, sample) -> LatentRange:
    return range_of_latents(Generator("g", 10, 1, sample, render, blocks=blocks))


@pytest.mark.parametrize("blocks", [1, 2])
def test_latents_are_brought_to_the_norms_of_random_ones(blocks: int) -> None:
    fitted = within(blocks, normal)
    random = normal(KEY, 10_000)
    least, most = np.quantile(
        typicality.block_norms(np.asarray(random), blocks), (0.001, 0.999), axis=0
    )
    scales = jnp.array([0.0, 0.01, 1, 3, 1e6])[:, None, None]
    far = (scales * random[None, :100]).reshape(-1, 10)
    near = bring_into(fitted, far)
    norms = typicality.block_norms(np.asarray(near)[100:], blocks)  # 0 has no direction
    assert ((norms > least) & (norms < most)).all()
    np.testing.assert_allclose(bring_into(fitted, near), near, rtol=1e-5)
    assert np.isfinite(near).all()
    unchanged = (np.asarray(near) == far).all(axis=1)[200:300]  # of random latents
    assert unchanged.mean() > 0.9


def test_bounded_latents_stay_in_their_bounds() -> None:
    def uniform(key: jax.Array, n: int) -> jax.Array:
        return jax.random.uniform(key, (n, 10), minval=-1, maxval=3)

    fitted = within(1, uniform)
    near = bring_into(fitted, 5 * uniform(KEY, 500))
    assert (np.asarray(near) >= -1.001).all()
    assert (np.asarray(near) <= 3.2).all()
    assert fitted.spread == pytest.approx(4 / 12**0.5, rel=0.02)
