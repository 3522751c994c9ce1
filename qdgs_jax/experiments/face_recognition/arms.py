"""An arm: a network is pre-trained on identities, or not, and tested."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from qdgs_jax.evaluation.pairs import draw_pairs
from qdgs_jax.evaluation.verification import embed_faces, pair_distances, verify
from qdgs_jax.experiments.face_recognition.config import FacePretrainingConfig
from qdgs_jax.experiments.face_recognition.people import People, split
from qdgs_jax.image_measures import TONES
from qdgs_jax.keys import make_key
from qdgs_jax.models import iresnet
from qdgs_jax.models.iresnet import IResNetConfig
from qdgs_jax.training.config import FaceRecognitionConfig
from qdgs_jax.training.face_recognition import Faces, fit, weights
from qdgs_jax.typing import Key, Params

FALSE_MATCHES = "0.01"
"""Rate of false matches at which that of true ones is reported."""


def network_of(config: FacePretrainingConfig) -> IResNetConfig:
    """The network of all arms."""
    options = config.network
    return IResNetConfig(
        blocks=iresnet.BLOCKS[options.depth],
        channels=options.channels,
        image_size=options.image_size,
        embedding_size=options.embedding_size,
    )


def run_arm(
    config: FacePretrainingConfig,
    seed: int,
    identities: People | None,
    test: People,
    real: People | None,
    folder: Path,
) -> dict[str, Any]:
    """Figures of an arm.

    All arms of a seed begin with the same random weights, and are tested on the same pairs.

    Args:
        identities: to pre-train on; None: the arm `none`.
        real: people to fine-tune and to test on.
        folder: where trainings write checkpoints, and the pre-trained network is written.
    """
    began = time.perf_counter()
    network = network_of(config)
    params = iresnet.init(network, make_key(seed, "initial weights"))
    found: dict[str, Any] = {"asked": 0, "identities": 0, "loss": None, "tones": {}}
    if identities:
        key = make_key(seed, "pre-training")
        params, loss = _train(
            config.training, network, params, key, identities, folder / "pre-training"
        )
        iresnet.save(folder / "network.safetensors", network, params)
        tones = np.bincount(identities.tone_of, minlength=len(TONES))
        found = {
            "asked": config.identities, "identities": identities.size, "loss": loss,
            "tones": dict(zip(TONES, map(int, tones), strict=True)), "search": identities.about,
        }  # fmt: skip
    found["synthetic"] = verified(network, params, test, pairs=config.test_pairs, seed=seed)
    found["synthetic"]["asked"] = config.test_identities * len(TONES)
    if real:
        tuned, others = split(real, config.tuned, seed)
        found["real"] = verified(network, params, others, pairs=config.test_pairs, seed=seed)
        key = make_key(seed, "fine-tuning")
        params, loss = _train(config.tuning, network, params, key, tuned, folder / "fine-tuning")
        found["tuned"] = verified(network, params, others, pairs=config.test_pairs, seed=seed)
        found["tuned"]["loss"] = loss
    return {**found, "seconds": time.perf_counter() - began}


def _train(
    config: FaceRecognitionConfig,
    network: IResNetConfig,
    params: Params,
    key: Key,
    people: People,
    checkpoints: Path,
) -> tuple[Params, float]:
    """The trained network, and the mean loss of the last epoch."""
    checkpoints.parent.mkdir(parents=True, exist_ok=True)
    faces = Faces(people.images, people.labels)
    state = fit(config, network, params, key, faces, checkpoints=checkpoints)
    return weights(state), float(state.statistics["loss"])


def verified(
    network: IResNetConfig, params: Params, people: People, *, pairs: int, seed: int
) -> dict[str, Any]:
    """How well a network tells people apart.

    Pairs are of one class of skin tone, if that was read, and the same threshold holds for all
    classes.

    Args:
        pairs: at most.
        seed: of their choice.

    Returns:
        "pairs"; "accuracy", the mean of those of the classes; its "interval" for other people, see
        `verification.interval`; "true_matches", their rate at a rate of false ones of 1 %, None if
        pairs are too few; "classes", the accuracy of each.
    """
    groups = [TONES[tone] for tone in people.tones if tone >= 0]
    drawn = draw_pairs(people.images, people.labels, groups, count=pairs, seed=seed)
    found = verify(pair_distances(embed_faces(network, params, people.images), drawn), drawn)
    classes = {tone: found["groups"][tone]["accuracy"] for tone in TONES if tone in found["groups"]}
    matches = found["true matches"][FALSE_MATCHES]
    return {
        "pairs": found["pairs"], "people": people.size,
        "accuracy": float(np.mean([*classes.values()])) if classes else found["accuracy"],
        "interval": found["interval"], "true_matches": matches and matches["rate"],
        "classes": classes,
    }  # fmt: skip
