"""Images and labels -> a trained classifier -> classes of other images.

The classifier is the paper's (QDGS, shapes domain). Functions that train have a leading axis S of
seeds: parallel trainings in one program, each with its own weights and data.
"""

import functools
import itertools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from qdgs_jax.chunks import in_chunks
from qdgs_jax.models.layers.pooled_convolution import in_parts, pooled_convolution
from qdgs_jax.training.config import ClassifierConfig, TrainingConfig
from qdgs_jax.training.descent import descend
from qdgs_jax.typing import Array, Images, Key, Params

TESTED_AT_ONCE = 100  # images
# Uniform in +-1 / sqrt(fan-in), PyTorch's initialisation.
_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Data(NamedTuple):
    """The data of one training."""

    images: Array  # [N, H, W, 3] uint8
    labels: Array  # [N] int32, positions among the classes
    weights: Array  # [N] weight of each image in the loss, 1 on average


class TrainingState(struct.PyTreeNode):
    """The state of a training."""

    params: Params
    optimiser: optax.OptState
    epoch: Array  # [] int32


class Network(nn.Module):
    """3 x 3 convolutions, each with 2 x 2 max pooling and ReLU, then two linear maps."""

    config: ClassifierConfig
    outputs: int

    @nn.compact
    def __call__(self, images: Images) -> Array:
        sizes = itertools.pairwise([images.shape[-1], *self.config.channels])
        layers = [
            Convolution(features, name=f"conv{i}")(channels)
            for i, (channels, features) in enumerate(sizes, start=1)
        ]

        def convolve(x: Images) -> Array:
            for kernel, bias in layers:
                x = pooled_convolution(x, kernel, bias)
            return x

        x = in_parts(convolve, images).reshape(len(images), -1)
        x = nn.relu(nn.Dense(self.config.hidden, kernel_init=_INIT, name="fc1")(x))
        self.sow("intermediates", "features", x)
        return nn.Dense(self.outputs, kernel_init=_INIT, name="fc2")(x)


