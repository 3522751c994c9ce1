"""Makes small IResNets by PyTorch, adaface.safetensors and insightface.safetensors, what they
return, golden.npz, and step.safetensors, gradients and running statistics of a training step.

Run it where torch is installed: python tests/models/iresnet/make_golden.py
Benchmarks use the networks and the head, too.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

HERE = Path(__file__).parent
BLOCKS, CHANNELS, SIDE, EMBEDDING, PEOPLE = (1, 2, 1, 1), (2, 3, 4, 5), 24, 4, 4


class Block(nn.Module):
    """A residual block of AdaFace's layout."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.Conv2d(before, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.PReLU(after),
            nn.Conv2d(after, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if before != after:
            convolution = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(convolution, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IResNet(nn.Module):
    """AdaFace's layout: images [N, 3, H, W] in [-1, 1], BGR -> [N, E]."""

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512),
        side: int = 112,
        embedding: int = 512,
        dropout: float = 0.4,
        blocks: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        first, last = channels[0], channels[-1]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        pixels = math.ceil(side / 16) ** 2
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last), nn.Dropout(dropout), nn.Flatten(),
            nn.Linear(last * pixels, embedding), nn.BatchNorm1d(embedding, affine=False),
        )  # fmt: skip
        body, before = [], first
        for count, after in zip(blocks, channels, strict=True):
            for i in range(count):
                body.append(Block(before, after, 1 if i else 2))
                before = after
        self.body = nn.Sequential(*body)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


class InsightBlock(nn.Module):
    """A residual block of InsightFace's layout."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.prelu = nn.PReLU(after)
        self.conv2 = nn.Conv2d(after, after, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        if stride > 1:
            convolution = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        return self.bn3(self.conv2(y)) + shortcut


class InsightIResNet(nn.Module):
    """InsightFace's layout: images [N, 3, H, W] in [-1, 1], RGB -> [N, E]."""

    def __init__(
        self, channels: Sequence[int], side: int, embedding: int, blocks: Sequence[int]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.prelu = nn.PReLU(channels[0])
        before = channels[0]
        for number, (count, after) in enumerate(zip(blocks, channels, strict=True), start=1):
            stage = [InsightBlock(before, after, 2)]
            stage += [InsightBlock(after, after, 1) for _ in range(count - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*stage))
            before = after
        self.bn2 = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before * math.ceil(side / 16) ** 2, embedding)
        self.features = nn.BatchNorm1d(embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for number in (1, 2, 3, 4):
            x = getattr(self, f"layer{number}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


class AdaFace(nn.Module):
    """Logits of embeddings [N, E], by equations 10 to 15 of arXiv 2204.00964."""

    def __init__(self, embedding: int, people: int, mean: float = 20.0, std: float = 100.0) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(embedding, people))
        self.s, self.m, self.h, self.alpha = 64.0, 0.4, 0.333, 0.01
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        norms = embeddings.norm(dim=1, keepdim=True)
        cosines = (embeddings / norms) @ functional.normalize(self.kernel, dim=0)
        cosines = cosines.clamp(-1 + 1e-3, 1 - 1e-3)
        with torch.no_grad():
            norms = norms.clamp(1e-3, 100)
            self.mean += self.alpha * (norms.mean() - self.mean)
            self.std += self.alpha * (norms.std() - self.std)
            z = ((norms - self.mean) / (self.std + 1e-3) * self.h).clamp(-1, 1)
        right = functional.one_hot(labels, cosines.shape[1])
        theta = (cosines.arccos() - self.m * z * right).clamp(1e-3, math.pi - 1e-3)
        return self.s * (theta.cos() - (self.m * z + self.m) * right)


def randomise(network: nn.Module) -> nn.Module:
    """Weights that make each of them matter."""
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.ndim > 1:
            tensor.copy_(torch.randn_like(tensor) / math.sqrt(tensor[0].numel()))
        else:
            tensor.copy_(0.5 + torch.rand_like(tensor))
    return network


def main() -> None:
    """Writes the files beside this script."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, SIDE, SIDE, 3))
    rgb = (images.permute(0, 3, 1, 2) / 127.5 - 1).double()
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    found = {"images": images.numpy().astype(np.uint8), "labels": labels.numpy()}

    network = randomise(IResNet(CHANNELS, SIDE, EMBEDDING, dropout=0.0, blocks=BLOCKS))
    head = AdaFace(EMBEDDING, PEOPLE, mean=2.2, std=0.2)
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    save_file({**state, "head.kernel": head.kernel.detach()}, HERE / "adaface.safetensors")
    network, head, bgr = network.double(), head.double(), rgb.flip(1)
    found["eval"] = network.eval()(bgr).detach().float().numpy()
    embeddings = network.train()(bgr)
    embeddings.retain_grad()
    logits = head(embeddings, labels)
    loss = functional.cross_entropy(logits, labels)
    loss.backward()
    found |= {
        "train": embeddings.detach().float().numpy(),
        "train_gradient": embeddings.grad.float().numpy(),
        "logits": logits.detach().float().numpy(),
        "kernel_gradient": head.kernel.grad.float().numpy(),
        "norms": np.array([head.mean.item(), head.std.item()], np.float32),
        "loss": np.array(loss.item(), np.float32),
    }
    step = {name: parameter.grad for name, parameter in network.named_parameters()}
    step |= {name: buffer for name, buffer in network.named_buffers() if "running" in name}
    save_file({name: tensor.float() for name, tensor in step.items()}, HERE / "step.safetensors")

    network = randomise(InsightIResNet(CHANNELS, SIDE, EMBEDDING, BLOCKS))
    save_file(network.state_dict(), HERE / "insightface.safetensors")
    found["insightface"] = network.double().eval()(rgb).detach().float().numpy()
    np.savez_compressed(HERE / "golden.npz", **found)


if __name__ == "__main__":
    main()
