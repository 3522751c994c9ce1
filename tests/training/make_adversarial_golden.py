"""Makes adversarial_golden.npz: logits, losses, penalties, gradients, by PyTorch in float64.

Run it where torch is installed: python tests/training/make_adversarial_golden.py
Numbers that go in are multiples of 1/32, kept as int8. Names and layouts of weights are ours; all
weights of a network are one vector, sorted by name.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).parent
SIDE, IMAGES, GROUP, CLASSES, GAMMA = 8, 8, 4, 3, 0.7
OFFSET = 0.003  # of images, by which no sum is exactly 0, where leaky ReLU has no gradient
LIMIT = 3.0  # of StyleGAN2's activations
CHANNELS = (6, 5)  # StyleGAN2's at 4 and 8 pixels, DCGAN's at 2 and 4
TAPS = (0.1, 0.2, 0.3, 0.4)
Weights = dict[str, Tensor]


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    """Normal, rounded."""
    numbers = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return (numbers * 32).round().clamp(-127, 127) / 32


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """One vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def stylegan2_shapes(residual: bool, classes: int) -> dict[str, tuple[int, ...]]:
    """Of weights."""
    c4, c8 = CHANNELS
    shapes: dict[str, tuple[int, ...]] = {
        "from_image/kernel": (1, 1, 1, c8), "from_image/bias": (c8,),
        "conv/kernel": (3, 3, c4 + 1, c4), "conv/bias": (c4,),
        "dense/kernel": (16 * c4, c4), "dense/bias": (c4,),
        "logit/kernel": (c4, 5 if classes else 1), "logit/bias": (5 if classes else 1,),
    }  # fmt: skip
    shapes |= {"block8/conv0/kernel": (3, 3, c8, c8), "block8/conv0/bias": (c8,)}
    shapes |= {"block8/conv1/kernel": (3, 3, c8, c4), "block8/conv1/bias": (c4,)}
    shapes |= {"block8/shortcut": (c8, c4)} if residual else {}
    if classes:
        shapes |= {"mapping/embedding/kernel": (classes, 5), "mapping/embedding/bias": (5,)}
        for i, n_in in enumerate((5, 4)):
            n_out = 9 - n_in
            shapes[f"mapping/dense{i}/kernel"] = (n_in, n_out)
            shapes[f"mapping/dense{i}/bias"] = (n_out,)
    return shapes


def dcgan_shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """Of weights."""
    sizes = (*CHANNELS, 1)
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(len(CHANNELS)):
        shapes |= {f"down{i}/kernel": (4, 4, sizes[i + 1], sizes[i]), f"down{i}/bias": (sizes[i],)}
    return shapes | {"logits/kernel": (4 * (sizes[0] + 1), classes), "logits/bias": (classes,)}


def convolve(x: Tensor, kernel: Tensor, **options: int) -> Tensor:
    """NCHW with a kernel as ours is laid out."""
    return functional.conv2d(x, kernel.permute(3, 2, 0, 1), **options)


def low_pass(x: Tensor, padding: int, stride: int) -> Tensor:
    """The filter on each channel; a true convolution, so the taps are turned round."""
    taps = torch.tensor(TAPS, dtype=x.dtype).flip(0)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
    return functional.conv2d(x, kernel, padding=padding, stride=stride, groups=x.shape[1])


def activate(x: Tensor, gain: float = 1.0) -> Tensor:
    """As StyleGAN2 does, with activations limited."""
    limit = LIMIT * gain
    return (functional.leaky_relu(x, 0.2) * math.sqrt(2) * gain).clamp(-limit, limit)


def append_deviation(x: Tensor) -> Tensor:
    """One feature map more."""
    groups = x.unflatten(0, (-1, GROUP))
    deviation = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    deviation = deviation.repeat_interleave(GROUP)[:, None, None, None]
    return torch.cat([x, deviation.expand(-1, 1, *x.shape[2:])], 1)


def dense(weights: Weights, name: str, x: Tensor, rate: float = 1.0) -> Tensor:
    """With equalised learning rate."""
    kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
    return x @ kernel * rate / math.sqrt(len(kernel)) + bias * rate


