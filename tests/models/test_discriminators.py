"""What both discriminators have in common: shapes, errors, groups, and batches over devices."""

import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qdgs_jax import sharding
from qdgs_jax.models.dcgan import discriminator as dcgan
from qdgs_jax.models.layers.discriminators import append_deviation
from qdgs_jax.models.stylegan2 import discriminator as stylegan2

NETWORKS: dict[str, tuple[Any, Any]] = {
    "stylegan2": (stylegan2, stylegan2.DiscriminatorConfig(channels=(4, 3, 2))),
    "dcgan": (dcgan, dcgan.DiscriminatorConfig(channels=(4, 3, 2), first_side=2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_what_is_refused(name: str) -> None:
    module, config = NETWORKS[name]
    params = module.init(config, jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (8, 16, 16, 3), minval=-1)
    logits = jax.jit(partial(module.discriminate, config))
    assert logits(params, images).shape == (8,)
    rounded = jax.jit(partial(module.discriminate, config, precision="bf16"))(params, images)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, logits(params, images), atol=0.1)
    for shape, labels, message in (
        ((8, 16, 15, 3), None, "this discriminator takes"),
        ((8, 16, 16, 3), jnp.zeros((8, 2)), "labels are"),
        ((6, 16, 16, 3), None, "groups of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            logits(params, jnp.zeros(shape), labels)


def test_a_group_sees_only_its_own_deviation() -> None:
    x = jnp.zeros((4, 1, 1, 2)).at[0].set(2.0)
    np.testing.assert_allclose(append_deviation(x, 2)[:, 0, 0, 2], [1, 1, 1e-4, 1e-4], rtol=1e-4)
    assert append_deviation(x, 9).shape == (4, 1, 1, 3)


@pytest.mark.slow
def test_a_batch_over_two_devices_has_the_same_logits() -> None:
    """In a process with two devices: divided in multiples of the group, and across a group."""
    flags = "--xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, __file__],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def compare_on_two_devices() -> None:
    assert jax.device_count() == 2
    for module, config in NETWORKS.values():
        params = module.init(config, jax.random.key(0))
        logits = jax.jit(partial(module.discriminate, config))
        images = jax.random.uniform(jax.random.key(1), (8, 16, 16, 3), minval=-1)
        for batch in (images, images[:2]):
            with jax.set_mesh(sharding.make_mesh(jax.devices())):
                rows = NamedSharding(jax.sharding.get_mesh(), PartitionSpec("devices"))
                divided = logits(params, jax.device_put(batch, rows))
            np.testing.assert_allclose(divided, logits(params, batch), rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    compare_on_two_devices()
