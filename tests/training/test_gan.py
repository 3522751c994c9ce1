"""Training of GANs: it learns, resumes, and is the same on several devices."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax import generators, sharding
from qdgs_jax.errors import ConfigError
from qdgs_jax.models import dcgan, stylegan2
from qdgs_jax.models.dcgan import discriminator as dcgan_discriminator
from qdgs_jax.models.precision import Precision
from qdgs_jax.models.stylegan2 import discriminator as stylegan2_discriminator
from qdgs_jax.training import gan, loop
from qdgs_jax.training.config import ADAConfig, GANConfig
from qdgs_jax.training.gan import GANState
from qdgs_jax.training.gan_networks import DCGANs, StyleGAN2s, mix_styles
from qdgs_jax.typing import Array, Images, Params

NETWORKS = DCGANs(
    dcgan.DCGANConfig(4, (8,), image_channels=1),
    dcgan_discriminator.DiscriminatorConfig(channels=(8,), image_channels=1),
)
STYLED = StyleGAN2s(
    stylegan2.StyleGAN2Config(4, 0, 6, (6,), channels=(4,), image_channels=1),
    stylegan2_discriminator.DiscriminatorConfig(channels=(4,), image_channels=1),
)
CONFIG = GANConfig(
    images=16 * 300, batch_size=16, generator_rate=0.03, discriminator_rate=0.03, r1_interval=3
)


def images(count: int = 40) -> np.ndarray:
    """Grey ramps, some the other way round."""
    ramp = np.linspace(100, 250, 8).astype(np.uint8)
    rows = np.where(np.arange(count)[:, None] % 3 == 0, ramp[::-1], ramp)
    return np.broadcast_to(rows[:, None, :, None], (count, 8, 8, 1))


def start(config: GANConfig = CONFIG, networks: DCGANs | StyleGAN2s = NETWORKS) -> GANState:
    return gan.start(config, networks, jax.random.key(1))


def fit(checkpoints: Path | None = None) -> GANState:
    return gan.fit(CONFIG, NETWORKS, start(), jax.random.key(2), images(), checkpoints=checkpoints)


def render(params: Params) -> np.ndarray:
    """Mean rows [200, 8] of random images."""
    latents = jax.random.normal(jax.random.key(3), (200, 4))
    return np.asarray(NETWORKS.synthesize(params, None, latents, "highest")).mean((1, 3))


def test_training_learns_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after the fifth call of six, it continues to the same state."""
    train, calls, most = gan.train, [], 6

    def watched(*args, **options):
        if len(calls) == most:
            raise KeyboardInterrupt
        calls.append(1)
        return train(*args, **options)

    monkeypatch.setattr(loop, "SECONDS", 0)
    monkeypatch.setattr(gan, "train", watched)
    whole = fit()
    assert int(whole.step) == 300
    real = images(6)[[0, 1], 0, :, 0] / 127.5 - 1
    before, after = (
        np.abs(render(params)[:, None] - real).mean(axis=2)
        for params in (start().generator, whole.average)
    )
    assert np.median(after.min(axis=1)) < 0.25 * np.median(before.min(axis=1))
    assert set(after.argmin(axis=1)) == {0, 1}

    calls.clear()
    most = 5
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "checkpoints")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["200", "250"]
    calls.clear()
    jax.tree.map(np.testing.assert_array_equal, fit(tmp_path / "checkpoints"), whole)
    assert len(calls) == 1


@pytest.mark.slow
def test_regularisation_is_lazy() -> None:
    """Each penalty moves its network at steps 0 and 3 only; otherwise nothing depends on it."""
    batches = images(16)[None, :, :4, :4]
    config = dataclasses.replace(CONFIG, path_weight=2.0, path_interval=3, style_mixing=0.5)
    moved = {"discriminator_optimiser": [], "path_length": []}
    state = gan.start(config, STYLED, jax.random.key(1))
    for _ in range(5):
        # An Adam counts its steps.
        before = jax.tree.map(
            np.asarray, (state.discriminator_optimiser[0].count, state.path_length)
        )
        state, _ = gan.train(config, STYLED, state, jax.random.key(0), batches)
        moved["discriminator_optimiser"].append(
            int(state.discriminator_optimiser[0].count - before[0]) - 1
        )
        moved["path_length"].append(int(state.path_length != before[1]))
    assert np.abs(state.generator["mean_style"]).max() > 0
    assert moved["discriminator_optimiser"] == moved["path_length"] == [1, 0, 0, 1, 0]


