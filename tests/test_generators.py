"""Generators from names and paths."""

import importlib.util
import os
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from qdgs_jax import files, generators
from qdgs_jax.errors import CheckpointError, ConfigError
from qdgs_jax.models import checkpoint, dcgan, stylegan2, vae

CONFIG = vae.VAEConfig(latent_size=3, image_size=16, channels=(2, 3, 4))
STYLES = stylegan2.StyleGAN2Config(
    latent_size=5, style_size=6, mapping_sizes=(7, 6), channels=(8, 8)
)
SIZES = {"z": 5, "w": 6, "w+": 4 * 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    vae.save(folder, CONFIG, vae.init(CONFIG, jax.random.key(0)))
    return folder


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_folder_or_a_file_of_weights(folder, name):
    path = folder / name
    generator, params = generators.load(str(path))
    assert generator.name == path.name
    assert generator.sha256 == files.sha256(folder / "model.safetensors")
    assert (generator.latent_size, generator.image_size) == (3, 16)

    latents = generator.sample(jax.random.key(1), 4)
    images = jax.jit(generator.render)(params, latents)
    expected = vae.decode(CONFIG, vae.load(folder)[1], latents)
    np.testing.assert_allclose(images, expected, atol=1e-6)


def test_pixels_are_float32_on_every_device(folder):
    generator, params = generators.load(str(folder))
    latents = jnp.zeros((2, 3))
    images, pull_back = jax.vjp(lambda x: generator.render(params, x), latents)
    for program in (
        jax.make_jaxpr(generator.render)(params, latents),
        jax.make_jaxpr(pull_back)(images),
    ):
        asked = re.findall(r"\bprecision=(\([^)]*\)|\w+)", str(program))
        assert len(asked) >= 4
        assert set(asked) == {"(Precision.HIGHEST, Precision.HIGHEST)"}


def test_samples_are_standard_normal(folder):
    generator, _ = generators.load(str(folder))
    latents = generator.sample(jax.random.key(0), 5000)
    assert latents.shape == (5000, 3)
    np.testing.assert_allclose(jnp.cov(latents, rowvar=False), np.eye(3), atol=0.1)
    np.testing.assert_allclose(latents.mean(0), np.zeros(3), atol=0.1)


def test_a_wrong_name_is_a_config_error():
    message = r"no generator 'shapes-va' \(did you mean 'shapes-vae'\?\): .* shapes-vae, digi"
    with pytest.raises(ConfigError, match=message):
        generators.load("shapes-va")


def test_a_file_of_something_else_is_a_checkpoint_error(tmp_path):
    (tmp_path / "model.pt").write_text("not weights")
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        generators.load(str(tmp_path / "model.pt"))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="gan-face-generate, which is not installed: run `make"):
        generators.load("digiface-dcgan")


def test_a_checkpoint_of_a_dcgan():
    path = Path(__file__).parent / "models/dcgan/weights.tar"
    generator, params = generators.load(str(path))
    assert (generator.name, generator.latent_size, generator.image_size) == ("weights.tar", 7, 32)
    latents = generator.sample(jax.random.key(0), 2)
    expected = dcgan.generate(*dcgan.load(path), latents)
    np.testing.assert_allclose(generator.render(params, latents), expected, atol=1e-6)


