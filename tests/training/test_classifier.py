"""The classifier: its network, and its training as one program."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qdgs_jax.training import classifier
from qdgs_jax.training.classifier import Data
from qdgs_jax.training.config import ClassifierConfig, TrainingConfig

SIZE = 12
SMALL = ClassifierConfig(channels=(3, 4), hidden=8)


class Plain(nn.Module):
    """The paper's network as it is usually written."""

    config: ClassifierConfig

    @nn.compact
    def __call__(self, x):
        for i, features in enumerate(self.config.channels, start=1):
            x = nn.relu(nn.Conv(features, (3, 3), padding=1, name=f"conv{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.config.hidden, name="fc1")(x.reshape(len(x), -1)))
        return nn.Dense(1, name="fc2")(x)


def make_data(n: int) -> Data:
    """Noise that has no red in class 0 and no blue in class 1, for two seeds."""
    random = np.random.default_rng(7)
    labels = random.integers(0, 2, (2, n))
    images = random.integers(0, 256, (2, n, SIZE, SIZE, 3))
    images[labels == 0, ..., 0] = 0
    images[labels == 1, ..., 2] = 0
    return Data(jnp.asarray(images, jnp.uint8), jnp.asarray(labels), jnp.ones((2, n)))


def begin(training: TrainingConfig) -> classifier.TrainingState:
    """Of two seeds."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = classifier.init(SMALL, keys, image_shape=(SIZE, SIZE, 3), classes=2)
    return classifier.start(training, params)


@pytest.mark.parametrize("height", [12, 13])
def test_network_is_the_papers(height: int) -> None:
    images = jnp.asarray(np.random.default_rng(0).random((4, height, 12, 3)), jnp.float32)
    params = classifier.network(SMALL, 2).init(jax.random.key(1), images)
    np.testing.assert_allclose(
        classifier.network(SMALL, 2).apply(params, images),
        Plain(SMALL).apply(params, images),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_paper_size() -> None:
    network = classifier.network(ClassifierConfig(), 2)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 128, 128, 3)))["params"]
    assert params["fc1"]["kernel"].shape == (16384, 128)
    assert params["fc2"]["kernel"].shape == (128, 1)


# The last batch is smaller, full, the only one.
@pytest.mark.parametrize(
    ("size", "rotation"),
    [
        pytest.param(3, 180.0, marks=pytest.mark.slow),
        pytest.param(4, 0.0, marks=pytest.mark.slow),
        (20, 0.0),
    ],
)
def test_training_equals_a_python_loop(size: int, rotation: float) -> None:
    training = TrainingConfig(
        batch_size=size, rotation=rotation, optimizer="sgd", learning_rate=0.1
    )
    data, state, keys = make_data(8), begin(training), jax.random.split(jax.random.key(3), 2)
    data = data._replace(weights=jax.random.uniform(jax.random.key(4), (2, 8), maxval=2))
    trained = classifier.train(SMALL, training, state, keys, data, 2, classes=2)
    optimiser = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(params, memory, key, images, labels, weights):
        images = classifier.rotate(key, images, degrees=rotation)

        def loss(params):
            outputs = Plain(SMALL).apply(params, images / 255)[:, 0]
            return jnp.mean(weights * jnp.log1p(jnp.exp(outputs * (1 - 2 * labels))))

        updates, memory = optimiser.update(jax.grad(loss)(params), memory)
        return optax.apply_updates(params, updates), memory

    for seed in range(2):
        params = jax.tree.map(lambda leaf, seed=seed: leaf[seed], state.params)
        memory = optimiser.init(params)
        for epoch in range(2):
            order_key, turn_key = jax.random.split(jax.random.fold_in(keys[seed], epoch))
            order = jax.random.permutation(order_key, 8)
            turn_keys = jax.random.split(turn_key, 8 // size + 1)
            for start, key in zip(range(0, 8, size), turn_keys, strict=False):
                batch = (leaf[seed, order[start : start + size]] for leaf in data)
                params, memory = step(params, memory, key, *batch)
        jax.tree.map(
            lambda a, b, seed=seed: np.testing.assert_allclose(a[seed], b, rtol=1e-4, atol=1e-6),
            trained.params, params,
        )  # fmt: skip


LEARNING = TrainingConfig(batch_size=16, learning_rate=1e-2)


def test_training_learns_and_compiles_once() -> None:
    data, keys = make_data(40), jax.random.split(jax.random.key(1), 2)
    before = classifier.train._cache_size()
    one = classifier.train(SMALL, LEARNING, begin(LEARNING), keys, data, 20, classes=2)
    two = begin(LEARNING)
    for epochs in (13, 7):
        two = classifier.train(SMALL, LEARNING, two, keys, data, epochs, classes=2)
    assert classifier.train._cache_size() <= before + 1
    jax.tree.map(np.testing.assert_array_equal, one, two)
    for seed in range(2):
        predicted = classifier.predict(SMALL, one.params, data.images[seed], classes=2)[seed]
        assert (predicted == data.labels[seed]).mean() > 0.9


@pytest.mark.slow
def test_images_without_weight_do_not_teach() -> None:
    data, keys = make_data(40), jax.random.split(jax.random.key(1), 2)
    state = begin(LEARNING)
    data = data._replace(weights=data.weights.at[0, 5:9].set(0))
    other = data._replace(labels=data.labels.at[0, 5:9].set(1 - data.labels[0, 5:9]))
    a, b = (classifier.train(SMALL, LEARNING, state, keys, d, 1, classes=2) for d in (data, other))
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_more_than_two_classes() -> None:
    images, keys = jnp.zeros((4, SIZE, SIZE, 3), jnp.uint8), jnp.zeros((2, 2), jnp.uint32)
    shapes = jax.eval_shape(
        partial(classifier.init, SMALL, image_shape=images.shape[1:], classes=3), keys
    )
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    params["params"]["fc2"]["bias"] = jnp.array([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    predicted = classifier.predict(SMALL, params, images, classes=3)
    np.testing.assert_array_equal(predicted, [[1] * 4, [2] * 4])
    two = classifier._cross_entropy(jnp.array([[0.7]]), jnp.array([1]))
    many = classifier._cross_entropy(jnp.array([[0.0, 0.7]]), jnp.array([1]))
    np.testing.assert_allclose(two, many, rtol=1e-6)


def test_features_are_what_the_last_layer_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read in chunks, and lead to the predicted classes."""
    monkeypatch.setattr(classifier, "TESTED_AT_ONCE", 4)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (7, SIZE, SIZE, 3), np.uint8)
    images[::2, :6], images[1::2, :, 6:] = 0, 0
    keys = jnp.zeros((1, 2), jnp.uint32)
    shapes = jax.eval_shape(
        partial(classifier.init, SMALL, image_shape=images.shape[1:], classes=3), keys
    )
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)
    predicted, features = classifier.read(SMALL, params, images, classes=3)
    assert features.shape == (1, 7, SMALL.hidden)
    assert features.min() == 0 < features.max()
    last = params["params"]["fc2"]
    outputs = features[0] @ last["kernel"][0] + last["bias"]
    np.testing.assert_array_equal(predicted[0], outputs.argmax(axis=-1))
    assert len(set(predicted[0].tolist())) > 1


def test_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    images = jnp.asarray(random.integers(0, 256, (2, 7, 7, 3)), jnp.uint8)
    key = jax.random.key(1)
    assert classifier.rotate(key, images, degrees=0) is images
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, **_: jnp.full(shape, 90.0))
    turned = classifier.rotate(key, images, degrees=180)
    np.testing.assert_array_equal(turned, np.rot90(images, axes=(1, 2)))
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, **_: jnp.full(shape, 45.0))
    white = jnp.full_like(images, 255).at[:, 2:5, 2:5].set(0)
    turned = classifier.rotate(key, white, degrees=180)
    assert (turned[:, (0, 0, -1, -1), (0, -1, 0, -1)] == 255).all()  # corners take the edge's
    assert turned.dtype == jnp.uint8
