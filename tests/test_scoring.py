"""Distances, crops and scores, compared with formulas written out naively."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import encoders, generators, scoring, typicality
from qdgs_jax.config import Config, MeasureConfig, ObjectiveConfig
from qdgs_jax.encoders import Encoder
from qdgs_jax.generators import Generator
from qdgs_jax.image_measures import brightness
from qdgs_jax.prompts import PromptEmbeddings, PromptPair
from qdgs_jax.search_config import SearchConfig

LATENT, SIDE, SIZE, EMBEDDING = 5, 12, 8, 7
HUE = MeasureConfig(name="hue", low="red", high="blue")
BRIGHTNESS = MeasureConfig(name="light", function="brightness")


def normal(seed, *shape):
    dtype = jnp.zeros(0).dtype  # float64 inside `enable_x64`
    return jnp.array(np.random.default_rng(seed).normal(size=shape), dtype)


def unit(seed, *shape):
    x = normal(seed, *shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def render(params, latents):
    return jax.nn.sigmoid(latents @ params).reshape(-1, SIDE, SIDE, 3)


def embed_images(params, images):
    x = jnp.tanh(images.reshape(len(images), -1) @ params)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


GENERATOR = Generator("fake", LATENT, SIDE, lambda key, n: normal(0, n, LATENT), render)
ENCODER = Encoder("fake", "", SIZE, embed_images, None, None, None)  # type: ignore[arg-type]


def make_config(*measures, chunk_size=64):
    return Config(
        objective=ObjectiveConfig(positive="a", negative="b"),
        measures=measures or (HUE, BRIGHTNESS),
        search=SearchConfig(chunk_size=chunk_size, constraint="none"),
    )


def make_params(config):
    return {
        "generator": normal(1, LATENT, SIDE * SIDE * 3),
        "encoder": normal(2, SIZE * SIZE * 3, EMBEDDING),
        "prompts": PromptEmbeddings(
            objective=PromptPair(unit(3, 2, EMBEDDING), unit(4, 1, EMBEDDING)),
            measures=tuple(
                None if m.function else PromptPair(unit(5, 1, EMBEDDING), unit(6, 3, EMBEDDING))
                for m in config.measures
            ),
        ),
    }


def test_distance_is_the_angle():
    x, y = unit(0, 50, 4), unit(1, 50, 4)
    np.testing.assert_allclose(
        scoring.angular_distance(x, y), np.arccos(np.sum(x * y, -1)), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("sign", "distance"), [pytest.param(1, 0, id="equal"), pytest.param(-1, math.pi, id="opposite")]
)
def test_distance_has_finite_gradients_where_it_kinks(sign, distance):
    x = jnp.array([0.6, 0.8, 0.0])
    value, gradient = jax.value_and_grad(scoring.angular_distance)(x, sign * x)
    assert value == pytest.approx(distance, abs=1e-6)
    assert np.isfinite(gradient).all()
    # Rounding may put opposite unit vectors slightly more than 2 apart.
    assert np.isfinite(jax.grad(scoring.angular_distance)(x, -1.01 * x)).all()


def test_distance_gradient_agrees_with_finite_differences():
    with jax.enable_x64(True):
        x, y = np.random.default_rng(0).normal(size=(2, 6))
        x, y = jnp.array(x / np.linalg.norm(x)), jnp.array(y / np.linalg.norm(y))
        step = 1e-6 * np.eye(6)
        numeric = [
            (scoring.angular_distance(x + e, y) - scoring.angular_distance(x - e, y)) / 2e-6
            for e in step
        ]
        np.testing.assert_allclose(jax.grad(scoring.angular_distance)(x, y), numeric, rtol=1e-7)


def naive_pool(image, size):
    """Adaptive average pooling, bin by bin."""
    rows, columns = (
        [(i * side // size, -(-(i + 1) * side // size)) for i in range(size)]
        for side in image.shape[:2]
    )
    return np.array([[image[a:b, c:d].mean((0, 1)) for c, d in columns] for a, b in rows])


@pytest.mark.parametrize(("side", "size"), [(5, 8), (12, 8), (9, 8), (16, 4), (128, 224)])
def test_pooling_agrees_with_a_loop(side, size):
    image = np.random.default_rng(0).random((side, side, 3), dtype=np.float32)
    start = 0 if side <= size else 1
    crop = side - 2 * start
    pool = scoring._pooling(jnp.int32(crop), jnp.int32(start), size, side)
    expected = naive_pool(image[start : start + crop, start : start + crop], size)
    np.testing.assert_allclose(scoring._pool(jnp.array(image), pool, pool), expected, atol=1e-6)


def test_cutout_is_some_square_of_the_image_pooled():
    count, width = 1000, SIDE + 2
    image = np.random.default_rng(1).random((SIDE, width, 3), dtype=np.float32)
    candidates = {
        (crop, top, left): naive_pool(image[top : top + crop, left : left + crop], SIZE)
        for crop in range(SIZE, SIDE)
        for top in range(SIDE - crop + 1)
        for left in range(width - crop + 1)
    }
    keys = jax.random.split(jax.random.key(0), count)
    cuts = jax.jit(scoring.cutout, static_argnums=2)(
        keys, jnp.broadcast_to(image, (count, *image.shape)), SIZE
    )
    errors = np.array(
        [np.abs(cuts - square[None]).max((1, 2, 3)) for square in candidates.values()]
    )
    assert errors.min(0).max() < 1e-5
    crops, tops, lefts = np.array(list(candidates))[errors.argmin(0)].T
    for crop in range(SIZE, SIDE):
        assert set(tops[crops == crop]) == set(range(SIDE - crop + 1))
        assert set(lefts[crops == crop]) == set(range(width - crop + 1))
    # The side is int(4 sqrt(U) + 8): 11 where U >= (3/4)^2.
    assert np.mean(crops == SIDE - 1) == pytest.approx(7 / 16, abs=0.07)


@pytest.mark.parametrize("sides", [(4, 9), (8, 8)])
def test_cutout_of_a_small_image_is_not_random(sides):
    images = jax.random.uniform(jax.random.key(0), (2, *sides, 3))
    first, second = (
        scoring.cutout(jax.random.split(jax.random.key(k), 2), images, 8) for k in range(2)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first[1], naive_pool(np.asarray(images[1]), 8), atol=1e-6)


def test_cutout_takes_large_images_whole_if_asked():
    images = jnp.abs(normal(0, 2, 12, 8, 3))
    cut = scoring.cutout(jax.random.split(jax.random.key(0), 2), images, 4, random=False)
    np.testing.assert_allclose(cut, images.reshape(2, 4, 3, 4, 2, 3).mean((2, 4)), rtol=1e-5)


def test_distance_to_ball():
    latents = jnp.array([[0.0, 0.0], [0.9, 1.2], [3.0, 4.0]])  # of norm 0, 1.5 and 5
    np.testing.assert_allclose(scoring.distance_to_ball(latents, 2.0), [0, 0, 3])
    gradients = jax.vmap(jax.grad(lambda x: scoring.distance_to_ball(x[None], 2.0)[0]))(latents)
    np.testing.assert_allclose(gradients, [[0, 0], [0, 0], [0.6, 0.8]], rtol=1e-6)


@pytest.mark.slow
def test_regularisation_lowers_the_objective_outside_the_ball():
    free = make_config()
    bound = dataclasses.replace(
        free, objective=dataclasses.replace(free.objective, regularisation=0.5, radius=0.8)
    )
    latents, params, key = 2 * normal(7, 6, LATENT), make_params(free), jax.random.key(0)
    objective, lower = (
        scoring.make_score(config, GENERATOR, ENCODER)(params, key, latents, ())[0].objective
        for config in (free, bound)
    )
    radius = 0.8 * np.linalg.norm(normal(0, 10_000, LATENT), axis=1).mean()
    outside = np.maximum(np.linalg.norm(latents, axis=1), radius) - radius
    np.testing.assert_allclose(objective - lower, 50 * 0.5 * outside**2, rtol=1e-4, atol=1e-4)


def remembered(*embeddings):
    """A memory of these images."""
    memory = scoring.SeenImages(jnp.zeros((scoring.REMEMBERED, EMBEDDING)), jnp.int32(0))
    for embedding in embeddings:
        memory = scoring.remember(memory, jax.random.key(0), embedding[None], jnp.array([51.0]))
    return memory


def test_uniqueness_is_the_distance_to_the_nearest_remembered_image():
    images, known = unit(10, 6, EMBEDDING), unit(11, 150, EMBEDDING)
    for memory, share in [(known[:3], 3), (known, 100)]:  # the oldest fifty are forgotten
        nearest = np.arccos(np.clip(images @ memory[-100:].T, -1, 1)).min(1)
        unique = scoring.uniqueness(remembered(*memory), images)
        np.testing.assert_allclose(unique, 100 / share * nearest, rtol=1e-4)


def test_everything_is_unique_while_nothing_is_remembered():
    value, gradient = jax.value_and_grad(lambda x: scoring.uniqueness(remembered(), x).sum())(
        unit(10, 6, EMBEDDING)
    )
    assert value == 6
    np.testing.assert_array_equal(gradient, 0)


def test_one_random_good_image_of_a_batch_is_remembered():
    images, objective = unit(10, 4, EMBEDDING), jnp.array([50.0, 60.0, jnp.nan, 70.0])
    seen = set()
    for seed in range(20):
        memory = scoring.remember(remembered(), jax.random.key(seed), images, objective)
        assert int(memory.count) == 1
        seen |= set(np.flatnonzero((images == memory.embeddings[:1]).all(1)).tolist())
    assert seen == {1, 3}
    none = scoring.remember(remembered(), jax.random.key(0), images, jnp.full(4, 50.0))
    assert int(none.count) == 0
    np.testing.assert_array_equal(none.embeddings, 0)


def with_uniqueness(config):
    return dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, uniqueness=0.2)
    )


@pytest.mark.slow
def test_the_objective_rewards_uniqueness_and_remembers_one_image_a_call():
    free = make_config()
    params, latents, key = make_params(free), normal(7, 3, LATENT), jax.random.key(8)
    near, far = unit(4, 1, EMBEDDING), unit(3, 2, EMBEDDING)  # far from two texts: all are good
    params["prompts"] = dataclasses.replace(params["prompts"], objective=PromptPair(near, far))
    score = scoring.make_score(with_uniqueness(free), GENERATOR, ENCODER)
    free_score = scoring.make_score(free, GENERATOR, ENCODER)
    assert free_score.init_memory(params) == ()
    plain = free_score(params, key, latents, ())[0].objective
    scores, memory = score(params, key, latents, ())
    assert memory == ()
    np.testing.assert_array_equal(scores.objective, plain)

    scores, first = score(params, key, latents, score.init_memory(params))
    np.testing.assert_array_equal(scores.objective, plain)  # nothing was known yet
    assert int(first.count) == 1
    scores, second = score(params, key, latents, first)
    assert int(second.count) == 2
    images = render(params["generator"], latents)
    cut = scoring.cutout(jax.random.split(key, 3), images, SIZE)
    unique = scoring.uniqueness(first, embed_images(params["encoder"], cut))
    change = scores.objective - plain
    np.testing.assert_allclose(change, 50 * 0.2 * (unique - 1), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_gradient_of_uniqueness_agrees_with_finite_differences():
    with jax.enable_x64(True):
        config = with_uniqueness(make_config())
        params, latents, key = make_params(config), normal(7, 3, LATENT), jax.random.key(8)
        score = scoring.make_score(config, GENERATOR, ENCODER)
        memory = scoring.SeenImages(unit(9, scoring.REMEMBERED, EMBEDDING), jnp.int32(3))
        jacobian = jax.jit(score.with_jacobian())(params, key, latents, memory)[0].jacobian
        plain = jax.jit(score.with_jacobian())(params, key, latents, ())[0].jacobian
        assert np.abs(jacobian[:, 0] - plain[:, 0]).min() > 1e-3
        np.testing.assert_allclose(jacobian[:, 1:], plain[:, 1:], rtol=1e-9)
        for axis in range(LATENT):
            step = 1e-6 * jnp.eye(LATENT)[None, axis]
            above, below = (
                score(params, key, latents + s, memory)[0].objective for s in (step, -step)
            )
            np.testing.assert_allclose(jacobian[:, 0, axis], (above - below) / 2e-6, rtol=1e-5)


@pytest.mark.slow
def test_rendering_again_for_the_gradients_changes_nothing():
    plain = make_config()
    again = dataclasses.replace(plain, search=dataclasses.replace(plain.search, rematerialise=True))
    params, latents, key = make_params(plain), normal(7, 4, LATENT), jax.random.key(8)
    jacobians = [
        scoring.make_score(config, GENERATOR, ENCODER).with_jacobian() for config in (plain, again)
    ]
    one, other = (jax.jit(f)(params, key, latents, ())[0] for f in jacobians)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), one, other)
    programs = [str(jax.make_jaxpr(f)(params, key, latents, ())) for f in jacobians]
    assert ["remat" in program for program in programs] == [False, True]


def test_an_objective_without_prompts_follows_the_formula():
    config = dataclasses.replace(
        make_config(BRIGHTNESS),
        objective=ObjectiveConfig(typicality=0.5, regularisation=2.0, radius=0.8),
        search=SearchConfig(threshold_min=-20.0),
    )
    params = make_params(config)
    params = {
        "generator": params["generator"],
        "prompts": PromptEmbeddings(None, (None,)),
        "typical": typicality.fit_images(GENERATOR, params["generator"]),
    }
    latents = jnp.concatenate([normal(7, 6, LATENT), 3 * normal(8, 6, LATENT)])
    score = scoring.make_score(config, GENERATOR, None)
    scores, _ = jax.jit(score.with_jacobian())(params, jax.random.key(8), latents, ())
    images = render(params["generator"], latents)
    distance = typicality.distance(params["typical"], images)
    radius = 0.8 * np.linalg.norm(normal(0, 10_000, LATENT), axis=1).mean()
    outside = np.maximum(np.linalg.norm(latents, axis=1), radius) - radius
    loss = 0.5 * distance + 2 * outside**2
    typical = np.asarray(distance <= 1)
    assert set(typical.tolist()) == {True, False}
    expected = np.where(typical, 100 - 50 * loss, -20 - 50 * (distance - 1))
    np.testing.assert_allclose(scores.objective, expected, rtol=1e-3)
    np.testing.assert_array_equal(scores.atypical, ~typical)
    np.testing.assert_allclose(scores.measures[:, 0], brightness(images), rtol=1e-6)
    assert np.isfinite(scores.jacobian).all()


def test_cutout_takes_old_style_keys_and_has_gradients():
    images = jax.random.uniform(jax.random.key(0), (2, SIDE, SIDE, 3))
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    gradient = jax.jit(jax.grad(lambda x: scoring.cutout(keys, x, SIZE).sum()))(images)
    assert np.asarray(gradient).sum() == pytest.approx(2 * SIZE * SIZE * 3, rel=1e-5)


def test_score_follows_the_formulas():
    config = make_config()
    params, latents, key = make_params(config), normal(7, 6, LATENT), jax.random.key(8)
    score = jax.jit(scoring.make_score(config, GENERATOR, ENCODER))
    scores, _ = score(params, key, latents, ())
    objective, measures = scores.objective, scores.measures
    assert objective.shape == (6,)
    assert measures.shape == (6, 2)

    images = render(params["generator"], latents)
    cut = scoring.cutout(jax.random.split(key, 6), images, SIZE)
    embeddings = np.asarray(embed_images(params["encoder"], cut))

    def distance(texts):
        return sum(np.arccos(embeddings @ text) for text in np.asarray(texts))

    pair, hue = params["prompts"].objective, params["prompts"].measures[0]
    loss = distance(pair.near) - distance(pair.far)
    np.testing.assert_allclose(objective, 100 - 50 * loss, atol=1e-3)
    np.testing.assert_allclose(measures[:, 0], distance(hue.near) - distance(hue.far), atol=1e-5)
    np.testing.assert_allclose(measures[:, 1], brightness(images), rtol=1e-6)


@pytest.mark.parametrize(
    "measures", [(HUE, BRIGHTNESS), pytest.param((BRIGHTNESS,), marks=pytest.mark.slow)]
)
def test_jacobian_agrees_with_jacrev_of_each_latent(measures):
    with jax.enable_x64(True):
        config = make_config(*measures)
        params, latents, key = make_params(config), normal(7, 6, LATENT), jax.random.key(8)
        score = scoring.make_score(config, GENERATOR, ENCODER)
        scores, _ = jax.jit(score.with_jacobian())(params, key, latents, ())

        @jax.jit
        def alone(key, latent):
            def row(x):
                scores, _ = score.score_rows(params, key[None], x[None], ())
                return jnp.append(scores.objective, scores.measures)

            return row(latent), jax.jacrev(row)(latent)

        for i, sample_key in enumerate(jax.random.split(key, 6)):
            expected, rows = alone(sample_key, latents[i])
            values = [scores.objective[i], *scores.measures[i]]
            np.testing.assert_allclose(values, expected, rtol=1e-9)
            np.testing.assert_allclose(scores.jacobian[i], rows, rtol=1e-9)


def test_jacobian_agrees_with_finite_differences():
    with jax.enable_x64(True):
        config = make_config()
        params, latents, key = make_params(config), normal(7, 3, LATENT), jax.random.key(8)
        score = scoring.make_score(config, GENERATOR, ENCODER)
        jitted = jax.jit(score)
        jacobian = jax.jit(score.with_jacobian())(params, key, latents, ())[0].jacobian
        assert jacobian.dtype == jnp.float64
        for axis in range(LATENT):
            step = 1e-6 * jnp.eye(LATENT)[None, axis]
            after, before = (jitted(params, key, latents + s, ())[0] for s in (step, -step))
            change = jax.tree.map(np.subtract, after, before)
            numeric = np.c_[change.objective, change.measures] / 2e-6
            np.testing.assert_allclose(jacobian[:, :, axis], numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_chunks_change_nothing(chunk_size):
    with jax.enable_x64(True):
        config = make_config()
        params, latents, key = make_params(config), normal(7, 10, LATENT), jax.random.key(8)
        whole = scoring.make_score(config, GENERATOR, ENCODER)
        chunked = dataclasses.replace(whole, chunk_size=chunk_size)
        for function in (lambda score: score, scoring.ImageScore.with_jacobian):
            expected, _ = jax.jit(function(whole))(params, key, latents, ())
            actual, _ = jax.jit(function(chunked))(params, key, latents, ())
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), actual, expected)


def test_weights_are_arguments_of_the_jitted_score():
    config = make_config(chunk_size=2)
    params, latents = make_params(config), normal(7, 4, LATENT)
    score = scoring.make_score(config, GENERATOR, ENCODER)
    for function in (score, score.with_jacobian()):
        jaxpr = jax.make_jaxpr(function)(params, jax.random.key(0), latents, ())
        assert max([np.size(constant) for constant in jaxpr.consts], default=0) < 100


@pytest.mark.slow
def test_the_reference_implementations_scores(reference):
    """Its VAE and scoring code, and a CLIP of one layer that reads 224 pixels."""
    golden = np.load(reference / "qdgs/shapes_scores.npz")
    generator, generator_params = generators.load(str(reference / "qdgs/vae-shapes.pt"))
    encoder, encoder_params = encoders.load(str(reference / "clip/tiny_vit32/openai_state_dict.pt"))
    tokens = jnp.array(golden["prompt_tokens"], jnp.int32)
    texts = encoder.embed_tokens(encoder_params, tokens)[:, None]
    pairs = [PromptPair(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)]
    prompts = PromptEmbeddings(pairs[0], tuple(pairs[1:]))
    params = {"generator": generator_params, "encoder": encoder_params, "prompts": prompts}
    config = make_config(*(MeasureConfig(name=str(i), low="a", high="b") for i in range(2)))
    score = scoring.make_score(config, generator, encoder)

    latents, key = jnp.array(golden["latents"]), jax.random.key(0)
    scores, _ = jax.jit(score.with_jacobian())(params, key, latents, ())

    @jax.jit
    def stages(params, latents):
        images = generator.render(params["generator"], latents)
        cut = scoring.cutout(jax.random.split(key, len(images)), images, encoder.image_size)
        return images, encoder.embed_images(params["encoder"], cut)

    images, embeddings = stages(params, latents[:4])
    for actual, name in [
        (images.transpose(0, 3, 1, 2), "images_nchw_01"),
        (embeddings, "image_embed_normalised"),
        (scores.objective, "objective"),
        (scores.measures, "measures"),
        # The reference leaves the 50 of its objective out of the gradient.
        (scores.jacobian[:, 0] / 50, "jacobian_objective_reference_sign"),
        (scores.jacobian[:, 1:], "jacobian_measures"),
    ]:
        expected = golden[name][: len(actual)]
        error = np.abs(actual - expected).max() / np.abs(expected).max()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"