def test_a_folder_of_a_dcgan_under_other_names(tmp_path):
    tensors = checkpoint.read_tensors(Path(__file__).parent / "models/dcgan/weights.tar")
    renamed = {name.replace("main", "net"): np.array(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(renamed, tmp_path / "model.safetensors")
    generator, _ = generators.load(str(tmp_path))
    assert (generator.latent_size, generator.image_size) == (7, 32)


@pytest.mark.skipif(
    importlib.util.find_spec("gan_face_generate") is None, reason="needs `make assets`"
)
def test_the_generator_of_faces():
    generator, params = generators.load("digiface-dcgan")
    assert (generator.name, generator.latent_size, generator.image_size) == (
        "digiface-dcgan", 100, 64,
    )  # fmt: skip
    images = np.asarray(generator.render(params, generator.sample(jax.random.key(0), 64)))
    face, corners = images.mean(0)[24:56, 20:44], images.mean(0)[:8, :8]
    assert face[..., 0].mean() > face[..., 2].mean() + 0.08  # skin is redder than it is blue
    assert abs(corners[..., 0].mean() - corners[..., 2].mean()) < 0.08


@pytest.fixture(scope="module")
def styled(tmp_path_factory):
    """A random StyleGAN2 that keeps its mean style, as trained ones do."""
    folder = tmp_path_factory.mktemp("stylegan2")
    params = stylegan2.init(STYLES, jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (20_000, 5))
    mean = stylegan2.map_latents(STYLES, params, z)[:, 0].mean(axis=0)
    stylegan2.save(folder, STYLES, {**params, "mean_style": mean})
    return folder


@pytest.mark.parametrize("space", [pytest.param("z", marks=pytest.mark.slow), "w", "w+"])
def test_any_latent_space_renders_its_samples_as_the_network_does(styled, space):
    generator, params = generators.load(str(styled), latent_space=space, truncation_psi=0.7)
    latents = generator.sample(jax.random.key(2), 3)
    assert latents.shape == (3, generator.latent_size) == (3, SIZES[space])
    assert generator.image_size == 8
    config, weights = stylegan2.load(styled)
    z = jax.random.normal(jax.random.key(2), (3, 5))

    @jax.jit
    def images(weights, z):
        ws = stylegan2.map_latents(config, weights, z, truncation_psi=0.7)
        return stylegan2.synthesize(config, weights, ws)

    expected = np.clip((images(weights, z) + 1) / 2, 0, 1)
    assert np.mean((expected > 0) & (expected < 1)) > 0.1
    np.testing.assert_allclose(jax.jit(generator.render)(params, latents), expected, atol=1e-5)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_random_styles_are_normalised(styled, space):
    generator, _ = generators.load(str(styled), latent_space=space)
    latents = generator.sample(jax.random.key(3), 5000)
    np.testing.assert_allclose(latents.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose(latents.std(axis=0), 1, atol=0.06)
    truncated, _ = generators.load(str(styled), latent_space=space, truncation_psi=0.5)
    halved = truncated.sample(jax.random.key(3), 4)
    np.testing.assert_allclose(halved, latents[:4] / 2, rtol=1e-4, atol=1e-5)


def test_layers_have_latents_of_their_own_in_w_plus_alone(styled):
    generator, params = generators.load(str(styled))
    assert generator.latent_size == SIZES["w+"]
    same, params_of_w = generators.load(str(styled), latent_space="w")
    latents = same.sample(jax.random.key(4), 2)
    repeated = jnp.tile(latents, STYLES.layers)
    render = jax.jit(generator.render)
    expected = jax.jit(same.render)(params_of_w, latents)
    np.testing.assert_allclose(render(params, repeated), expected, atol=1e-6)
    other = render(params, repeated.at[:, -6:].add(1.0))
    assert np.abs(other - expected).max() > 1e-3


def test_weights_of_a_stylegan2_are_arguments(styled):
    generator, params = generators.load(str(styled))
    latents = jnp.zeros((2, generator.latent_size))
    program = jax.make_jaxpr(generator.render)(params, latents)
    assert max([np.size(constant) for constant in program.consts], default=0) < 10
    gradient = jax.jit(jax.grad(lambda x: generator.render(params, x).sum()))(latents)
    assert np.all(np.abs(gradient).max(axis=0) > 0)


def test_bfloat16_is_close_to_float32(styled):
    (exact, params), (rough, _) = (
        generators.load(str(styled), precision=precision) for precision in ("highest", "bf16")
    )
    latents = exact.sample(jax.random.key(5), 4)
    images = [jax.jit(generator.render)(params, latents) for generator in (exact, rough)]
    assert 0 < np.abs(images[0] - images[1]).mean() < 0.01


@pytest.mark.slow
def test_images_of_the_reference_implementation(reference):
    golden = np.load(reference / "stylegan2/sg2_ffhq256_tiny_golden.npz")
    generator, params = generators.load(str(reference / "stylegan2/sg2_ffhq256_tiny.pkl"))
    mean, std = np.asarray(params["mean_style"]), np.asarray(params["style_std"])
    normalised = (golden["ws_mix"] - mean) / std
    images = jax.jit(generator.render)(params, normalised.reshape(4, -1))
    expected = np.clip((golden["img_const_mix"].transpose(0, 2, 3, 1) + 1) / 2, 0, 1)
    np.testing.assert_allclose(images, expected, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"latent_space": "w"}, {"truncation_psi": 0.7}, {"precision": "bf16"}]
)
def test_options_of_another_family_are_refused(folder, options):
    with pytest.raises(ConfigError, match=r"is a shapes VAE, which has no .* out\.$"):
        generators.load(str(folder), **options)
    generators.load(str(folder), latent_space="z")


@pytest.fixture(scope="module")
def conditional(reference):
    return str(reference / "stylegan2/sg2_cond_32.pkl")


def test_the_last_latents_of_a_conditional_stylegan2_decide_its_class(
    conditional, reference, monkeypatch
):
    def synthesize(config, params, ws, **_):  # shows the style, in grey
        return jnp.broadcast_to(ws[:, 0, :4, None, None] / 8, (len(ws), 4, 4, 1))

    monkeypatch.setattr(stylegan2, "synthesize", synthesize)
    golden = np.load(reference / "stylegan2/sg2_cond_32_golden.npz")
    (_, D), (_, K) = golden["z"].shape, golden["c"].shape
    generator, params = generators.load(conditional, classes=tuple("abcdefghij"))
    assert (generator.latent_size, generator.classes) == (D + K, tuple("abcdefghij"))
    drawn = np.asarray(generator.class_of(generator.sample(jax.random.key(0), 1000 * K)))
    assert (abs(np.bincount(drawn) - 1000) < 100).all()

    latents = np.hstack([golden["z"], 0.5 * golden["c"] - 1])
    assert generator.class_of(latents).tolist() == golden["c"].argmax(1).tolist()
    images = jax.jit(generator.render)(params, latents)
    assert images.shape[1:] == (4, 4, 3)
    expected = np.clip((golden["ws_psi1"][:, 0, :4] / 8 + 1) / 2, 0, 1)
    assert expected.std() > 0.02
    np.testing.assert_allclose(images[:, :, 1, 2], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"latent_space": "w+"}, "is conditional, .*: set generator.latent_space to 'z'"),
        ({"classes": ("a",)}, r"has 10 classes, but generator.classes names 1: name as many"),
    ],
)
def test_what_a_conditional_stylegan2_lacks(conditional, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        generators.load(conditional, **options)


def test_classes_are_refused_where_there_are_none(styled, folder):
    for path in (styled, folder):
        with pytest.raises(ConfigError, match=r"no classes.*leave (it|generator\.classes) out"):
            generators.load(str(path), classes=("a", "b"))


def test_the_last_inputs_of_a_dcgan_can_be_a_class():
    path = str(Path(__file__).parent / "models/dcgan/weights.tar")
    generator, params = generators.load(path, classes=("a", "b", "c"))
    plain, _ = generators.load(path)
    assert generator.latent_size == plain.latent_size == 7
    latents = jnp.array([[1, -1, 2, 0, 0.3, 0.2, -5], [1, -1, 2, 0, -9, -8, -7]])
    assert generator.class_of(latents).tolist() == [0, 2]
    one_hot = jnp.array([[1, -1, 2, 0, 1, 0, 0], [1, -1, 2, 0, 0, 0, 1.0]])
    images = generator.render(params, latents)
    np.testing.assert_allclose(images, plain.render(params, one_hot), atol=1e-6)
    with pytest.raises(ConfigError, match=r"has 7 inputs, too few for 7 generator\.classes"):
        generators.load(path, classes=tuple("abcdefg"))


def own(**changes):
    """A generator of grey images of 4 x 6 pixels, and its weights."""

    def render(params, latents):
        return jnp.broadcast_to(params * latents[:, :1, None], (len(latents), 4, 6))

    def sample(key, n):
        return jax.random.normal(key, (n, 3))

    made = generators.Generator("mine", 3, (4, 6), sample, render)
    return replace(made, **changes), jnp.float32(0.5)


@pytest.fixture
def module(monkeypatch):
    module = types.ModuleType("my_models")
    module.make = own
    monkeypatch.setitem(sys.modules, "my_models", module)


def test_a_function_makes_a_generator(module, folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="The generator 'my_models:make' is code from outside"):
        generators.load("my_models:make")
    generator, params = generators.load("my_models:make", allow_code=True)
    images = generator.render(params, jnp.full((2, 3), 0.5))
    np.testing.assert_array_equal(images, np.full((2, 4, 6, 3), 0.25))
    assert generator.image_shape == (4, 6)
    assert len(generator.sha256) == 64
    assert generators.checked(own()[0], jnp.float32(0.6))[0].sha256 != generator.sha256
    with pytest.raises(ConfigError, match="is a function of another package, which has no latent"):
        generators.load("my_models:make", truncation_psi=0.5, allow_code=True)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models:make").symlink_to(folder)
    assert generators.load("my_models:make")[0].latent_size == CONFIG.latent_size


def test_a_generator_outside_of_jax_is_refused_where_gradients_are_needed():
    def render(params, latents):
        shape = jax.ShapeDtypeStruct((len(latents), 4, 6), jnp.float32)
        return jax.pure_callback(lambda x: np.zeros((len(x), 4, 6), np.float32), shape, latents)

    made = own(render=render)
    assert generators.checked(*made)[0].render(made[1], jnp.zeros((2, 3))).shape == (2, 4, 6, 3)
    with pytest.raises(ConfigError, match=r"`render` has no gradients; it fails .* to 'cma_mae'"):
        generators.checked(*made, gradients=True)
    generators.checked(*own(), gradients=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"latent_size": 4},
            r"`sample\(.*\)` returns float32 \(2, 3\): let it return \[2, 4\]",
        ),
        (
            {"image_size": (6, 4)},
            r"`render\(.*\)` returns float32 \(2, 4, 6\): let it return \[",
        ),
        ({"image_size": (6, 4, 3)}, r"is a side, or a tuple \(height, width\)\.$"),
        ({"image_size": 0}, "no positive whole number: correct it"),
        ({"blocks": 2}, "3 latents are no 2 equal `blocks`"),
        ({"classes": ("a", "a")}, "2 `classes` need distinct names"),
        ({"classes": tuple("abcd")}, "as many latents, not 3"),
        ({"sample": lambda key, n: np.zeros((n, 3), int)}, r"returns int\d+ \(2, 3\): let"),
        ({"sample": lambda key: key}, r"`sample\(key, 2\)` fails \(TypeError: .*: mend it, by JAX"),
        ({"render": lambda params, x: np.asarray(x)}, r"`render\(.*\)` fails \(TracerArrayConv"),
        ({"render": lambda params, x: None}, r"`render\(.*\)` returns a NoneType: let it"),
    ],
)
def test_a_mistake_in_an_own_generator_is_a_sentence(changes, sentence):
    with pytest.raises(ConfigError, match=f"^The generator 'mine': .*{sentence}") as caught:
        generators.checked(*own(**changes))
    assert str(caught.value).isprintable()


