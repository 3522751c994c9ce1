"""The search of QDGS in PyTorch and pyribs, in two ways, for `against_pytorch.py`.

`Published` does what the paper's program does (Chang et al., AAAI 2024): objective and each measure
render the latents anew, each with its own crop, and each gradient is a forward and a backward pass.
`Strong` is what a PyTorch user could do at best: one image, one crop and one embedding for all
scores, gradients by one forward pass, and whatever `Strong.choose` finds fastest of channels last,
`torch.compile` and three ways to pull several cotangents back. Both search by pyribs:
`GradientArborescenceEmitter`, an annealed and an elitist `GridArchive`.

No JAX here: a folder made by `against_pytorch.prepare` holds weights and prompts.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_networks import torch_decode, torch_synthesize
from ribs.archives import GridArchive
from ribs.emitters import GradientArborescenceEmitter
from ribs.schedulers import Scheduler
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPModel

REMEMBERED = 100  # embeddings that the objective's uniqueness looks at
CHUNK = 16  # of the random latents that the search starts from
Tensor = torch.Tensor


def angular_distance(x: Tensor, y: Tensor) -> Tensor:
    """d = 2 arcsin(||x - y|| / 2) of unit vectors."""
    return 2 * ((x - y).norm(dim=-1) / 2).arcsin()


def difference(embeddings: Tensor, pair: Tensor) -> Tensor:
    """Distance of embeddings [N, E] to the first prompt of [2, E], less that to the second: [N]."""
    return angular_distance(embeddings, pair[0]) - angular_distance(embeddings, pair[1])


class Scorer:
    """Objective and measures of latents as `scores` computes them, which the subclasses differ in.

    Attributes:
        memory: embeddings of recent good images, [at most REMEMBERED, E].
        crops: whether larger images are cropped at random.
    """

    def __init__(self, folder: Path, device: str) -> None:
        torch.manual_seed(0)
        self.setting = json.loads((folder / "setting.json").read_text())
        self.device = device
        arrays = np.load(folder / "prompts.npz")
        self.prompts = torch.tensor(arrays["prompts"], device=device)  # [1 + M, 2, E]
        self.clip = CLIPModel.from_pretrained(folder / "encoder").eval().to(device)
        self.clip.requires_grad_(False)
        weights = {k: v.to(device) for k, v in load_file(folder / "generator.safetensors").items()}
        self.weights = {name.removeprefix("decoder."): value for name, value in weights.items()}
        self.side = self.clip.config.vision_config.image_size
        mean, std = (torch.tensor(self.setting[name], device=device) for name in ("mean", "std"))
        self.mean, self.std = mean[:, None, None], std[:, None, None]
        self.crops = True
        self.forget()

    def forget(self) -> None:
        """Empties the memory."""
        self.memory = torch.zeros(0, self.prompts.shape[-1], device=self.device)

    @property
    def measures(self) -> int:
        """M."""
        return len(self.prompts) - 1

    def render(self, latents: Tensor) -> Tensor:
        """Latents [N, D] -> images [N, 3, H, W] in [0, 1]."""
        if "fc1.weight" in self.weights:
            return torch_decode(self.weights, latents)
        mean, std = self.weights["mean_style"], self.weights["style_std"]
        styles = mean + std * latents.reshape(len(latents), -1, len(mean))
        taps = self.setting["filter_taps"]
        images = torch_synthesize(self.weights, styles, filter_taps=taps, fused=False)
        return ((images + 1) / 2).clamp(0, 1)

    def crop(self, images: Tensor) -> Tensor:
        """A random square of the images, average-pooled to the encoder's side."""
        size = images.shape[-1]
        if self.crops and size > self.side:
            cut = int(torch.rand(()) ** 0.5 * (size - self.side) + self.side)
            top, left = torch.randint(0, size - cut + 1, (2,)).tolist()
            images = images[:, :, top : top + cut, left : left + cut]
        return functional.adaptive_avg_pool2d(images, self.side)

    def embed(self, images: Tensor) -> Tensor:
        """Images of the encoder's side -> unit embeddings [N, E]."""
        pooled = self.clip.vision_model((images - self.mean) / self.std).pooler_output
        return functional.normalize(self.clip.visual_projection(pooled), dim=-1)

    def objective(self, latents: Tensor, embeddings: Tensor) -> Tensor:
        """f = 100 - 50 L of latents [N, D] whose images have the embeddings [N, E]: [N]."""
        loss = difference(embeddings, self.prompts[0])
        if weight := self.setting["regularisation"]:
            radius = self.setting["radius"]
            loss = loss + weight * (latents.norm(dim=-1).clamp(min=radius) - radius) ** 2
        if weight := self.setting["uniqueness"]:
            unique = torch.ones_like(loss)
            if known := len(self.memory):
                distance = angular_distance(embeddings[:, None], self.memory[None])
                unique = REMEMBERED / known * distance.amin(dim=1)
            loss = loss + weight * (1 - unique)
        return 100 - 50 * loss

    def remember(self, embeddings: Tensor, objective: Tensor) -> None:
        """Adds the embedding of a random image whose loss is below 1."""
        good = (objective > 50).nonzero()[:, 0]
        if self.setting["uniqueness"] and len(good):
            chosen = embeddings[good[torch.randint(len(good), ())]].detach()
            self.memory = torch.cat([self.memory, chosen[None]])[-REMEMBERED:]

    def scores(self, latents: Tensor, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """Objective and measures [N, 1 + M] and, if asked for, their gradients [N, 1 + M, D]."""
        raise NotImplementedError


class Published(Scorer):
    """An image and a crop for each score, k + 1 forward and backward passes."""

    def scores(self, latents: Tensor, gradients: bool) -> tuple[Tensor, Tensor | None]:
        values, rows = [], []
        for row in range(1 + self.measures):
            leaf = latents.clone().requires_grad_(gradients)
            with torch.set_grad_enabled(gradients):
                embeddings = self.embed(self.crop(self.render(leaf)))
                if row == 0:
                    value = self.objective(leaf, embeddings)
                    self.remember(embeddings, value)
                else:
                    value = difference(embeddings, self.prompts[row])
            if gradients:
                rows.append(torch.autograd.grad(value.sum(), leaf)[0])
            values.append(value.detach())
        return torch.stack(values, 1), torch.stack(rows, 1) if gradients else None


PULL_BACKS = "one by one", "vmapped", "in one batch"


class Way(NamedTuple):
    """A way to compute the same scores."""

    compiled: bool
    layout: torch.memory_format
    pull_back: str

    def __str__(self) -> str:
        layout = str(self.layout).removeprefix("torch.")
        return f"{'compiled' if self.compiled else 'eager'}, {layout}, {self.pull_back}"


class Strong(Scorer):
    """One image, one crop and one embedding for all scores; see `choose` for the rest.

    Attributes:
        pull_back: how k + 1 cotangents are pulled back: "one by one" through one graph; "vmapped",
            by `is_grads_batched`; or "in one batch" of k + 1 copies of the latents.
    """

    def __init__(self, folder: Path, device: str) -> None:
        super().__init__(folder, device)
        self._take(Way(False, torch.contiguous_format, PULL_BACKS[0]))

    def values(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N, 1 + M] and embeddings [N, E]."""
        images = self.crop(self._render(latents))
        embeddings = self._embed(images.contiguous(memory_format=self.layout))
        measures = [difference(embeddings, pair) for pair in self.prompts[1:]]
        return torch.stack([self.objective(latents, embeddings), *measures], 1), embeddings

    def scores(self, latents: Tensor, gradients: bool) -> tuple[Tensor, Tensor | None]:
        count, rows = len(latents), 1 + self.measures
        if not gradients:
            with torch.no_grad():
                values, embeddings = self.values(latents)
            self.remember(embeddings, values[:, 0])
            return values, None
        copies = rows if self.pull_back == "in one batch" else 1
        leaf = latents.repeat(copies, 1).requires_grad_()
        values, embeddings = self.values(leaf)
        self.remember(embeddings[:count], values[:count, 0])
        eye = torch.eye(rows, device=self.device)
        if self.pull_back == "in one batch":
            cotangents = eye.repeat_interleave(count, 0)
            pulled = torch.autograd.grad(values, leaf, cotangents)[0].reshape(rows, count, -1)
        else:
            cotangents = eye[:, None].expand(-1, count, -1).contiguous()
            pull = partial(torch.autograd.grad, values, leaf)
            if self.pull_back == "vmapped":
                pulled = pull(cotangents, is_grads_batched=True)[0]
            else:
                pulled = torch.stack([pull(each, retain_graph=True)[0] for each in cotangents])
        return values[:count].detach(), pulled.transpose(0, 1)

    def choose(
        self, points: int, branches: int, rounds: int = 9, limit: float = 5.0
    ) -> dict[str, float]:
        """Takes the fastest way to score `branches` latents, and `points` with gradients.

        Networks are compiled with the layout that is fastest without. Ways that PyTorch cannot do
        are left out. Returns the median seconds of each, over `rounds` or for `limit` seconds.
        """
        size = self.setting["latent_size"]
        theta, others = (
            torch.randn(count, size, device=self.device) for count in (points, branches)
        )

        def generation() -> None:
            self.scores(theta, True)
            self.scores(others, False)

        seconds: dict[Way, float] = {}

        def attempt(way: Way) -> None:
            self._take(way)
            try:
                generation()  # compiles, and allocates memory
            except (RuntimeError, NotImplementedError) as error:
                print(f"  {way}: PyTorch cannot do it ({type(error).__name__})", flush=True)
            else:
                times = [timed(generation)]
                while len(times) < rounds and sum(times) < limit:
                    times.append(timed(generation))
                seconds[way] = float(np.median(times))

        for layout in (torch.contiguous_format, torch.channels_last):
            for pull_back in PULL_BACKS:
                attempt(Way(False, layout, pull_back))
        layout = min(seconds, key=seconds.__getitem__).layout
        for pull_back in PULL_BACKS:
            if pull_back != "vmapped":  # compiled graphs have no vmap
                attempt(Way(True, layout, pull_back))
        best = min(seconds, key=seconds.__getitem__)
        self._take(best)
        generation()
        self.forget()
        return {str(way): took for way, took in seconds.items()}

    def _take(self, way: Way) -> None:
        self.pull_back = way.pull_back
        self.layout = way.layout
        self.weights = {
            name: value.contiguous(memory_format=way.layout) if value.ndim == 4 else value
            for name, value in self.weights.items()
        }
        self._render, self._embed = self.render, self.embed
        if way.compiled:
            torch._functorch.config.donated_buffer = False  # graphs are used more than once
            torch.compiler.reset()
            self._render, self._embed = (
                torch.compile(function, dynamic=False) for function in (self.render, self.embed)
            )


def timed(function: Callable[[], Any]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


class Loop:
    """A search by pyribs: `start`, then `advance`."""

    def __init__(self, scorer: Scorer, emitters: int, batch: int, dtype: type) -> None:
        self.scorer, self.emitters, self.batch, self.dtype = scorer, emitters, batch, dtype

    def start(self, seed: int) -> None:
        """Empty archives; emitters start from the best of random latents."""
        setting = self.scorer.setting
        torch.manual_seed(seed)
        self.scorer.forget()
        latents = np.load(Path(setting["latents"]) / f"{seed}.npy")
        chunks = [
            self._scored(each, False)[0]
            for each in np.split(latents, range(CHUNK, len(latents), CHUNK))
        ]
        best = np.concatenate(chunks).argsort()[::-1][: self.emitters]
        grid = {
            "solution_dim": latents.shape[1], "dims": setting["cells"],
            "ranges": setting["ranges"], "dtype": self.dtype,
        }  # fmt: skip
        archive = GridArchive(**grid, learning_rate=0.02, threshold_min=0.0)
        self.result = GridArchive(**grid)
        emitters = [
            GradientArborescenceEmitter(
                archive, x0=latents[row], sigma0=0.5, lr=0.5, ranker="imp", restart_rule="basic",
                grad_opt="adam", batch_size=self.batch, seed=seed * 1000 + row,
            )
            for row in best
        ]  # fmt: skip
        self.scheduler = Scheduler(archive, emitters, result_archive=self.result)

    def advance(self, generations: int) -> float:
        """Seconds of as many generations."""
        began = time.perf_counter()
        for _ in range(generations):
            objective, measures, jacobian = self._scored(self.scheduler.ask_dqd(), True)
            self.scheduler.tell_dqd(objective, measures, jacobian)
            objective, measures, _ = self._scored(self.scheduler.ask(), False)
            self.scheduler.tell(objective, measures)
        return time.perf_counter() - began

    def quality(self) -> tuple[float, float]:
        """QD score and coverage of elites with an objective above 0."""
        objective = self.result.data("objective")
        good = objective[objective > 0]
        return float(good.sum()), len(good) / self.result.cells

    def _scored(self, latents: np.ndarray, gradients: bool) -> tuple[np.ndarray, ...]:
        tensor = torch.tensor(latents, dtype=torch.float32, device=self.scorer.device)
        values, rows = self.scorer.scores(tensor, gradients)
        found = values.cpu().numpy()
        return found[:, 0], found[:, 1:], rows.cpu().numpy() if rows is not None else np.zeros(0)
