"""StyleGAN2 (Karras et al., arXiv 1912.04958; conditional as in arXiv 2006.06676).

A mapping network maps latents z to styles w, one for each layer. The synthesis network upsamples a
learned 4 x 4 constant to an image; each layer's style scales the channels of its input.
Axes: N batch, L style layers, W style, H W C image.
"""

import dataclasses
import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from qdgs_jax.models.layers.convolutions import convolve
from qdgs_jax.models.precision import Precision, activation_dtype, matmul_precision, widen
from qdgs_jax.models.stylegan2.resampling import up_convolve, upsample
from qdgs_jax.typing import Array, Key, Params

Noise: TypeAlias = Literal["const", "none", "random"]

ARCHITECTURES = ("skip", "resnet", "orig")
EPSILON = 1e-8

MAX_SIZE, MAX_LAYERS, MAX_BLOCKS = 1 << 14, 64, 12  # features, of the mapping network, of images


@dataclasses.dataclass(frozen=True)
class StyleGAN2Config:
    """Everything about a generator but its weights; the defaults are usual for FFHQ at 256."""

    latent_size: int = 512
    label_size: int = 0
    """Classes of a conditional generator; 0 for an unconditional one."""
    style_size: int = 512
    mapping_sizes: tuple[int, ...] = (512,) * 8
    """Outputs of the mapping network's layers; the last is `style_size`."""
    embedding_size: int = 512
    """Size of a label's embedding, which is concatenated to the latents; unused without labels."""
    mapping_rate: float = 0.01
    """Learning rate multiplier of the mapping network; scales its weights and biases when used."""
    channels: tuple[int, ...] = (512, 512, 512, 512, 256, 128, 64)
    """Feature maps at 4 x 4, 8 x 8, 16 x 16, ..."""
    image_channels: int = 3
    architecture: Literal["skip", "resnet", "orig"] = "skip"
    """skip: the image is a sum of one image of each block. resnet, orig: only the last block makes
    an image, and blocks are residual (resnet) or plain (orig)."""
    clamp: float | None = None
    """Limit of every activation, for networks trained in half precision."""
    filter_taps: tuple[float, float, float, float] = (0.125, 0.375, 0.375, 0.125)
    """The low-pass filter of upsampling, along either axis; its sum is one."""
    noise: bool = True
    """Whether layers have noise inputs."""

    def __post_init__(self) -> None:
        sizes = (self.latent_size, self.style_size, self.embedding_size, self.image_channels)
        counts = (*sizes, self.label_size + 1, *self.mapping_sizes, *self.channels)
        if not all(type(n) is int and 0 < n <= MAX_SIZE for n in counts):
            raise ValueError(f"its sizes are no counts up to {MAX_SIZE}")
        if len(self.mapping_sizes) > MAX_LAYERS or len(self.channels) > MAX_BLOCKS:
            raise ValueError(f"it has more than {MAX_LAYERS} layers or {MAX_BLOCKS} blocks")
        numbers = (self.mapping_rate, self.clamp or 1.0, *self.filter_taps)
        if len(numbers) != 6 or not all(type(x) in (int, float) and abs(x) < 1e9 for x in numbers):
            raise ValueError("its mapping_rate, clamp or four filter_taps are no numbers")
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture {self.architecture!r} is none of {ARCHITECTURES}")
        if self.mapping_sizes[-1:] != (self.style_size,):
            raise ValueError(f"mapping_sizes {self.mapping_sizes} do not end in {self.style_size}")
        if not self.channels:
            raise ValueError("channels are empty")

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return 2 << len(self.channels)

    @property
    def layers(self) -> int:
        """Styles that one image takes, L; the last shapes only its colours."""
        return 2 * len(self.channels)


class Dense(nn.Module):
    """A linear map with equalised learning rate: weights of variance 1, scaled when used."""

    features: int
    rate: float = 1.0
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        fan_in = x.shape[-1]
        normal = nn.initializers.normal(1 / self.rate)
        kernel = self.param("kernel", normal, (fan_in, self.features))
        bias = self.param("bias", nn.initializers.constant(self.bias), (self.features,))
        return x @ kernel * (self.rate / math.sqrt(fan_in)) + bias[None] * self.rate


class Mapping(nn.Module):
    """Latents [N, D] and labels [N, classes] -> styles [N, W]."""

    config: StyleGAN2Config

    @nn.compact
    def __call__(self, z: Array, labels: Array | None) -> Array:
        config = self.config
        x = normalize(z)
        if config.label_size:
            embedded = Dense(config.embedding_size, name="embedding")(labels)
            x = jnp.concatenate([x, normalize(embedded)], axis=-1)
        for i, size in enumerate(config.mapping_sizes):
            x = leaky_relu(Dense(size, config.mapping_rate, name=f"dense{i}")(x))
        return x