def test_weights_of_no_family_are_refused(tmp_path):
    tensors = {"weight": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    known = r"holds only the tensors weight \(3,\): give .* a StyleGAN2 or a DCGAN \("
    with pytest.raises(CheckpointError, match=known):
        generators.load(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (
            ["g_ema.style.1.weight", "g_ema.convs.0.conv.modulation.weight"],
            "rosinality's .*: give a",
        ),
        (["synthesis.input.transform"], "a StyleGAN3: give"),
        (["module.visual.class_embedding"], "a CLIP, which is no generator: give it as encoder"),
        (["model.diffusion_model.time_embed.0.weight"], "a diffusion model: give"),
    ],
)
def test_weights_of_other_networks_are_named(tmp_path, names, what):
    tensors = {name: np.zeros(1, np.float32) for name in names}
    safetensors.numpy.save_file(tensors, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=f"holds .*{what}"):
        generators.load(str(tmp_path / "x.pt"))


def test_bare_weights_of_a_stylegan2_are_named(styled, tmp_path):
    tensors = safetensors.numpy.load_file(styled / "model.safetensors")
    safetensors.numpy.save_file(tensors, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"bare weights of a StyleGAN2.*give the \.pkl"):
        generators.load(str(tmp_path / "x.pt"))


def test_a_training_checkpoint_of_a_vae(folder, tmp_path):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    wrapped = {f"state_dict._orig_mod.{name}": tensor for name, tensor in tensors.items()}
    wrapped["optimizer.lr"] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(wrapped, tmp_path / "x.safetensors")
    generator, params = generators.load(str(tmp_path / "x.safetensors"))
    latents = generator.sample(jax.random.key(1), 2)
    expected = vae.decode(CONFIG, vae.load(folder)[1], latents)
    np.testing.assert_allclose(generator.render(params, latents), expected, atol=1e-6)


