"""Is a step of a GAN's training as fast as in PyTorch?

Question: how long does a training step take here and in PyTorch, (a) of a DCGAN of grey images of
    32 x 32 pixels with batches of 64, (b) of a StyleGAN2 of RGB images of that size with batches of
    16, both in float32?
Method: both have the same networks with the same initial weights, which must return the same
    logits for the same images and latents, Adam for both networks, non-saturating logistic losses,
    R1 every 16 steps, a moving average, and no augmentation. They train on the same images (uint8
    noise, as time does not depend on their content). PyTorch runs with contiguous images, its
    default, and with channels last; its StyleGAN2 modulates by scaling activations, as ours does,
    and by a kernel for each sample; it adds the stored noise, ours draws new noise for each image.
    A round is 16 steps, hence one R1, of each program, one after the other in one process. Only
    ratios within one run are meaningful.
Command: python benchmarks/gan_training.py --rounds 5
    --json benchmarks/results/gan_training.json
    (needs the extra `bench`; --small is a toy setting, to check that the script works)
Result: not measured on a quiet machine yet.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import traverse_util
from pytorch_networks import (
    Weights,
    torch_dcgan,
    torch_dcgan_discriminate,
    torch_discriminate,
    torch_map_latents,
    torch_synthesize,
)
from torch.nn import functional

from qdgs_jax.models import dcgan, stylegan2
from qdgs_jax.models.dcgan import discriminator as dcgan_discriminator
from qdgs_jax.models.stylegan2 import discriminator as stylegan2_discriminator
from qdgs_jax.training import gan
from qdgs_jax.training.config import GANConfig
from qdgs_jax.training.gan_networks import DCGANs, Networks, StyleGAN2s

STEPS = 16
GAMMA = 0.5
RATE = 1e-3
TOLERANCE = 1e-3  # of the first logits, relative to the largest
Step = Callable[[], Any]


def main() -> None:
    """Runs both networks and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="toy networks")
    parser.add_argument("--json", type=Path, help="where to write all times")
    options = parser.parse_args()
    widths = (8, 8, 4) if options.small else (128, 64, 32)
    styled = (8, 8, 8, 8) if options.small else (256, 256, 128, 64)
    size = 16 if options.small else 128
    results = {
        "dcgan": compare(
            DCGANs(
                dcgan.DCGANConfig(64, widths, image_channels=1),
                dcgan_discriminator.DiscriminatorConfig(widths, image_channels=1),
            ),
            batch_size=8 if options.small else 64,
            rounds=options.rounds,
        ),
        "stylegan2": compare(
            StyleGAN2s(
                stylegan2.StyleGAN2Config(size, 0, size, (size, size), channels=styled),
                stylegan2_discriminator.DiscriminatorConfig(channels=styled),
            ),
            batch_size=8 if options.small else 16,
            rounds=options.rounds,
        ),
    }
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads of PyTorch"
    versions = {"jax": jax.__version__, "torch": torch.__version__}
    for name, result in results.items():
        for program, seconds in result["seconds_a_step"].items():
            print(f"{name:10} {program:30} {seconds:8.4f} s a step")
        print(f"{name:10} {'jax / fastest torch':30} {result['jax_to_fastest_torch']:8.2f}")
    if options.json:
        content = {"machine": machine, "versions": versions, **results}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def compare(networks: DCGANs | StyleGAN2s, *, batch_size: int, rounds: int) -> dict[str, Any]:
    """Times of all programs, which run by turns."""
    shape = (STEPS, batch_size, *networks.image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    config = GANConfig(
        batch_size=batch_size, generator_rate=RATE, discriminator_rate=RATE, r1_gamma=GAMMA
    )
    params = networks.init(jax.random.key(0))
    programs: dict[str, Step] = {"jax": in_jax(config, networks, images)}
    for fused in (False, True) if networks.layers else (False,):
        kernels = ", kernels of samples" if fused else ""
        for layout in (torch.contiguous_format, torch.channels_last):
            last = ", channels last" if layout == torch.channels_last else ""
            program = InTorch(networks, params, images, fused, layout)
            require_same(networks, params, program, images[0])
            programs[f"torch{last}{kernels}"] = program.train
    first = {name: timed(program) for name, program in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            times[name].append(timed(program) / STEPS)
    medians = {name: median(values) for name, values in times.items()}
    fastest = min(value for name, value in medians.items() if name != "jax")
    return {
        "batch_size": batch_size,
        "first_s": first,
        "seconds_a_step": medians,
        "all_seconds_a_step": times,
        "jax_to_fastest_torch": medians["jax"] / fastest,
    }


def timed(program: Step) -> float:
    """Seconds of a call."""
    begun = time.perf_counter()
    program()
    return time.perf_counter() - begun


def in_jax(config: GANConfig, networks: Networks, images: np.ndarray) -> Step:
    """16 steps as `gan.fit` runs them."""
    state = gan.start(config, networks, jax.random.key(0))

    def train() -> None:
        nonlocal state
        state, _ = gan.train(config, networks, state, jax.random.key(1), jnp.asarray(images))
        jax.block_until_ready(state)

    return train


class InTorch:
    """The same in PyTorch, in its usual form."""

    def __init__(
        self,
        networks: DCGANs | StyleGAN2s,
        params: tuple[Any, Any],
        images: np.ndarray,
        fused: bool,
        layout: torch.memory_format,
    ) -> None:
        self.layout, self.latent_size = layout, networks.latent_size
        self.images = torch.tensor(images).permute(0, 1, 4, 2, 3)
        self.generator, self.discriminator = map(to_torch, params)
        if isinstance(networks, StyleGAN2s):
            config = networks.generator
            map_latents = partial(torch_map_latents, layers=config.layers, rate=config.mapping_rate)
            synthesize = partial(torch_synthesize, filter_taps=config.filter_taps, fused=fused)
            self.generate = lambda z: synthesize(
                {name.removeprefix("synthesis/"): w for name, w in self.generator.items()},
                map_latents(self.generator, z),
            )
            judge = partial(torch_discriminate, filter_taps=config.filter_taps)
        else:
            self.generate = lambda z: torch_dcgan(self.generator, z)
            judge = torch_dcgan_discriminate
        self.judge = lambda images: judge(
            self.discriminator, images.contiguous(memory_format=layout)
        )
        self.average = [w.detach().clone() for w in self.generator.values()]
        self.optimisers = [
            torch.optim.Adam(weights.values(), RATE, (0.0, 0.99))
            for weights in (self.generator, self.discriminator)
        ]
        self.step = 0

    def train(self) -> None:
        """16 steps."""
        for batch in self.images:
            self.train_on((batch.float() / 127.5 - 1).contiguous(memory_format=self.layout))

    def train_on(self, real: torch.Tensor) -> None:
        """One step."""
        count = len(real)
        self.switch(generator=True)
        fake = self.generate(torch.randn(count, self.latent_size))
        self.descend(0, functional.softplus(-self.judge(fake)).mean())
        self.switch(generator=False)
        with torch.no_grad():
            fake = self.generate(torch.randn(count, self.latent_size))
        real_loss = functional.softplus(-self.judge(real)).mean()
        self.descend(1, real_loss + functional.softplus(self.judge(fake)).mean())
        if self.step % STEPS == 0:
            given = real.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.judge(given).sum(), given, create_graph=True)
            self.descend(1, STEPS * GAMMA / 2 * slope.square().sum((1, 2, 3)).mean())
        torch._foreach_lerp_(self.average, [w.detach() for w in self.generator.values()], 0.01)
        self.step += 1

    def switch(self, *, generator: bool) -> None:
        """Which network's weights have gradients."""
        for weights, wanted in ((self.generator, generator), (self.discriminator, not generator)):
            for weight in weights.values():
                weight.requires_grad_(wanted)

    def descend(self, which: int, loss: torch.Tensor) -> None:
        """A step of an optimiser."""
        self.optimisers[which].zero_grad(set_to_none=True)
        loss.backward()
        self.optimisers[which].step()


def to_torch(params: Any) -> Weights:
    """Kernels in PyTorch's layouts: O I H W, and I O H W of those that upsample."""
    weights = {}
    for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
        value = np.asarray(leaf)
        if name == "mean_style":
            continue
        if name.startswith("synthesis/") and name.endswith("conv0/kernel"):
            value = value.transpose(0, 3, 1, 2)
        elif name.startswith("up") and name.endswith("kernel"):
            value = value.transpose(2, 3, 0, 1)
        elif name.endswith("kernel") and value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif name.endswith("const"):
            value = value.transpose(2, 0, 1)
        weights[name] = torch.tensor(np.ascontiguousarray(value).reshape(value.shape))
    return weights


def require_same(
    networks: DCGANs | StyleGAN2s, params: tuple[Any, Any], program: InTorch, images: np.ndarray
) -> None:
    """Ends the benchmark unless both networks return the same logits, of stored noise."""
    latents = np.random.default_rng(1).normal(size=(len(images), networks.latent_size))
    real = images.astype(np.float32) / 127.5 - 1
    with torch.no_grad():
        fake = program.generate(torch.tensor(latents, dtype=torch.float32))
        theirs = [program.judge(x) for x in (torch.tensor(real).permute(0, 3, 1, 2), fake)]
    if isinstance(networks, StyleGAN2s):
        styles = networks.styles(params[0], jnp.asarray(latents), "highest")
        made = stylegan2.synthesize(networks.generator, params[0], styles)
    else:
        made = networks.synthesize(params[0], jax.random.key(0), jnp.asarray(latents), "highest")
    for ours, other in zip((jnp.asarray(real), made), theirs, strict=True):
        logits = networks.discriminate(params[1], ours, "highest")
        if np.abs(logits - other.numpy()).max() > TOLERANCE * np.abs(logits).max():
            raise SystemExit("PyTorch's logits differ from ours: times would say nothing")


if __name__ == "__main__":
    main()