class StyledConvolution(nn.Module):
    """A 3 x 3 convolution modulated by w: [N, H, W, C] -> [N, H, W, F], or [N, 2H, 2W, F].

    The paper scales the kernel of every sample (its equations 1 and 3). Scaling inputs and outputs
    instead is equivalent, and needs no convolution grouped by sample.
    """

    config: StyleGAN2Config
    features: int
    up: bool = False
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Array, w: Array, noise: Noise, key: Key | None) -> Array:
        config, dtype, fan_in = self.config, x.dtype, x.shape[-1]
        style = Dense(fan_in, bias=1.0, name="affine")(w)
        scaled = x * style[:, None, None].astype(dtype)
        normal = nn.initializers.normal(1.0)
        if self.up:
            # Input channels first, so that the product with all nine taps needs no transpose.
            kernel = self.param("kernel", normal, (fan_in, 3, 3, self.features))
            slices = [kernel[:, i, j] for i in range(3) for j in range(3)]
            y = up_convolve(scaled, kernel.astype(dtype), config.filter_taps)
        else:
            kernel = self.param("kernel", normal, (3, 3, fan_in, self.features))
            slices = [kernel[i, j] for i in range(3) for j in range(3)]
            y = convolve(scaled, kernel.astype(dtype))
        energy = sum(map(jnp.square, slices))  # [C, F]; XLA's reduction takes ten times as long
        demodulation = jax.lax.rsqrt(jnp.square(style) @ energy + EPSILON)
        y = y * demodulation[:, None, None].astype(dtype)
        if config.noise:
            y = y + self._noise(y, noise, key)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = y + bias[None, None, None].astype(dtype)
        return clamp(leaky_relu(y, self.gain), config.clamp, self.gain)

    def _noise(self, y: Array, noise: Noise, key: Key | None) -> Array:
        """One map for all channels: the stored one, or a fresh one for each sample."""
        stored = self.param("noise", nn.initializers.normal(1.0), y.shape[1:3])[None]
        strength = self.param("noise_strength", nn.initializers.zeros, ())
        if noise == "none":
            return jnp.zeros((), y.dtype)
        if key is not None:
            stored = jax.random.normal(key, y.shape[:3], stored.dtype)
        return (stored * strength)[..., None].astype(y.dtype)


class ToImage(nn.Module):
    """A 1 x 1 convolution to colours, modulated but not demodulated."""

    config: StyleGAN2Config

    @nn.compact
    def __call__(self, x: Array, w: Array) -> Array:
        features, fan_in = self.config.image_channels, x.shape[-1]
        style = Dense(fan_in, bias=1.0, name="affine")(w) / math.sqrt(fan_in)
        kernel = self.param("kernel", nn.initializers.normal(1.0), (fan_in, features))
        kernels = (style[:, :, None] * kernel[None]).astype(x.dtype)  # one per sample, all small
        image = widen(jnp.einsum("nhwc,ncf->nhwf", x, kernels))
        image = image + self.param("bias", nn.initializers.zeros, (features,))[None, None, None]
        return clamp(image, self.config.clamp)


class Block(nn.Module):
    """All layers of one resolution; w holds their styles, [N, 3, W], or [N, 2, W] at 4 x 4."""

    config: StyleGAN2Config
    index: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Array | None, image: Array | None, w: Array, noise: Noise, key: Key | None
    ) -> tuple[Array, Array | None]:
        config, features = self.config, self.config.channels[self.index]
        keys = (None, None) if key is None else jax.random.split(key)
        residual = config.architecture == "resnet" and x is not None
        gain = math.sqrt(0.5) if residual else 1.0
        conv1 = StyledConvolution(config, features, gain=gain, name="conv1")
        if x is None:
            const = self.param("const", nn.initializers.normal(1.0), (4, 4, features))
            const = jnp.broadcast_to(const, (len(w), *const.shape))
            x = conv1(const.astype(self.dtype or const.dtype), w[:, 0], noise, keys[1])
        else:
            conv0 = StyledConvolution(config, features, up=True, name="conv0")
            y = conv0(x, w[:, 0], noise, keys[0])
            y = conv1(y, w[:, 1], noise, keys[1])
            x = y + self._shortcut(x, gain) if residual else y
        if image is not None:
            image = upsample(image, config.filter_taps)
        last = self.index == len(config.channels) - 1
        if last or config.architecture == "skip":
            made = ToImage(config, name="to_image")(x, w[:, -1])
            image = made if image is None else image + made
        return x, image

    def _shortcut(self, x: Array, gain: float) -> Array:
        shape = (x.shape[-1], self.config.channels[self.index])
        kernel = self.param("shortcut", nn.initializers.normal(1.0), shape)
        kernel = kernel * (gain / math.sqrt(shape[0]))
        return upsample(x @ kernel.astype(x.dtype), self.config.filter_taps)