class Convolution(nn.Module):
    """Kernel and bias for `pooled_convolution`, which runs in `in_parts`, where no module may."""

    features: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        kernel = self.param("kernel", _INIT, (3, 3, channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def network(config: ClassifierConfig, classes: int) -> Network:
    """Two classes have one output, whose sigmoid is the second's probability; more, one each."""
    return Network(config, 1 if classes == 2 else classes)


@functools.partial(jax.jit, static_argnames=("config", "image_shape", "classes"))
def init(
    config: ClassifierConfig, keys: Key, *, image_shape: tuple[int, ...], classes: int
) -> Params:
    """Random weights for each of keys [S]; `image_shape` is (H, W, 3)."""
    init_one = network(config, classes).init
    return jax.vmap(init_one, in_axes=(0, None))(keys, jnp.zeros((1, *image_shape)))


def start(training: TrainingConfig, params: Params) -> TrainingState:
    """The state before a training, from weights with a leading axis S in each leaf."""
    size = len(jax.tree.leaves(params)[0])
    optimiser = jax.vmap(_optimiser(training).init)(params)
    return TrainingState(params, optimiser, jnp.zeros(size, jnp.int32))


@functools.partial(jax.jit, static_argnames=("config", "training", "classes"))
def train(
    config: ClassifierConfig,
    training: TrainingConfig,
    state: TrainingState,
    keys: Key,
    data: Data,
    epochs: Array | int,
    *,
    classes: int,
) -> TrainingState:
    """Trains for `epochs` more epochs, with one compiled program for any number of them.

    An epoch uses each image once, in random order and at a random angle. The last batch is smaller
    if the images do not fill it. Splitting epochs over several calls does not change the result.

    Args:
        state: with a leading axis S in each leaf.
        keys: [S], the same in each call of a training.
        data: with a leading axis S in each leaf.
    """
    one = functools.partial(_train_one, network(config, classes), training)
    return jax.vmap(one, in_axes=(0, 0, 0, None))(state, keys, data, epochs)


@functools.partial(jax.jit, static_argnames=("config", "classes"))
def predict(config: ClassifierConfig, params: Params, images: Array, *, classes: int) -> Array:
    """The most probable class of each image.

    Args:
        params: with a leading axis S in each leaf.
        images: [N, H, W, 3] uint8.

    Returns:
        [S, N] int32.
    """

    return _read(config, params, images, classes)[0]


@functools.partial(jax.jit, static_argnames=("config", "classes"))
def read(
    config: ClassifierConfig, params: Params, images: Array, *, classes: int
) -> tuple[Array, Array]:
    """What `predict` returns [S, N], and the features that it decides by [S, N, F], at least 0.

    Features are the input of the last layer; F is `config.hidden`.
    """
    return _read(config, params, images, classes)


def _read(
    config: ClassifierConfig, params: Params, images: Array, classes: int
) -> tuple[Array, Array]:
    def read_some(params: Params, images: Array) -> tuple[Array, Array]:
        outputs, found = network(config, classes).apply(
            params, _as_floats(images), mutable="intermediates"
        )
        (features,) = found["intermediates"]["features"]
        if classes == 2:
            return (outputs[:, 0] > 0).astype(jnp.int32), features
        return outputs.argmax(axis=1), features

    def read_all(params: Params) -> tuple[Array, Array]:
        return in_chunks(functools.partial(read_some, params), TESTED_AT_ONCE)(images)

    return jax.vmap(read_all)(params)


def _train_one(
    network: Network,
    training: TrainingConfig,
    state: TrainingState,
    key: Key,
    data: Data,
    epochs: Array | int,
) -> TrainingState:
    count = len(data.labels)
    batches, rest = divmod(count, training.batch_size)

    def loss(params: Params, batch: tuple[Array, Key]) -> Array:
        rows, turn_key = batch
        chosen = Data(*(leaf[rows] for leaf in data))
        images = _as_floats(rotate(turn_key, chosen.images, degrees=training.rotation))
        losses = _cross_entropy(network.apply(params, images), chosen.labels)
        return (chosen.weights * losses).mean()

    descend_on = functools.partial(descend, loss, _optimiser(training))

    def epoch(_: Array, state: TrainingState) -> TrainingState:
        order_key, turn_key = jax.random.split(jax.random.fold_in(key, state.epoch))
        rows = jax.random.permutation(order_key, count)
        turn_keys = jax.random.split(turn_key, batches + 1)
        whole = rows[: count - rest].reshape(batches, training.batch_size)
        params, optimiser, _ = descend_on(state.params, state.optimiser, (whole, turn_keys[:-1]))
        if rest:
            last = rows[None, count - rest :], turn_keys[-1:]
            params, optimiser, _ = descend_on(params, optimiser, last)
        return TrainingState(params, optimiser, state.epoch + 1)

    return jax.lax.fori_loop(0, epochs, epoch, state)


def rotate(key: Key, images: Array, *, degrees: float) -> Array:
    """Rotates each image [N, H, W, 3] about its centre by an angle drawn from +-degrees.

    Interpolation is by the nearest pixel. Pixels beyond the edge repeat the edge.
    """
    if degrees == 0:
        return images
    n, height, width = images.shape[:3]
    angle = jnp.deg2rad(jax.random.uniform(key, (n, 1, 1), minval=-degrees, maxval=degrees))
    y = jnp.arange(height)[None, :, None] - (height - 1) / 2
    x = jnp.arange(width)[None, None] - (width - 1) / 2
    row = jnp.round(jnp.cos(angle) * y + jnp.sin(angle) * x + (height - 1) / 2).astype(int)
    column = jnp.round(jnp.cos(angle) * x - jnp.sin(angle) * y + (width - 1) / 2).astype(int)
    row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
    return images[jnp.arange(n)[:, None, None], row, column]


def _cross_entropy(outputs: Array, labels: Array) -> Array:
    """Outputs [N, 1] of two classes or [N, K] of more, labels [N] -> losses [N]."""
    if outputs.shape[1] == 1:
        return optax.sigmoid_binary_cross_entropy(outputs[:, 0], labels)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


def _optimiser(training: TrainingConfig) -> optax.GradientTransformation:
    if training.optimizer == "sgd":
        return optax.sgd(training.learning_rate, momentum=0.9)
    return optax.adam(training.learning_rate)


def _as_floats(pixels: Array) -> Images:
    return pixels.astype(jnp.float32) / 255
