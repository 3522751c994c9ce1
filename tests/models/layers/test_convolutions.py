"""Convolutions as products with windows are convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.models.layers.convolutions import StridedConv, TransposedConv, convolve
from qdgs_jax.typing import Array, Params


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 5, 2, 1)])
def test_transposed_convolution_is_exact(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    layer = TransposedConv(features=2)
    params = layer.init(jax.random.key(1), x)["params"]
    params["bias"] = jnp.array([1.0, -2.0])
    expected = np.zeros((shape[0], 2 * shape[1] + 2, 2 * shape[2] + 2, 2))
    for i in range(shape[1]):
        for j in range(shape[2]):
            patch = np.einsum("nc,abcf->nabf", x[:, i, j], params["kernel"])
            expected[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += patch
    expected = expected[:, 1:-1, 1:-1] + np.asarray(params["bias"])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["highest", "bfloat16"])
def test_transposed_convolution_pulls_back_as_xla_does(precision: str) -> None:
    """Gradients of inputs and weights, and the precision that was asked for when it was called."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 3))
    layer = TransposedConv(2, jnp.tanh)
    params = layer.init(jax.random.key(1), x)["params"]

    def by_xla(params: Params, x: Array) -> Array:
        kernel = params["kernel"][::-1, ::-1]
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((2, 2), (2, 2)), (2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(y + params["bias"][None, None, None])

    def ours(params: Params, x: Array) -> Array:
        with jax.default_matmul_precision(precision):
            return layer.apply({"params": params}, x)

    actual, pull_back = jax.vjp(ours, params, x)
    expected, pull_back_xla = jax.vjp(by_xla, params, x)
    cotangent = jax.random.normal(jax.random.key(2), actual.shape)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        (actual, pull_back(cotangent)),
        (expected, pull_back_xla(cotangent)),
    )
    program = str(jax.make_jaxpr(pull_back)(cotangent))
    asked, other = ("HIGHEST", "DEFAULT") if precision == "highest" else ("DEFAULT", "HIGHEST")
    assert f"Precision.{asked}" in program
    assert f"Precision.{other}" not in program


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_convolution_pulls_back_as_xlas_own_does(size: int) -> None:
    """Gradients of inputs and kernel, for several cotangents at once."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (
        jax.random.normal(keys[0], (2, 6, 5, 3)),
        jax.random.normal(keys[1], (size,) * 2 + (3, 4)),
    )

    def by_xla(x: Array, kernel: Array) -> Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)

    actual, pull_back = jax.vjp(convolve, x, kernel)
    expected, pull_back_xla = jax.vjp(by_xla, x, kernel)
    cotangents = jax.random.normal(keys[2], (7, *actual.shape))
    found = actual, jax.vmap(pull_back)(cotangents)
    wanted = expected, jax.vmap(pull_back_xla)(cotangents)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted)


def test_a_convolution_keeps_the_precision_that_it_was_called_with() -> None:
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))

    def pulled(x: Array) -> Array:
        with jax.default_matmul_precision("highest"):
            y, pull_back = jax.vjp(lambda x: convolve(x, kernel), x)
        return pull_back(y)[0]

    program = str(jax.make_jaxpr(pulled)(x))
    products = program.count("conv_general_dilated[") + program.count("dot_general[")
    assert program.count("Precision.HIGHEST") == 2 * products


def test_strided_convolution_is_exact() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    layer = StridedConv(features=2)
    params = layer.init(jax.random.key(1), x)["params"]
    params["bias"] = jnp.array([1.0, -2.0])
    expected = jax.lax.conv_general_dilated(
        x, params["kernel"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    actual = layer.apply({"params": params}, x)
    np.testing.assert_allclose(actual, expected + params["bias"][None, None, None], atol=1e-5)
