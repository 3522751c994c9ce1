"""Networks in PyTorch that `stylegan2.py` and `against_pytorch.py` compare this package with.

Written from the papers, without JAX. Axes are PyTorch's: images [N, C, H, W]. Weights are named as
this package names them, with kernels in PyTorch's layouts.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

Weights = dict[str, torch.Tensor]


def torch_decode(weights: Weights, latents: torch.Tensor) -> torch.Tensor:
    """The decoder of the shapes VAE: latents [N, D] -> images [N, 3, H, W] in [0, 1]."""
    x = functional.linear(latents, weights["fc1.weight"], weights["fc1.bias"]).relu()
    channels = len(weights["convT1.weight"])
    side = math.isqrt(x.shape[1] // channels)
    x = x.reshape(len(x), channels, side, side)
    for name in ("convT1", "convT2", "convT3"):
        x = functional.conv_transpose2d(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2, padding=1
        )
        x = x.sigmoid() if name == "convT3" else x.relu()
    return x


def torch_synthesize(
    weights: Weights, ws: torch.Tensor, *, filter_taps: Sequence[float], fused: bool
) -> torch.Tensor:
    """Styles [N, L, W] -> images [N, C, H, W] of the skip architecture."""
    taps = 2 * torch.tensor(filter_taps)
    lowpass = torch.outer(taps, taps).flip(0, 1)
    x, image = weights["block4/const"].expand(len(ws), -1, -1, -1), None
    for i in range(ws.shape[1] // 2):
        block = f"block{4 << i}"
        if i:
            x = torch_layer(weights, f"{block}/conv0", x, ws[:, 2 * i - 1], lowpass, fused)
        x = torch_layer(weights, f"{block}/conv1", x, ws[:, 2 * i], None, fused)
        made = torch_image(weights, f"{block}/to_image", x, ws[:, 2 * i + 1], fused)
        image = made if image is None else torch_upsample(image, lowpass) + made
    assert image is not None
    return image


def torch_dense(weights: Weights, name: str, w: torch.Tensor) -> torch.Tensor:
    kernel = weights[f"{name}/kernel"]
    return torch.addmm(weights[f"{name}/bias"], w, kernel, alpha=1 / math.sqrt(len(kernel)))


def torch_layer(
    weights: Weights,
    name: str,
    x: torch.Tensor,
    w: torch.Tensor,
    lowpass: torch.Tensor | None,
    fused: bool,
) -> torch.Tensor:
    kernel, style = weights[f"{name}/kernel"], torch_dense(weights, f"{name}/affine", w)
    n, fan_in = style.shape
    inputs = 0 if lowpass is not None else 1  # the axis of the kernel
    energy = kernel.square().sum((2, 3))
    energy = energy if inputs == 0 else energy.T
    demodulation = (style.square() @ energy + 1e-8).rsqrt()
    if fused:
        scaled = (style, demodulation) if inputs == 0 else (demodulation, style)
        kernel = kernel * scaled[0][:, :, None, None, None] * scaled[1][:, None, :, None, None]
        kernel = kernel.flatten(0, 1)
        x = x.reshape(1, n * fan_in, *x.shape[2:])
    else:
        x = x * style[:, :, None, None]
    groups = n if fused else 1
    if lowpass is None:
        y = functional.conv2d(x, kernel, padding=1, groups=groups)
    else:
        y = functional.conv_transpose2d(x, kernel, stride=2, groups=groups)
        y = torch_filter(functional.pad(y, (1, 1, 1, 1)), lowpass)
    y = y.reshape(n, -1, *y.shape[2:]) if fused else y * demodulation[:, :, None, None]
    y = y + weights[f"{name}/noise"] * weights[f"{name}/noise_strength"]
    y = y + weights[f"{name}/bias"][:, None, None]
    return functional.leaky_relu(y, 0.2) * math.sqrt(2)


def torch_image(
    weights: Weights, name: str, x: torch.Tensor, w: torch.Tensor, fused: bool
) -> torch.Tensor:
    kernel = weights[f"{name}/kernel"].T
    style = torch_dense(weights, f"{name}/affine", w) / math.sqrt(kernel.shape[1])
    if fused:
        kernels = (kernel * style[:, None]).flatten(0, 1)[:, :, None, None]
        y = functional.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, groups=len(x))
        y = y.reshape(len(x), -1, *y.shape[2:])
    else:
        y = functional.conv2d(x * style[:, :, None, None], kernel[:, :, None, None])
    return y + weights[f"{name}/bias"][:, None, None]


def torch_filter(x: torch.Tensor, lowpass: torch.Tensor) -> torch.Tensor:
    channels = x.shape[1]
    return functional.conv2d(x, lowpass.expand(channels, 1, -1, -1), groups=channels)


def torch_upsample(x: torch.Tensor, lowpass: torch.Tensor) -> torch.Tensor:
    n, channels, height, width = x.shape
    x = functional.pad(x[:, :, :, None, :, None], (0, 1, 0, 0, 0, 1))
    x = x.reshape(n, channels, 2 * height, 2 * width)
    return torch_filter(functional.pad(x, (2, 1, 2, 1)), lowpass)
