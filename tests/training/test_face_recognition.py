"""Training of face recognition: it learns, resumes, and is the same on several devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qdgs_jax import sharding
from qdgs_jax.errors import ConfigError
from qdgs_jax.models import iresnet
from qdgs_jax.models.precision import for_device
from qdgs_jax.training import face_recognition, loop
from qdgs_jax.training.config import AugmentationConfig, FaceRecognitionConfig
from qdgs_jax.training.face_recognition import Faces, TrainingState, fit

NETWORK = iresnet.IResNetConfig(
    blocks=(1,), channels=(4,), image_size=16, embedding_size=8, dropout=0.0
)
CONFIG = FaceRecognitionConfig(
    batch_size=8, epochs=4, learning_rate=0.05, milestones=(2, 3),
    augmentation=AugmentationConfig(crop=0, low_resolution=0, photometric=0),
)  # fmt: skip


def faces(count: int = 26, people: int = 3) -> Faces:
    """People of one colour each, in noise."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % people
    colours = random.integers(0, 256, (people, 1, 1, 3))
    noise = random.integers(0, 256, (count, 16, 16, 3))
    return Faces(((colours[labels] + noise) // 2).astype(np.uint8), labels)


def params() -> dict:
    return iresnet.init(NETWORK, jax.random.key(1))


def run(checkpoints: Path | None = None, config: FaceRecognitionConfig = CONFIG) -> TrainingState:
    return fit(config, NETWORK, params(), jax.random.key(2), faces(), checkpoints=checkpoints)


def test_training_learns_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after the third call of four, it continues to the same state."""
    train, losses, most = face_recognition.train, [], 4

    def watched(*args, **options):
        if len(losses) == most:
            raise KeyboardInterrupt
        state, found = train(*args, **options)
        losses.append(np.asarray(found).mean())
        return state, found

    monkeypatch.setattr(loop, "STEPS_AT_ONCE", 3)
    monkeypatch.setattr(loop, "SECONDS", 0)
    monkeypatch.setattr(face_recognition, "train", watched)
    whole = run()
    assert int(whole.step) == 12
    assert losses[-1] < 0.5 * losses[0]

    losses.clear()
    most = 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "checkpoints")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "9"]
    losses.clear()
    jax.tree.map(np.testing.assert_array_equal, run(tmp_path / "checkpoints"), whole)
    assert len(losses) == 1


def test_each_epoch_uses_each_image_once_in_its_own_order() -> None:
    whole = loop.batch_rows(jax.random.key(0), 10, 3, range(2, 7))
    assert whole.shape == (5, 3)
    epoch = whole[1:4].ravel().tolist()
    assert len(set(epoch)) == 9
    parts = [loop.batch_rows(jax.random.key(0), 10, 3, some) for some in (range(2, 3), range(3, 7))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert epoch != sorted(epoch)


def test_the_optimiser_is_pytorchs_sgd() -> None:
    """v = 0.9 v + g + decay w, w = w - rate v; the rate falls at milestones."""
    config = FaceRecognitionConfig(learning_rate=0.5, milestones=(2,), weight_decay=0.1)
    optimiser = face_recognition._optimiser(config, steps=2)
    weights = {"conv1": {"kernel": jnp.array(2.0)}, "stem_norm": {"scale": jnp.array(2.0)}}
    state = optimiser.init(weights)
    decayed, kept, velocities = 2.0, 2.0, [0.0, 0.0]
    for step in range(6):
        rate = 0.5 if step < 4 else 0.05
        updates, state = optimiser.update(jax.tree.map(jnp.ones_like, weights), state, weights)
        weights = optax.apply_updates(weights, updates)
        velocities = [0.9 * velocities[0] + 1 + 0.1 * decayed, 0.9 * velocities[1] + 1]
        decayed, kept = decayed - rate * velocities[0], kept - rate * velocities[1]
        np.testing.assert_allclose(
            [weights["conv1"]["kernel"], weights["stem_norm"]["scale"]], [decayed, kept], rtol=1e-5
        )


def test_what_is_decayed() -> None:
    state = face_recognition.start(CONFIG, params(), jax.random.key(0), people=3)
    decayed = face_recognition._is_decayed(state.params)
    names = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(decayed)}
    kept = {name for name, value in names.items() if not value}
    assert all("norm" in name for name in kept)
    assert len(kept) == 2 * (1 + 3 + 1)
    assert names["['centres']"]
    assert names["['network']['stage1_0']['prelu']['slope']"]


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert for_device(CONFIG.precision) == "highest"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert for_device(CONFIG.precision) == "bf16"
    assert for_device(FaceRecognitionConfig(precision="default").precision) == "default"


def test_faces_that_do_not_fit_are_refused() -> None:
    given = faces()
    for wrong, told in (
        (Faces(given.images[:5], given.labels[:5]), "5 faces, fewer than a batch of 8"),
        (Faces(given.images[:, :8], given.labels), "have 16 x 8 pixels, the network reads 16 x 16"),
    ):
        with pytest.raises(ConfigError, match=told):
            fit(CONFIG, NETWORK, params(), jax.random.key(0), wrong)
    with pytest.raises(ConfigError, match="`milestones` must ascend"):
        FaceRecognitionConfig(milestones=(3, 2))


def check_several_devices() -> None:
    """Float64, so that only the order of sums differs."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 4)
    one = run()
    with jax.set_mesh(sharding.make_mesh(jax.devices())):
        several = run()
    assert len(several.params["centres"].devices()) == 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), several, one)


@pytest.mark.slow
def test_several_devices_train_the_same_network() -> None:
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    check_several_devices()
