"""The README.md of a built-in model."""

from pathlib import Path
from typing import Any

from qdgs_jax import files
from qdgs_jax.training.descent import OptimiserConfig

_ASSETS = Path(__file__).parents[1] / "assets"


def write_card(
    folder: Path,
    model: str,
    optimiser: OptimiserConfig,
    quality: tuple[str, dict[str, float]],
    **values: Any,
) -> None:
    """Fills assets/MODEL_card.md.

    Args:
        quality: name of the measured quantity, and its value for each kind of drawing.
        values: further values that the card names.
    """
    card = (
        (_ASSETS / f"{model}_card.md")
        .read_text()
        .format(
            **values,
            quality=_table(*quality),
            steps=f"{optimiser.steps:,}",
            batch=f"{optimiser.batch_size}",
            rate=f"{optimiser.learning_rate:g}",
        )
    )
    files.write(folder / "README.md", card)


def _table(heading: str, values: dict[str, float]) -> str:
    rows = [f"| {name} | {value:.4f} |" for name, value in values.items()]
    return "\n".join([f"| | {heading} |", "|---|---:|", *rows])
