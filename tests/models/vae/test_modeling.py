"""The VAE computes what its PyTorch original computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.models import vae


def test_decoder_matches_reference(reference):
    config, params = vae.load(reference / "qdgs/vae-shapes.pt")
    assert config == vae.VAEConfig()
    golden = np.load(reference / "qdgs/shapes_scores.npz")
    images = vae.decode(config, params, golden["latents"][:4])
    expected = golden["images_nchw_01"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(images, expected, atol=1e-5)


@pytest.mark.slow
def test_encoder_recognises_what_the_reference_decodes(reference):
    # No golden covers the encoder; a wrong flattening would scatter its means.
    config, params = vae.load(reference / "qdgs/vae-shapes.pt")
    latents = jnp.array(np.load(reference / "qdgs/shapes_scores.npz")["latents"])
    mean, _ = vae.encode(config, params, vae.decode(config, params, latents))
    assert np.corrcoef(np.ravel(mean), np.ravel(latents))[0, 1] > 0.5


def test_shapes_and_range():
    config = vae.VAEConfig(latent_size=2, image_size=16, channels=(2, 3, 4))
    params = vae.init(config, jax.random.key(0))
    images = vae.decode(config, params, jnp.zeros((3, 2)))
    assert images.shape == (3, 16, 16, 3)
    assert ((images >= 0) & (images <= 1)).all()
    mean, log_variance = vae.encode(config, params, images)
    assert mean.shape == log_variance.shape == (3, 2)