@pytest.mark.slow
def test_augmentation_adapts() -> None:
    """By the share of a batch in `images`, up where real images look real."""
    config = dataclasses.replace(CONFIG, ada=ADAConfig(target=-0.9, images=320, interval=1))
    batches = images(80).reshape(5, 16, 8, 8, 1)
    state, figures = gan.train(config, NETWORKS, start(config), jax.random.key(0), batches)
    wanted = [0.0]
    for sign in np.asarray(figures["sign"]):
        wanted.append(max(wanted[-1] + 0.05 * np.sign(sign + 0.9), 0))
    np.testing.assert_allclose(figures["augmented"], wanted[1:], rtol=1e-5)
    assert wanted[-1] > 0.1
    plain, _ = gan.train(CONFIG, NETWORKS, start(), jax.random.key(0), batches)
    changed = jax.tree.map(
        lambda one, other: bool((one != other).any()), state.discriminator, plain.discriminator
    )
    assert all(jax.tree.leaves(changed))


def test_adam_is_that_of_lazy_regularisation() -> None:
    """An interval k has rate and momenta of k / (k + 1) as many steps."""
    optimiser = gan._adam(dataclasses.replace(CONFIG, momentum=0.5), 0.1, 3)
    gradient, state = jnp.array(2.0), optimiser.init(jnp.zeros(()))
    updates, state = optimiser.update(gradient, state)
    np.testing.assert_allclose(updates, -0.1 * 3 / 4, rtol=1e-5)
    np.testing.assert_allclose(state[0].mu, 2 * (1 - 0.5**0.75), rtol=1e-6)
    np.testing.assert_allclose(state[0].nu, 4 * (1 - 0.99**0.75), rtol=1e-5)


def test_the_average_has_a_half_life_in_images() -> None:
    config = dataclasses.replace(CONFIG, average_half_life=32)
    state = start(config)
    state = state.replace(
        average={"w": jnp.array(0.0)}, generator={"w": jnp.array(1.0)}, step=jnp.array(10_000)
    )
    averaged = gan._averaged(config, state, 16)["w"]
    np.testing.assert_allclose(averaged, 1 - 0.5**0.5, rtol=1e-6)
    # At the start it is 0.05 of the images that were seen: of 16 images, 0.8.
    averaged = gan._averaged(config, state.replace(step=jnp.array(0)), 16)["w"]
    np.testing.assert_allclose(averaged, 1 - 0.5**20, rtol=1e-6)


@pytest.mark.parametrize("networks", [NETWORKS, STYLED])
def test_weights_are_read_as_a_generator(tmp_path: Path, networks: DCGANs | StyleGAN2s) -> None:
    params = start(CONFIG, networks).average
    loaded, read = generators.load(str(networks.save(tmp_path, params)), **(
        {"latent_space": "z"} if networks is STYLED else {}
    ))  # fmt: skip
    latents = jax.random.normal(jax.random.key(0), (2, 4))
    if networks is STYLED:
        styles = STYLED.styles(params, latents, "highest")
        wanted = stylegan2.synthesize(STYLED.generator, params, styles)
    else:
        wanted = networks.synthesize(params, jax.random.key(0), latents, "highest")
    np.testing.assert_allclose(
        loaded.render(read, latents)[..., :1], ((wanted + 1) / 2).clip(0, 1), atol=1e-6
    )