class Synthesis(nn.Module):
    """Styles [N, L, W] -> images [N, H, W, C]."""

    config: StyleGAN2Config
    dtype: Any = None

    @nn.compact
    def __call__(self, ws: Array, noise: Noise, key: Key | None) -> Array:
        x = image = None
        for i in range(len(self.config.channels)):
            # A block's image shares its style with the next block's first layer.
            w = ws[:, max(2 * i - 1, 0) : 2 * i + 2]
            block_key = None if key is None else jax.random.fold_in(key, i)
            block = Block(self.config, i, self.dtype, name=f"block{4 << i}")
            x, image = block(x, image, w, noise, block_key)
        assert image is not None, "the last block makes one"
        return image


def init(config: StyleGAN2Config, key: Key) -> Params:
    """Random float32 weights, distributed as at the start of a training.

    The tree has the branches `mapping` and `synthesis`, and the leaf `mean_style` [W].
    """
    z, labels = jnp.zeros((1, config.latent_size)), jnp.zeros((1, config.label_size))
    ws = jnp.zeros((1, config.layers, config.style_size))

    @jax.jit
    def draw(mapping_key: Key, synthesis_key: Key) -> Params:
        mapping = Mapping(config).init(mapping_key, z, labels)["params"]
        synthesis = Synthesis(config).init(synthesis_key, ws, "const", None)["params"]
        mean_style = jnp.zeros(config.style_size)
        return {"mapping": mapping, "synthesis": synthesis, "mean_style": mean_style}

    return draw(*jax.random.split(key))


def map_latents(
    config: StyleGAN2Config,
    params: Params,
    z: Array,
    labels: Array | None = None,
    *,
    truncation_psi: float | Array = 1.0,
    truncation_cutoff: int | None = None,
    precision: Precision = "highest",
) -> Array:
    """Maps latents to styles.

    Args:
        config: The network's shape.
        params: Its weights.
        z: [N, latent_size], standard normal a priori; their norm has no influence.
        labels: [N, label_size], one-hot; only for conditional networks.
        truncation_psi: 1 leaves styles unchanged, 0 returns the mean style.
        truncation_cutoff: How many layers are truncated, from the coarsest; all by default.
        precision: Of matrix products, see `synthesize`; styles are float32 in any case.

    Returns:
        [N, layers, style_size].

    Raises:
        ValueError: The latents have another size, or labels are missing, superfluous or misshapen.
    """
    if z.ndim != 2 or z.shape[1] != config.latent_size:
        raise ValueError(f"latents are {z.shape}, this StyleGAN2 takes [N, {config.latent_size}]")
    if config.label_size and (labels is None or labels.shape != (len(z), config.label_size)):
        shape = None if labels is None else labels.shape
        raise ValueError(f"labels are {shape}, this StyleGAN2 takes [N, {config.label_size}]")
    if labels is not None and not config.label_size:
        raise ValueError("labels are given, but this StyleGAN2 is unconditional")
    with matmul_precision(precision):
        w = Mapping(config).apply({"params": params["mapping"]}, z, labels)
    ws = jnp.broadcast_to(w[:, None], (len(w), config.layers, config.style_size))
    truncated = jnp.arange(config.layers) < (
        config.layers if truncation_cutoff is None else truncation_cutoff
    )
    shift = (1 - truncation_psi) * (params["mean_style"][None] - w)
    return ws + truncated[None, :, None] * shift[:, None]


def synthesize(
    config: StyleGAN2Config,
    params: Params,
    ws: Array,
    *,
    noise: Noise = "const",
    key: Key | None = None,
    precision: Precision = "highest",
) -> Array:
    """Maps styles to images; differentiable in reverse mode.

    Args:
        config: The network's shape.
        params: Its weights.
        ws: [N, layers, style_size].
        noise: The network's stored noise, none, or new random noise for each image.
        key: Only for random noise.
        precision: Of convolutions and products. `highest`: float32 on every device. `default`:
            what the device prefers (TF32 on recent GPUs, bfloat16 on TPUs). `bf16`: kernels and
            activations in bfloat16, with styles and images in float32.

    Returns:
        [N, H, W, C] in the network's own range: about [-1, 1], not clipped.

    Raises:
        ValueError: The styles have another shape, or a key is missing or superfluous.
    """
    if ws.shape[1:] != (config.layers, config.style_size):
        raise ValueError(
            f"styles are {ws.shape}, this StyleGAN2 takes [N, {config.layers}, {config.style_size}]"
        )
    if (noise == "random") != (key is not None):
        raise ValueError(f"noise {noise!r} {'needs a' if key is None else 'takes no'} key")
    with matmul_precision(precision):
        dtype = activation_dtype(precision)
        return Synthesis(config, dtype).apply({"params": params["synthesis"]}, ws, noise, key)


def normalize(x: Array) -> Array:
    """Scales vectors to a mean square of 1."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + EPSILON)


def leaky_relu(x: Array, gain: float = 1.0) -> Array:
    """Leaky ReLU that keeps the variance of its input."""
    return jax.nn.leaky_relu(x, 0.2) * (math.sqrt(2) * gain)


def clamp(x: Array, limit: float | None, gain: float = 1.0) -> Array:
    """Limits activations, for networks trained in half precision."""
    return x if limit is None else jnp.clip(x, -limit * gain, limit * gain)