def stylegan2(weights: Weights, images: Tensor, labels: Tensor | None) -> Tensor:
    """Logits of images NCHW."""

    def layer(name: str, x: Tensor, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
        kernel = weights[f"{name}/kernel"] / math.sqrt(weights[f"{name}/kernel"][..., 0].numel())
        y = convolve(x, kernel, padding=padding, stride=stride)
        return activate(y + weights[f"{name}/bias"][:, None, None], gain)

    x = layer("from_image", images, 0)
    shortcut = weights.get("block8/shortcut")
    gain = 1.0 if shortcut is None else math.sqrt(0.5)
    y = layer("block8/conv0", x, 1)
    y = layer("block8/conv1", low_pass(y, 2, 1), 0, 2, gain)
    if shortcut is not None:
        kernel = shortcut * gain / math.sqrt(len(shortcut))
        y = y + convolve(low_pass(x, 1, 2), kernel[None, None])
    x = layer("conv", append_deviation(y), 1).permute(0, 2, 3, 1).flatten(1)
    x = functional.leaky_relu(dense(weights, "dense", x), 0.2) * math.sqrt(2)
    x = dense(weights, "logit", x)
    if labels is None:
        return x[:, 0]
    m = dense(weights, "mapping/embedding", labels)
    m = m / (m.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(2):
        m = dense(weights, f"mapping/dense{i}", m, 0.5)
        m = functional.leaky_relu(m, 0.2) * math.sqrt(2)
    return (x * m).sum(1) / math.sqrt(5)


def dcgan(weights: Weights, images: Tensor, labels: Tensor | None) -> Tensor:
    """Logits of images NCHW."""
    x = images
    for i in (1, 0):
        y = convolve(x, weights[f"down{i}/kernel"], padding=1, stride=2)
        x = functional.leaky_relu(y + weights[f"down{i}/bias"][:, None, None], 0.2)
    x = append_deviation(x).permute(0, 2, 3, 1).flatten(1)
    x = x @ weights["logits/kernel"] + weights["logits/bias"]
    return x[:, 0] if labels is None else (x * labels).sum(1)


def path_length(generator: torch.Generator, golden: dict[str, np.ndarray]) -> None:
    """Of images tanh(styles @ weights), which is 4 x 3 pixels of 2 channels."""
    styles, weights = draw(generator, 3, 2, 5), draw(generator, 10, 24) / 4
    noise = draw(generator, 3, 4, 3, 2)
    keep(golden, "path/", {"styles": styles, "weights": weights * 4, "noise": noise})
    styles.requires_grad_()
    weights.requires_grad_()
    images = torch.tanh(styles.flatten(1) @ weights).reshape(3, 4, 3, 2)
    total = (images * noise).sum() / math.sqrt(4 * 3)
    (gradients,) = torch.autograd.grad(total, styles, create_graph=True)
    lengths = gradients.square().sum(2).mean(1).sqrt()
    mean = 0.99 * 0.5 + 0.01 * lengths.detach().mean()
    penalty = (lengths - mean).square().mean()
    (gradient,) = torch.autograd.grad(penalty, weights)
    golden |= {"path/penalty": penalty.detach().numpy(), "path/mean": mean.numpy()}
    golden["path/gradient"] = gradient.numpy().astype(np.float32)


def keep(golden: dict[str, np.ndarray], prefix: str, tensors: dict[str, Tensor]) -> None:
    """As multiples of 1/32."""
    for name, tensor in tensors.items():
        golden[prefix + name] = (tensor.detach() * 32).round().numpy().astype(np.int8)


def main() -> None:
    """Writes the file beside this script."""
    generator = torch.Generator().manual_seed(0)
    real, fake = (draw(generator, IMAGES, SIDE, SIDE, 1) for _ in range(2))
    labels = functional.one_hot(torch.arange(IMAGES) % CLASSES, CLASSES).double()
    golden: dict[str, np.ndarray] = {}
    keep(golden, "", {"real": real, "fake": fake})
    real, fake = (images / 2 + OFFSET for images in (real, fake))
    for name, network, shapes, given in (
        ("resnet", stylegan2, stylegan2_shapes(True, CLASSES), labels),
        ("orig", stylegan2, stylegan2_shapes(False, 0), None),
        ("dcgan", dcgan, dcgan_shapes(CLASSES), labels),
    ):
        scale = 4 if network is dcgan else 1
        names = sorted(shapes, key=lambda name: name.split("/"))
        weights = {key: draw(generator, *shapes[key]) / scale for key in names}
        keep(golden, f"{name}/", {"weights": flat(weights.values()) * scale})
        for w in weights.values():
            w.requires_grad_()
        images = real.permute(0, 3, 1, 2).clone().requires_grad_()
        logits = network(weights, images, given)
        fakes = network(weights, fake.permute(0, 3, 1, 2), given)
        loss = functional.softplus(-logits).mean() + functional.softplus(fakes).mean()
        (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        penalty = GAMMA / 2 * slope.square().sum((1, 2, 3)).mean()
        golden[f"{name}/logits"] = logits.detach().numpy()
        golden[f"{name}/losses"] = (
            torch.stack([functional.softplus(-fakes).mean(), loss, penalty]).detach().numpy()
        )
        for kind, value in (("loss", loss), ("penalty", penalty)):
            found = torch.autograd.grad(
                value, list(weights.values()), retain_graph=True, materialize_grads=True
            )
            golden[f"{name}/{kind}"] = flat(found).numpy().astype(np.float32)
    path_length(generator, golden)
    np.savez_compressed(HERE / "adversarial_golden.npz", **golden)


if __name__ == "__main__":
    main()
