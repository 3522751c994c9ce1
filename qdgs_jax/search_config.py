"""The options of a search: algorithm, budget, and which algorithms use which option."""

from typing import Annotated, Literal

from pydantic import Field

from qdgs_jax.schema import Count, Fraction, Positive, checked

Floor = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]

_ASCENT = ("cma_mega", "cma_maega")
_STRATEGIES = ("cma_me", "cma_mae")
SERVES = {
    "step_size": (*_ASCENT, *_STRATEGIES),
    "optimizer": _ASCENT,
    "line_sigma": ("map_elites_line",),
    "strategy": _STRATEGIES,
    "ranker": (*_ASCENT, *_STRATEGIES),
    "selection": (*_ASCENT, *_STRATEGIES),
    "restart": (*_ASCENT, *_STRATEGIES),
    "learning_rate": ("cma_mae", "cma_maega"),
    "rematerialise": ("omg_mega", *_ASCENT),
}
"""Options of a search that only some algorithms use -> those algorithms."""


@checked
class SearchConfig:
    """The quality-diversity search; the defaults are the paper's, except that emitters are many."""

    algorithm: Literal[
        "map_elites",
        "map_elites_line",
        "cma_me",
        "cma_mae",
        "omg_mega",
        "cma_mega",
        "cma_maega",
    ] = "cma_maega"
    """`...mega` and `...maega` use gradients; `..._mae` and `..._maega` anneal the thresholds."""
    emitter: str = ""
    """In place of the algorithm's emitter, one of your own or one of QDax, by
    `package.module:make`; see docs/own_loop.md."""
    generations: Count = 400
    """Generations; each evaluates `emitters` x `batch_size` latents, and `emitters` more for
    their gradients."""
    emitters: Annotated[int, Field(ge=1, le=100_000)] = 8
    batch_size: Annotated[int, Field(ge=2, le=100_000)] = 15
    """Latents of each emitter in a generation."""
    sigma0: Positive = 0.5
    """Initial standard deviation of gradient coefficients, or of latents without gradients."""
    step_size: Positive = 0.5
    """Learning rate of the ascent on latents (`cma_mega`, `cma_maega`, strategy `openai_es`)."""
    optimizer: Literal["adam", "ascent"] = "adam"
    """Optimiser of that ascent (`cma_mega`, `cma_maega`): Adam, or plain gradient ascent."""
    line_sigma: Positive = 0.2
    """Standard deviation of the step towards another elite (`map_elites_line`)."""
    strategy: Literal["cholesky_cma_es", "cma_es", "sep_cma_es", "lm_ma_es", "openai_es"] = (
        "cholesky_cma_es"
    )
    """Strategy of `cma_me` and `cma_mae`: CMA-ES by Cholesky factors; CMA-ES by eigenvectors as in
    pyribs (as good, but slower from about thirty dimensions); or one for more than a few hundred
    dimensions."""
    ranker: Literal["auto", "imp", "2imp", "obj", "rd"] = "auto"
    """Key by which a batch is ranked; here and in the next two, `auto` is the algorithm's own."""
    selection: Literal["auto", "filter", "mu"] = "auto"
    """Parents: `filter`: solutions that the archive accepted; `mu`: the best half."""
    restart: Literal["auto", "basic", "no_improvement"] | Count = "auto"
    """When an emitter restarts: if its strategy stops, if nothing was accepted, or every N
    generations, which is 30 by default with `seek_rare`."""
    learning_rate: Fraction = 0.02
    """Archive learning rate alpha (`cma_mae`, `cma_maega`): 0 optimises, 1 explores."""
    constraint: Literal["typical", "latents", "none"] = "typical"
    """What keeps elites in distribution: `latents`: each number and the norm within the range of
    random latents; `typical`: so, and their images as typical of the generator as random ones;
    `none`: nothing, as published."""
    threshold_min: Floor | Literal["auto"] = "auto"
    """Objective that an elite must exceed; `auto` takes it from random samples and records it."""
    initial_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Random latents; emitters start from the best of them."""
    seek_rare: bool = True
    """Whether these latents may become elites, and emitters restart from all regions of the
    measures alike, so that rare kinds of images are neither lost nor left alone. `false`: as
    published, neither."""
    chunk_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = 64
    """Latents rendered and embedded at once; bounds memory. `auto` fits it to half of the device's
    and records it."""
    rematerialise: bool = False
    """Whether images are rendered again for their gradients, instead of keeping activations. It
    saves memory on accelerators, but none on a CPU."""

    def __post_init__(self) -> None:
        for name, algorithms in SERVES.items():
            if self.algorithm not in algorithms and self._changes(name):
                raise ValueError(
                    f"search.{name} has no effect with algorithm '{self.algorithm}', only with "
                    f"{', '.join(algorithms)}: leave it out"
                )
        if (
            self.algorithm in _STRATEGIES
            and self.strategy != "openai_es"
            and self._changes("step_size")
        ):
            raise ValueError(
                f"search.step_size has no effect with strategy '{self.strategy}', only with "
                "openai_es: leave it out"
            )

    @property
    def chunk(self) -> int:
        """`chunk_size` in numbers; only a resolved config has them."""
        if self.chunk_size == "auto":
            raise ValueError("search.chunk_size is not resolved yet")
        return self.chunk_size

    @property
    def uses_gradients(self) -> bool:
        """Whether scores need a Jacobian."""
        return self.algorithm in ("omg_mega", *_ASCENT) and not self.emitter

    def _changes(self, name: str) -> bool:
        """Whether an option has another value than its default."""
        return getattr(self, name) != type(self).__dataclass_fields__[name].default
