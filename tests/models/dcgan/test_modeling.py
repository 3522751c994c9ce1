"""The generator computes what PyTorch computes."""

from pathlib import Path

import jax
import numpy as np

from qdgs_jax.models import dcgan

HERE = Path(__file__).parent


def test_matches_torch():
    config, params = dcgan.load(HERE / "weights.tar")
    assert config == dcgan.DCGANConfig(latent_size=7, channels=(6, 5, 4))
    golden = np.load(HERE / "golden.npz")
    images = dcgan.generate(config, params, golden["latents"])
    expected = (golden["images"].transpose(0, 2, 3, 1) + 1) / 2
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_shapes_and_range():
    config = dcgan.DCGANConfig(latent_size=2, channels=(4, 3))
    params = dcgan.init(config, jax.random.key(0))
    images = dcgan.generate(config, params, jax.random.normal(jax.random.key(1), (5, 2)))
    assert images.shape == (5, config.image_size, config.image_size, 3) == (5, 16, 16, 3)
    assert ((images >= 0) & (images <= 1)).all()
    assert dcgan.DCGANConfig().image_size == 64
