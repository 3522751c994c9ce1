"""Makes weights.tar and golden.npz: a small random DCGAN and its images, by PyTorch.

Run it where torch is installed: python tests/models/dcgan/make_golden.py
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
LATENT, CHANNELS = 7, (6, 5, 4)


def main() -> None:
    """Writes both files beside this script."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    n_in, stride, padding = LATENT, 1, 0
    for n_out in CHANNELS:
        layers += [
            nn.ConvTranspose2d(n_in, n_out, 4, stride, padding, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
        ]
        n_in, stride, padding = n_out, 2, 1
    layers += [nn.ConvTranspose2d(n_in, 3, 4, 2, 1, bias=False), nn.Tanh()]
    network = nn.Sequential(*layers).eval()
    state = network.state_dict()
    for name, tensor in state.items():
        if tensor.dtype == torch.float32:
            spread = 0.5 + torch.rand_like(tensor) if "running_var" in name else None
            tensor.copy_(0.4 * torch.randn_like(tensor) if spread is None else spread)
    latents = torch.randn(3, LATENT)
    with torch.no_grad():
        images = network(latents[:, :, None, None])
    discriminator = {"main.0.weight": torch.zeros(4, 3, 4, 4)}
    torch.save(
        {
            "epoch": 3,
            "generator": {f"main.{name}": tensor for name, tensor in state.items()},
            "discriminator": discriminator,
        },
        HERE / "weights.tar",
    )
    np.savez_compressed(HERE / "golden.npz", latents=latents.numpy(), images=images.numpy())


if __name__ == "__main__":
    main()