@pytest.mark.parametrize("networks", [NETWORKS, STYLED])
def test_bfloat16_is_near(networks: DCGANs | StyleGAN2s) -> None:
    state, key = start(CONFIG, networks), jax.random.key(0)

    @functools.partial(jax.jit, static_argnames="precision")
    def outputs(precision: Precision) -> tuple[Images, Array]:
        styles = networks.styles(state.generator, jax.random.normal(key, (8, 4)), precision)
        made = networks.synthesize(state.generator, key, styles, precision)
        return made, networks.discriminate(state.discriminator, made, precision)

    for exact, near in zip(outputs("highest"), outputs("bf16"), strict=True):
        assert near.dtype == exact.dtype
        assert 0 < np.abs(near - exact).max() < 0.03 * np.abs(exact).max()


@dataclasses.dataclass(frozen=True)
class Dark:
    """A penalty on bright images."""

    def __call__(self, params: Params, images: Images) -> Array:
        return params * images.mean()


def test_a_penalty_moves_the_generator() -> None:
    batches = images(80).reshape(5, 16, 8, 8, 1)
    means = [
        render(
            gan.train(
                CONFIG, NETWORKS, start(), jax.random.key(0), batches,
                penalty=Dark(), penalty_params=jnp.array(weight),
            )[0].generator
        ).mean()
        for weight in (0.0, 50.0)
    ]  # fmt: skip
    assert means[1] < means[0] - 0.1


def test_styles_are_mixed_from_a_layer_on() -> None:
    ones, twos = jnp.ones((400, 5, 2)), 2 * jnp.ones((400, 5, 2))
    mixed = np.asarray(mix_styles(jax.random.key(0), 0.25, ones, twos))[..., 0]
    assert (mixed[:, 0] == 1).all()
    assert (np.diff(mixed, axis=1) >= 0).all()
    assert 0.17 < (mixed[:, -1] == 2).mean() < 0.33
    assert set((mixed == 2).sum(axis=1)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(mix_styles(jax.random.key(0), 0.0, ones, twos), ones)


def test_the_mean_style_follows_the_styles() -> None:
    styles = jnp.stack([jnp.ones((2, 6)), jnp.zeros((2, 6))])
    moved = STYLED.with_mean_style({"mean_style": jnp.zeros(6)}, styles)["mean_style"]
    np.testing.assert_allclose(moved, 0.002 * 0.5, rtol=1e-4)


def test_a_training_continues_from_given_weights() -> None:
    given, other = NETWORKS.init(jax.random.key(9))
    state = gan.start(CONFIG, NETWORKS, jax.random.key(1), generator=given, discriminator=other)
    jax.tree.map(np.testing.assert_array_equal, state.generator, given)
    jax.tree.map(np.testing.assert_array_equal, state.average, given)
    jax.tree.map(np.testing.assert_array_equal, state.discriminator, other)


def test_what_does_not_fit_is_refused() -> None:
    key = jax.random.key(0)
    with pytest.raises(ConfigError, match=r"are 8 x 8 x 3 .*, the generator's 8 x 8 x 1"):
        gan.fit(CONFIG, NETWORKS, start(), key, np.zeros((20, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match="3 images, fewer than a batch of 16"):
        gan.fit(CONFIG, NETWORKS, start(), key, images(3))
    for name in ("path_weight", "style_mixing"):
        config = dataclasses.replace(CONFIG, **{name: 0.5})
        with pytest.raises(ConfigError, match="have no effect on a DCGAN"):
            gan.fit(config, NETWORKS, start(), key, images())
    config = dataclasses.replace(CONFIG, batch_size=18)
    with pytest.raises(ConfigError, match="18 is no multiple of the discriminator's groups of 4"):
        gan.fit(config, NETWORKS, start(), key, images())


def check_several_devices() -> None:
    """Float64, so that only the order of sums differs."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 4)
    config = dataclasses.replace(CONFIG, ada=ADAConfig(target=-0.9, images=100, interval=1))
    batches = images(48).reshape(3, 16, 8, 8, 1)

    def trained() -> GANState:
        state, key = sharding.on_all_devices((start(config), jax.random.key(0)))
        return gan.train(config, NETWORKS, state, key, batches)[0]

    one = trained()
    with jax.set_mesh(sharding.make_mesh(jax.devices())):
        assert sharding.devices() == 4
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), one, trained()
        )


@pytest.mark.slow
def test_several_devices_train_the_same_networks() -> None:
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    check_several_devices()
