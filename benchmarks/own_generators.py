"""Does a search stay in distribution with generators for which nothing was tuned?

Question: with the same ten lines of config for every generator, how many elites have latents and
    images like random ones, how evenly are they spread, and how many cells do they fill compared
    with random sampling at equal evaluations? What does each constraint add?
Method: generators of six families: the built-in VAE (6 latents), a DCGAN of faces (100; `make
    assets`), further files of generators (--files), a StyleGAN2 with random weights in w+ (4 x 32),
    blobs on gradients with 8 latents, and discs with 2 uniform latents, both written below. The
    config is the README's: one measure by prompts, one function of the image, defaults for the
    rest. Random samples fill cells only if the search would accept them.
    For each generator and each `search.constraint`, and for `seeds`: a search; random samples
    scored as many times as the search evaluates; and 500 images drawn evenly from the elites, and
    from one random latent of each cell that has any.
    Latents are in distribution if their norms lie within the 0.1 and 99.9 % quantiles of random
    latents. Images are typical if a detector that no search sees says so: the Mahalanobis distance
    of features to random images', within the limit of 99 % of other random images; the features
    are the last of a convolutional classifier, trained on random images to tell fifths of
    brightness, warmth and contrast apart. A second detector, as a control, is trained to tell
    fifths of the first three latents apart, and has not heard of colours. Evenness is the entropy
    of ten equal bins of each measure between the ends that the elites reach, relative to the
    largest possible.
Command: python benchmarks/own_generators.py --json benchmarks/results/own_generators.json
Result: two x86-64 cores, 2026-11-30, three seeds of 100 generations: of each generator 98.8 to
    100 % of the images are typical, and searches fill 0.8 (two latents) to 1.5 times the cells of
    random sampling; more in benchmarks/README.md.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from qdgs_jax import search as searches
from qdgs_jax.bins import draw_evenly
from qdgs_jax.config import Config, parse_config
from qdgs_jax.generators import Generator, load
from qdgs_jax.problem import load_problem
from qdgs_jax.typicality import block_norms

CONSTRAINTS = ("none", "latents", "typical")
EXPORTED = 500
CONFIG = {
    "objective": {"positive": "A perfect shape.", "negative": "Splatters of colors."},
    "measures": [
        {"name": "colour", "low": "A red shape.", "high": "A blue shape."},
        {"name": "brightness", "function": "brightness"},
    ],
}
Loaded = tuple[Generator, Any]


def blobs() -> Loaded:
    """Three soft blobs on a gradient: most are bright and on the left."""

    def render(params: Any, latents: jax.Array) -> jax.Array:
        features = jnp.tanh(latents @ params["hidden"])
        numbers = jax.nn.sigmoid(features @ params["out"] + params["bias"])
        numbers = numbers.reshape(len(latents), 4, 6)
        axis = jnp.linspace(0, 1, 48)
        y, x = axis[None, :, None, None], axis[None, None, :, None]
        sky = numbers[:, 0].reshape(-1, 1, 1, 6)
        images = sky[..., :3] * y + sky[..., 3:] * (1 - y)
        for k in (1, 2, 3):
            blob = numbers[:, k].reshape(-1, 1, 1, 6)
            inside = jax.nn.sigmoid(
                30
                * (0.08 + 0.2 * blob[..., 2:3] - jnp.hypot(x - blob[..., :1], y - blob[..., 1:2]))
            )
            images = images * (1 - inside) + blob[..., 3:] * inside
        return images

    random = np.random.default_rng(3)
    params = {
        "hidden": random.normal(size=(8, 32)).astype(np.float32) / 8**0.5,
        "out": random.normal(size=(32, 24)).astype(np.float32) / 2,
        "bias": random.normal(size=24).astype(np.float32),
    }
    return Generator("blobs", 8, 48, normal(8), render), params


def discs() -> Loaded:
    """A disc whose hue and size are two uniform latents; few are blue or small."""

    def render(params: Any, latents: jax.Array) -> jax.Array:
        hue, size = latents[:, :1] ** 4, 0.1 + 0.3 * (1 - latents[:, 1:] ** 3)
        colour = jnp.hstack([1 - hue, 0.2 + 0 * hue, hue])[:, None, None]
        axis = jnp.linspace(-0.5, 0.5, 40)
        radius = jnp.hypot(axis[None, :, None, None], axis[None, None, :, None])
        inside = jax.nn.sigmoid(60 * (size[:, :, None, None] - radius))
        return params * (1 - inside) + colour * inside

    def sample(key: jax.Array, n: int) -> jax.Array:
        return jax.random.uniform(key, (n, 2))

    return Generator("discs", 2, 40, sample, render), jnp.float32(1)


def normal(size: int) -> Callable[[jax.Array, int], jax.Array]:
    return lambda key, n: jax.random.normal(key, (n, size))


def random_stylegan2() -> Loaded:
    """A small StyleGAN2 as at the start of a training, over w+."""
    import tempfile

    from qdgs_jax.models import stylegan2

    config = stylegan2.StyleGAN2Config(
        latent_size=32, style_size=32, mapping_sizes=(32, 32), channels=(32, 32, 16, 8)
    )
    with tempfile.TemporaryDirectory() as folder:
        stylegan2.save(Path(folder) / "network", config, stylegan2.init(config, jax.random.key(0)))
        return load(str(Path(folder) / "network"))


def generators(files: list[str]) -> dict[str, Loaded]:
    """By name."""
    found = {"shapes VAE": load("shapes-vae")}
    if importlib.util.find_spec("gan_face_generate"):
        found["faces DCGAN"] = load("digiface-dcgan")
    for file in files:
        path, _, classes = file.partition("=")
        found[Path(path).stem] = load(path, classes=tuple(classes.split(",")) if classes else ())
    return {
        **found, "StyleGAN2 w+": random_stylegan2(), "blobs": blobs(), "discs": discs(),
    }  # fmt: skip


# The detector.


class Classifier(nn.Module):
    """Fifths of figures of an image; its last features [N, 64] are the detector's."""

    figures: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jax.image.resize(images, (len(images), 32, 32, 3), "linear") - 0.5
        for channels in (32, 64, 64):
            x = nn.relu(nn.Conv(channels, (3, 3), strides=(2, 2))(x))
        features = x.mean(axis=(1, 2))
        return nn.Dense(5 * self.figures)(features).reshape(-1, self.figures, 5), features


