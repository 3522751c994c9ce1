"""Discriminators, losses and penalties compute what PyTorch computes, and so do their gradients."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from qdgs_jax.models import dcgan, stylegan2
from qdgs_jax.models.dcgan import discriminator as dcgan_discriminator
from qdgs_jax.models.stylegan2 import discriminator as stylegan2_discriminator
from qdgs_jax.training import adversarial
from qdgs_jax.typing import Array, Params

GAMMA = 0.7
CHEAP = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiles several times faster."""
STYLEGAN2: dict[str, Any] = {
    "channels": (6, 5),
    "image_channels": 1,
    "mapping_sizes": (4, 5),
    "mapping_rate": 0.5,
    "clamp": 3.0,
    "filter_taps": (0.1, 0.2, 0.3, 0.4),
}
NETWORKS: dict[str, tuple[Any, Any, float]] = {  # module, config, scale of weights
    "resnet": (
        stylegan2_discriminator,
        stylegan2_discriminator.DiscriminatorConfig(**STYLEGAN2, label_size=3),
        1 / 32,
    ),
    "orig": (
        stylegan2_discriminator,
        stylegan2_discriminator.DiscriminatorConfig(**STYLEGAN2, architecture="orig"),
        1 / 32,
    ),
    "dcgan": (
        dcgan_discriminator,
        dcgan_discriminator.DiscriminatorConfig(
            channels=(6, 5), first_side=2, image_channels=1, label_size=3
        ),
        1 / 128,
    ),
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parent / "adversarial_golden.npz"))


@pytest.mark.parametrize("name", ["resnet", pytest.param("orig", marks=pytest.mark.slow), "dcgan"])
def test_matches_torch(name: str, golden: dict[str, np.ndarray]) -> None:
    """In float64, where rounding moves no activation over a kink."""
    module, config, scale = NETWORKS[name]
    with jax.enable_x64(True):
        shapes = jax.eval_shape(partial(module.init, config), jax.random.key(0))
        weights, unravel = ravel_pytree(jax.tree.map(lambda x: np.zeros(x.shape), shapes))
        assert weights.shape == golden[f"{name}/weights"].shape
        real, fake = (jnp.asarray(golden[key] / 64 + 0.003) for key in ("real", "fake"))
        labels = jnp.eye(3)[jnp.arange(8) % 3] if config.label_size else None

        def values(weights: Array) -> tuple[Array, Array]:
            logits = partial(module.discriminate, config, unravel(weights), labels=labels)
            real_logits, fake_logits = logits(real), logits(fake)
            loss = adversarial.discriminator_loss(real_logits, fake_logits)
            losses = [
                adversarial.generator_loss(fake_logits),
                loss,
                adversarial.r1_penalty(logits, real, GAMMA),
            ]
            return jnp.stack(losses), real_logits

        @partial(jax.jit, compiler_options=CHEAP)
        def everything(weights: Array) -> tuple[Array, ...]:
            losses, pull_back, logits = jax.vjp(values, weights, has_aux=True)
            return logits, losses, *jax.vmap(pull_back)(jnp.eye(3)[1:])[0]

        found = everything(jnp.asarray(golden[f"{name}/weights"] * scale))
        for x, key in zip(found, ("logits", "losses", "loss", "penalty"), strict=True):
            expected = golden[f"{name}/{key}"]
            assert np.abs(x - expected).max() < 1e-6 * np.abs(expected).max(), key


def test_path_length_matches_torch(
    golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    styles, weights, noise = (
        jnp.asarray(golden[f"path/{key}"] * np.float32(1 / 32))
        for key in ("styles", "weights", "noise")
    )
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: noise.reshape(shape))

    def penalty(weights: Array) -> tuple[Array, Array]:
        def synthesize(styles: Array) -> Array:
            return jnp.tanh(styles.reshape(3, 10) @ weights / 4).reshape(3, 4, 3, 2)

        return adversarial.path_length_penalty(
            synthesize, jax.random.key(0), styles, jnp.array(0.5)
        )

    (found, mean), gradient = jax.value_and_grad(penalty, has_aux=True)(weights)
    np.testing.assert_allclose(found, golden["path/penalty"], rtol=1e-5)
    np.testing.assert_allclose(mean, golden["path/mean"], rtol=1e-6)
    np.testing.assert_allclose(gradient * 4, golden["path/gradient"], atol=1e-6)


def generators() -> dict[str, tuple[Params, Callable[[Params, Array], Array], Array]]:
    """Small ones: weights, function of styles [N, L, W], styles."""
    with_styles = stylegan2.StyleGAN2Config(
        latent_size=3, style_size=3, mapping_sizes=(3,), channels=(3, 2), image_channels=1
    )
    with_latents = dcgan.DCGANConfig(latent_size=3, channels=(3, 2))
    key = jax.random.key(0)
    return {
        "stylegan2": (
            stylegan2.init(with_styles, key),
            partial(stylegan2.synthesize, with_styles),
            jax.random.normal(key, (2, 4, 3)),
        ),
        "dcgan": (
            dcgan.init(with_latents, key),
            lambda params, z: dcgan.generate(with_latents, params, z[:, 0]),
            jax.random.normal(key, (2, 1, 3)),
        ),
    }


@pytest.mark.parametrize("name", [pytest.param("stylegan2", marks=pytest.mark.slow), "dcgan"])
def test_gradients_of_path_lengths_pass_through_generators(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with finite differences in a random direction, the running mean held constant."""
    monkeypatch.setattr(adversarial, "PATH_LENGTH_DECAY", 0.0)
    with jax.enable_x64(True):
        params, synthesize, styles = generators()[name]
        weights, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(float), params))
        random = np.random.default_rng(0)
        weights = jnp.asarray(weights + 0.1 * random.normal(size=weights.shape))
        direction = jnp.asarray(random.normal(size=weights.shape))

        def penalty(weights: Array) -> Array:
            function = partial(synthesize, unravel(weights))
            key, mean = jax.random.key(1), jnp.zeros(())
            return adversarial.path_length_penalty(function, key, styles, mean)[0]

        compiled = jax.jit(jax.value_and_grad(penalty), compiler_options=CHEAP)
        step = 1e-6
        change = compiled(weights + step * direction)[0] - compiled(weights - step * direction)[0]
        found = compiled(weights)[1] @ direction
        np.testing.assert_allclose(found, change / (2 * step), rtol=1e-5)


def test_the_usual_gamma() -> None:
    assert adversarial.r1_gamma(256, 64) == pytest.approx(0.2048)
