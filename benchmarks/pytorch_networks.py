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


def torch_map_latents(
    weights: Weights, z: torch.Tensor, *, layers: int, rate: float
) -> torch.Tensor:
    """StyleGAN2's mapping network without labels: latents [N, D] -> styles [N, L, W]."""
    x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    for i in range(sum(name.endswith("kernel") and "mapping/" in name for name in weights)):
        kernel, bias = (weights[f"mapping/dense{i}/{part}"] for part in ("kernel", "bias"))
        x = torch.addmm(bias, x, kernel, beta=rate, alpha=rate / math.sqrt(len(kernel)))
        x = functional.leaky_relu(x, 0.2) * math.sqrt(2)
    return x[:, None].expand(-1, layers, -1)


def torch_append_deviation(x: torch.Tensor, group_size: int = 4) -> torch.Tensor:
    """The standard deviation of groups of images, as one feature map more."""
    groups = x.unflatten(0, (-1, group_size))
    deviation = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    deviation = deviation.repeat_interleave(group_size)[:, None, None, None]
    return torch.cat([x, deviation.expand(-1, 1, *x.shape[2:])], 1)


def torch_discriminate(
    weights: Weights, images: torch.Tensor, *, filter_taps: Sequence[float]
) -> torch.Tensor:
    """StyleGAN2's residual discriminator without labels: images [N, C, H, W] -> logits [N]."""
    taps = torch.tensor(filter_taps)
    lowpass = torch.outer(taps, taps).flip(0, 1)

    def layer(name: str, x: torch.Tensor, padding: int, stride: int = 1, gain: float = 1.0):
        kernel = weights[f"{name}/kernel"]
        kernel = kernel / math.sqrt(kernel[0].numel())
        y = functional.conv2d(x, kernel, padding=padding, stride=stride)
        y = y + weights[f"{name}/bias"][:, None, None]
        return functional.leaky_relu(y, 0.2) * (math.sqrt(2) * gain)

    x, half = layer("from_image", images, 0), math.sqrt(0.5)
    while (side := x.shape[-1]) > 4:
        block = f"block{side}"
        y = layer(f"{block}/conv0", x, 1)
        y = torch_filter(functional.pad(y, (2, 2, 2, 2)), lowpass)
        y = layer(f"{block}/conv1", y, 0, 2, half)
        kernel = weights[f"{block}/shortcut"].T
        x = torch_filter(functional.pad(x, (1, 1, 1, 1)), lowpass)[:, :, ::2, ::2]
        x = y + functional.conv2d(x, kernel[:, :, None, None] * (half / math.sqrt(len(kernel.T))))
    x = layer("conv", torch_append_deviation(x), 1).permute(0, 2, 3, 1).flatten(1)
    x = functional.leaky_relu(torch_dense(weights, "dense", x), 0.2) * math.sqrt(2)
    return torch_dense(weights, "logit", x)[:, 0]


def torch_dcgan(weights: Weights, latents: torch.Tensor) -> torch.Tensor:
    """A DCGAN's generator: latents [N, D] -> images [N, C, H, W] in [-1, 1]."""
    channels = weights["up1/kernel"].shape[0]
    x = torch.addmm(weights["project/bias"], latents, weights["project/kernel"]).relu()
    side = math.isqrt(x.shape[1] // channels)
    x = x.unflatten(1, (side, side, channels)).permute(0, 3, 1, 2)
    last = sum(name.startswith("up") and name.endswith("kernel") for name in weights)
    for i in range(1, last + 1):
        kernel, bias = weights[f"up{i}/kernel"], weights[f"up{i}/bias"]
        x = functional.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
        x = x.tanh() if i == last else x.relu()
    return x


def torch_dcgan_discriminate(weights: Weights, images: torch.Tensor) -> torch.Tensor:
    """A DCGAN's discriminator: images [N, C, H, W] -> logits [N]."""
    x = images
    for i in reversed(range(sum(name.startswith("down") for name in weights) // 2)):
        kernel, bias = weights[f"down{i}/kernel"], weights[f"down{i}/bias"]
        x = functional.leaky_relu(functional.conv2d(x, kernel, bias, stride=2, padding=1), 0.2)
    x = torch_append_deviation(x).permute(0, 2, 3, 1).flatten(1)
    return torch.addmm(weights["logits/bias"], x, weights["logits/kernel"])[:, 0]