def figures_of(images: jax.Array) -> jax.Array:
    """Brightness, warmth and contrast, [N, 3]."""
    columns = images.mean((1, 2, 3)), (images[..., 0] - images[..., 2]).mean((1, 2))
    return jnp.stack([*columns, images.std((1, 2, 3))], axis=1)


def train_detector(
    images: np.ndarray, figures: np.ndarray, others: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Trains on random images; the limit is of `others`.

    Args:
        images: [N, H, W, 3].
        figures: what the features tell apart, [N, F].
        others: [M, H, W, 3].

    Returns:
        images [K, H, W, 3] -> whether each is typical, [K].
    """
    edges = np.quantile(figures, (0.2, 0.4, 0.6, 0.8), axis=0)
    labels = (figures[:, None] > edges[None]).sum(axis=1)
    network = Classifier(figures.shape[1])
    weights = network.init(jax.random.key(0), images[:1])
    optimizer = optax.adam(1e-3)
    state = optimizer.init(weights)

    def loss(weights: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits, _ = network.apply(weights, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def update(weights: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        gradient = jax.grad(loss)(weights, images, labels)
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(weights, changes), state

    random = np.random.default_rng(0)
    for _ in range(400):
        rows = random.integers(len(images), size=128)
        weights, state = update(weights, state, images[rows], labels[rows])
    apply = jax.jit(lambda images: network.apply(weights, images)[1])

    def features(images: np.ndarray) -> np.ndarray:
        parts = [np.asarray(apply(images[i : i + 256])) for i in range(0, len(images), 256)]
        return np.concatenate(parts).astype(np.float64)

    fitted = features(images)
    mean = fitted.mean(axis=0)
    inverse = np.linalg.pinv(np.cov(fitted, rowvar=False) + 1e-6 * np.eye(fitted.shape[1]))

    def distance(images: np.ndarray) -> np.ndarray:
        centred = features(images) - mean
        return np.einsum("nf,fg,ng->n", centred, inverse, centred)

    limit = np.quantile(distance(others), 0.99)
    return lambda images: distance(images) <= limit


# A search and its figures.


def measure(name: str, loaded: Loaded, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each constraint and seed."""
    generator, params = loaded
    chunked = jax.jit(generator.render)

    def render(latents: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [np.asarray(chunked(params, latents[i : i + 64])) for i in range(0, len(latents), 64)]
        )

    def share(typical: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> float:
        return float(typical(images).mean())

    random = np.asarray(generator.sample(jax.random.key(100), 4096 + 2048))
    images = render(random)
    known, others, rest = np.split(images, (4096, 5120))
    typical = train_detector(known, np.asarray(figures_of(known)), others)
    control = train_detector(known, random[:4096, :3], others)
    norms = block_norms(np.asarray(generator.sample(jax.random.key(101), 10_000)), generator.blocks)
    least, most = np.quantile(norms, (0.001, 0.999), axis=0)
    rows = []
    for seed in range(options.seeds):
        for constraint in options.constraints:
            search = {
                "constraint": constraint, "generations": options.generations,
                **({"threshold_min": 0.0} if constraint == "none" else {}),
            }  # fmt: skip
            config = parse_config({**CONFIG, "seed": seed, "search": search}, source="benchmark")
            began = time.perf_counter()
            found = searched(config, loaded)
            elites = found["latents"]
            norms = block_norms(elites, generator.blocks)
            exported, randoms = render(found["exported"]), render(found["random_exported"])
            rows.append({
                "generator": name, "constraint": constraint, "seed": seed,
                "elites": len(elites),
                "coverage": found["coverage"], "random_coverage": found["random_coverage"],
                "latents": float(((norms >= least) & (norms <= most)).all(axis=1).mean()),
                "images": share(typical, exported),
                "random_images": share(typical, rest),
                "random_exported": share(typical, randoms),
                "images_control": share(control, exported),
                "random_images_control": share(control, rest),
                "random_exported_control": share(control, randoms),
                "evenness": found["evenness"], "random_evenness": found["random_evenness"],
                "refused": found["refused"], "ranges": found["ranges"],
                "seconds": time.perf_counter() - began,
            })  # fmt: skip
            print(line(rows[-1]), flush=True)
            if options.pictures:
                save_sheet(exported[:64], options.pictures / f"{name}-{constraint}-{seed}.png")
    return rows


def searched(config: Config, loaded: Loaded) -> dict[str, Any]:
    """Elites of a search, and what as many random latents fill in the same grid."""
    problem = load_problem(config, generator=loaded)
    made, params = problem.search, problem.params
    run = jax.jit(searches.run, static_argnums=(0, 3), donate_argnums=2)
    state = jax.jit(searches.init, static_argnums=0)(made, params, *problem.initial_latents())
    state, metrics = run(made, params, state, config.search.generations)
    kept = np.asarray(state.elites.occupied)
    measures, latents = (
        np.asarray(each)[kept] for each in (state.elites.measures, state.elites.latents)
    )
    count = config.search.generations * made.evaluations_per_generation
    score = jax.jit(problem.score)
    random_cells: dict[int, np.ndarray] = {}
    random_measures = []
    for part in range(-(-count // 1024)):
        key = jax.random.key(1000 + part)
        sampled = np.asarray(problem.generator.sample(key, 1024))
        scores, _ = score(params, key, sampled, ())
        values = np.asarray(scores.measures)[: count - 1024 * part]
        random_measures.append(values)
        cells = np.asarray(made.archive.index_of(jnp.asarray(values)))
        fine = (np.asarray(scores.objective) > made.floor)[: len(values)]
        random_cells |= dict(zip(cells[fine].tolist(), sampled[: len(values)][fine], strict=True))
    random_latents = np.stack([*random_cells.values()])
    drawn, random_drawn = (
        draw_evenly(np.zeros(len(each), int), 1, EXPORTED, config.seed)
        for each in (latents, random_latents)
    )
    random_values = np.concatenate(random_measures)
    ends = [
        (min(a.min(), b.min()), max(a.max(), b.max()))
        for a, b in zip(measures.T, np.quantile(random_values, (0.01, 0.99), axis=0).T, strict=True)
    ]  # fmt: skip
    return {
        "latents": latents, "exported": latents[drawn],
        "random_exported": random_latents[random_drawn],
        "coverage": float(metrics.coverage),
        "random_coverage": len(random_cells) / made.archive.size,
        "evenness": [evenness(v, e) for v, e in zip(measures[drawn].T, ends, strict=True)],
        "random_evenness": [evenness(v, e) for v, e in zip(random_values.T, ends, strict=True)],
        "refused": {name: int(value) for name, value in vars(state.refused).items()},
        "ranges": [measure.ends for measure in problem.config.measures],
    }  # fmt: skip


def evenness(values: np.ndarray, ends: tuple[float, float]) -> float:
    """Entropy of ten equal bins between two ends, relative to that of equal shares."""
    counts, _ = np.histogram(np.clip(values, *ends), bins=10, range=ends)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(10))


def save_sheet(images: np.ndarray, path: Path) -> None:
    """Up to 64 images side by side."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.resize(images, (64, *images.shape[1:]))
    _, H, W, C = images.shape
    sheet = images.reshape(8, 8, H, W, C).transpose(0, 2, 1, 3, 4).reshape(8 * H, 8 * W, C)
    Image.fromarray(np.round(255 * np.clip(sheet, 0, 1)).astype(np.uint8)).save(path)


def line(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    even = ", ".join(
        f"{a:.2f} ({b:.2f})" for a, b in zip(row["evenness"], row["random_evenness"], strict=True)
    )
    return (
        f"| {row['generator']} | {row['constraint']} | {row['elites']:,} | {row['latents']:.1%} "
        f"| {row['images']:.1%} ({row['random_exported']:.1%}, {row['random_images']:.1%}) "
        f"| {row['images_control']:.1%} ({row['random_exported_control']:.1%}, "
        f"{row['random_images_control']:.1%}) "
        f"| {row['coverage']:.1%} ({row['random_coverage']:.1%}) "
        f"| {even} | {row['refused']} | {row['ranges']} "
        f"| {row['seconds']:.0f} |"
    )


def main() -> None:
    """Prints a line for each search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generators", nargs="*", help="names of some")
    parser.add_argument(
        "--files", nargs="*", default=[], metavar="FILE[=CLASS,CLASS...]", help="more generators"
    )
    parser.add_argument("--constraints", nargs="*", default=CONSTRAINTS, choices=CONSTRAINTS)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=Path, help="folder for sheets of exported images")
    parser.add_argument("--json", type=Path, help="where to write the figures of each seed")
    options = parser.parse_args()
    rows = []
    for name, loaded in generators(options.files).items():
        if not options.generators or name in options.generators:
            rows += measure(name, loaded, options)
            if options.json:
                about = {
                    "command": " ".join(["own_generators.py", *sys.argv[1:]]),
                    "date": time.strftime("%F"),
                    "device": jax.devices()[0].device_kind,
                    "versions": {each: version(each) for each in ("jax", "jaxlib", "numpy")},
                    "generations": options.generations,
                }
                options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
