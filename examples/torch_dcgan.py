"""A DCGAN of PyTorch, converted by hand, as a generator of our own.

    self.main = nn.Sequential(
        nn.ConvTranspose2d(100, 512, 4, 1, 0, bias=False), nn.BatchNorm2d(512), nn.ReLU(),
        nn.ConvTranspose2d(512, 256, 4, 2, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
        ...
        nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )
    torch.save({"generator": network.state_dict()}, "generator.pt")

Nothing here needs PyTorch. In the folder of both files, with `model = "torch_dcgan:make"` in the
config's table [generator]:

    qdgs sample CONFIG --out run --allow-code
    qdgs export run dataset --allow-code
"""

import jax
import jax.numpy as jnp

import qdgs_jax as qdgs
from qdgs_jax.models.checkpoint import read_tensors

FILE, PREFIX = "generator.pt", "generator.main."  # print(*read_tensors(FILE)) shows the names


def make():
    tensors = read_tensors(FILE)  # name -> array; nothing in the file is executed
    tensors = {name.removeprefix(PREFIX): each for name, each in tensors.items()}
    params, number = [], 0
    while f"{number}.weight" in tensors:
        # PyTorch's kernels of transposed convolutions are [in, out, height, width].
        layer = {"kernel": jnp.asarray(tensors[f"{number}.weight"]).transpose(2, 3, 0, 1)}
        if f"{number + 1}.running_mean" in tensors:  # the batch norm, as a scale and an offset
            weight, bias, mean, variance = (
                jnp.asarray(tensors[f"{number + 1}.{part}"])[None, None, None]
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            layer["scale"] = weight / jnp.sqrt(variance + 1e-5)
            layer["offset"] = bias - mean * layer["scale"]
        params.append(layer)
        number += 3
    latent_size = params[0]["kernel"].shape[2]
    generator = qdgs.Generator(
        "torch_dcgan",
        latent_size=latent_size,
        image_size=4 * 2 ** (len(params) - 1),  # or (height, width)
        sample=lambda key, n: jax.random.normal(key, (n, latent_size)),
        render=render,
    )
    return generator, params


def render(params, latents):  # [N, D] -> [N, H, W, 3] in [0, 1]
    x = latents[:, None, None]  # 1 x 1 pixels
    for number, layer in enumerate(params):
        stride, padding = (2, 1) if number else (1, 0)
        x = conv_transpose(x, layer["kernel"], stride, padding)
        if "scale" in layer:
            x = jax.nn.relu(x * layer["scale"] + layer["offset"])
    return (jnp.tanh(x) + 1) / 2


def conv_transpose(x, kernel, stride, padding):  # as nn.ConvTranspose2d, for [N, H, W, C]
    around = (len(kernel) - 1 - padding,) * 2
    return jax.lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        window_strides=(1, 1),
        padding=(around, around),
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
