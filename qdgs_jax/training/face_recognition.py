"""Aligned faces and their identities -> a trained IResNet (AdaFace, arXiv 2204.00964).

    config, network = FaceRecognitionConfig(), iresnet.IResNetConfig()
    state = fit(config, network, iresnet.init(network, key), key, faces, checkpoints=folder)
    embeddings = iresnet.embed(network, weights(state), images)

On several devices, each computes its part of every batch; statistics are of the whole batch.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from qdgs_jax import sharding
from qdgs_jax.errors import ConfigError
from qdgs_jax.models import iresnet
from qdgs_jax.models.iresnet import IResNetConfig
from qdgs_jax.models.precision import for_device
from qdgs_jax.training import loop, margins
from qdgs_jax.training.augmentation import augment
from qdgs_jax.training.config import FaceRecognitionConfig
from qdgs_jax.training.descent import descend_with_statistics
from qdgs_jax.typing import Array, Key, Params


class Faces(NamedTuple):
    """Images of people, in memory or in a memory-mapped file."""

    images: Any  # [N, H, W, 3] uint8
    labels: Any  # [N] int, each person's number


class TrainingState(struct.PyTreeNode):
    """The state of a training."""

    params: Params  # {"network": ..., "centres": [E, P]}
    statistics: Params
    """{"network": batch statistics, "norms": NormStatistics, "loss": its mean in this epoch}."""
    optimiser: optax.OptState
    step: Array  # [] int32


def start(config: FaceRecognitionConfig, params: Params, key: Key, *, people: int) -> TrainingState:
    """The state before a training, from an IResNet's weights; `people` have random centres."""
    size = len(params["batch_stats"]["dense_norm"]["mean"])
    params = jax.tree.map(jnp.copy, params)  # `train` donates them
    trained = {
        "network": params["params"],
        "centres": margins.init_centres(key, size, people),
    }
    statistics = {
        "network": params["batch_stats"],
        "norms": margins.init_statistics(),
        "loss": jnp.zeros(()),
    }
    optimiser = _optimiser(config, steps=1).init(trained)
    return TrainingState(trained, statistics, optimiser, jnp.zeros((), jnp.int32))


def weights(state: TrainingState) -> Params:
    """The IResNet's weights."""
    return {"params": state.params["network"], "batch_stats": state.statistics["network"]}


@functools.partial(
    jax.jit, static_argnames=("config", "network", "steps"), donate_argnames=("state",)
)
def train(
    config: FaceRecognitionConfig,
    network: IResNetConfig,
    state: TrainingState,
    key: Key,
    batches: Faces,
    *,
    steps: int,
) -> tuple[TrainingState, Array]:
    """One step of SGD for each of several batches.

    Args:
        key: the same in each call of a training.
        batches: images [T, B, H, W, 3] uint8, labels [T, B].
        steps: of an epoch.

    Returns:
        The state, and losses [T].
    """
    precision = for_device(config.precision)

    def loss(params: Params, statistics: Params, batch: tuple[Faces, Array]) -> tuple[Array, Any]:
        faces, step = batch
        change_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))
        images = sharding.by_rows(faces.images).astype(float) / 255  # JAX's default, float32
        images = sharding.by_rows(augment(config.augmentation, change_key, images))
        embeddings, batch_stats = iresnet.embed_in_training(
            network,
            {"params": params["network"], "batch_stats": statistics["network"]},
            dropout_key,
            images,
            precision=precision,
        )
        logits, norms = margins.person_logits(
            config.margin, params["centres"], statistics["norms"], embeddings, faces.labels
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, faces.labels).mean()
        mean = statistics["loss"] + (loss - statistics["loss"]) / (step % steps + 1)
        return loss, {"network": batch_stats, "norms": norms, "loss": mean}

    count = len(batches.labels)
    params, statistics, optimiser, losses = descend_with_statistics(
        loss,
        _optimiser(config, steps=steps),
        state.params,
        state.statistics,
        state.optimiser,
        (batches, state.step + jnp.arange(count)),
    )
    state = TrainingState(params, statistics, optimiser, state.step + count)
    return sharding.replicated((state, losses))


def fit(
    config: FaceRecognitionConfig,
    network: IResNetConfig,
    params: Params,
    key: Key,
    faces: Faces,
    *,
    checkpoints: Path | None = None,
) -> TrainingState:
    """Trains for all epochs, each of which uses each image at most once, in random order.

    Args:
        params: an IResNet's weights, random or trained.
        checkpoints: folder of states, from which an interrupted training continues, see
            `training.loop`.

    Raises:
        ConfigError: there are fewer images than a batch has, or they are of another size than the
            network's.
        CheckpointError: there are checkpoints, but none can be read.
        OSError: a checkpoint cannot be written.
    """
    _require_fit(config, network, faces)
    steps = len(faces.labels) // config.batch_size
    centre_key, order_key, train_key = jax.random.split(key, 3)
    state = start(config, params, centre_key, people=int(faces.labels.max()) + 1)
    state, train_key = sharding.on_all_devices((state, train_key))

    def batches(some: range) -> Faces:
        rows = loop.batch_rows(order_key, len(faces.labels), config.batch_size, some)
        return Faces(faces.images[rows], faces.labels[rows].astype(np.int32))

    def train_some(state: TrainingState, some: Faces) -> tuple[TrainingState, dict[str, Array]]:
        state, losses = train(config, network, state, train_key, some, steps=steps)
        return state, {"loss": losses}

    return loop.train_all(
        train_some, state, batches, steps=steps * config.epochs, checkpoints=checkpoints
    )


def _require_fit(config: FaceRecognitionConfig, network: IResNetConfig, faces: Faces) -> None:
    size = network.image_size
    if faces.images.shape[1:] != (size, size, 3):
        height, width = faces.images.shape[1:3]
        raise ConfigError(
            f"The faces have {width} x {height} pixels, the network reads {size} x {size}: resize "
            "them, or change the network's image_size."
        )
    if len(faces.labels) < config.batch_size:
        raise ConfigError(
            f"There are {len(faces.labels)} faces, fewer than a batch of {config.batch_size}: "
            "lower batch_size."
        )


def _optimiser(config: FaceRecognitionConfig, *, steps: int) -> optax.GradientTransformation:
    """SGD for epochs of so many steps."""
    schedule = optax.piecewise_constant_schedule(
        config.learning_rate, {epoch * steps: 0.1 for epoch in config.milestones}
    )
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, _is_decayed),
        optax.sgd(schedule, momentum=config.momentum),
    )


def _is_decayed(params: Params) -> Params:
    """False for the weights of batch norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any("norm" in str(part) for part in path), params
    )