@pytest.mark.parametrize("model", ["a\0b", "~nobody/x", "x" * 100_000, "a\nb"])
def test_a_name_that_is_no_path_is_a_config_error(model):
    with pytest.raises(ConfigError, match="no generator") as caught:
        generators.load(model)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors", "/dev/zero"):
        with pytest.raises(CheckpointError, match="not a regular file: check the path"):
            generators.load(str(path))


@pytest.mark.parametrize(
    "config",
    [
        "[" * 100_000,
        '{"latent_size": %s}' % ("9" * 5000),
        '{"latent_size": 1e999, "image_size": 16, "channels": [2, 3, 4]}',
        '{"latent_size": 3, "image_size": 12, "channels": [2, 3, 4]}',
        '{"latent_size": 3, "image_size": 16, "channels": [2, 3, "\\ud800"]}',
        '{"latent_size": 3, "image_size": 16, "channels": [2, 3]}',
        '{"latent_size": 3, "image_size": 16, "channels": [2, 3, -4]}',
        '{"latent_size": 3, "image_size": 99999999999, "channels": [2, 3, 4]}',
    ],
)
def test_a_hostile_config_of_a_vae_is_told(folder, tmp_path, config):
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(
        CheckpointError, match=r"config\.json (is no config|cannot be read).*: "
    ) as e:
        generators.load(str(tmp_path))
    assert str(e.value).isprintable()
