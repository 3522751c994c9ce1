"""What a config can name without files or code of its own: models, and measures of images."""

import importlib.metadata
import inspect
import re
from pathlib import Path
from typing import Any

from qdgs_jax import encoders, faceres, generators
from qdgs_jax.config import NOTICES
from qdgs_jax.errors import ConfigError
from qdgs_jax.image_measures import IMAGE_MEASURES

FILES = {
    "shapes VAE": "generator: torch.save of any age, safetensors",
    "StyleGAN2": "generator: NVIDIA's .pkl, `qdgs convert stylegan2`",
    "DCGAN": "generator: torch.save of any age, safetensors",
    "CLIP": "encoder: Hugging Face folder or hub id, OpenAI's .pt, open_clip, `qdgs convert clip`",
    "SigLIP": "encoder: Hugging Face folder or hub id; of SigLIP 2 those of one image size",
}
"""Family of networks -> the files of it that are read."""


def models() -> dict[str, Any]:
    """The built-in models, of which those that are installed are loaded, and families of files.

    Returns:
        Plain JSON values: `generators` and `encoders`, each with its size, licence and notice, and
        `files`. Sizes of a model that is not installed are None.
    """
    return {
        "generators": [_generator(name) for name in (*generators.BUILT_IN, generators.DIGIFACE)],
        "encoders": [_encoder(name) for name in encoders.BUILT_IN],
        "files": [{"family": family, "read": read} for family, read in FILES.items()],
    }


def measures() -> list[dict[str, str]]:
    """The built-in functions of images, and what their values mean."""
    found = {
        name: (inspect.getdoc(function) or "").partition("\n")[0]
        for name, function in IMAGE_MEASURES.items()
    }
    missing = "" if faceres.PATH.exists() else " Needs `make assets`."
    found |= {
        f"{faceres.NAME}:{name}": reading.about + missing
        for name, reading in faceres.READINGS.items()
    }
    return [{"function": name, "value": value} for name, value in found.items()]


def _generator(name: str) -> dict[str, Any]:
    try:
        found, _ = generators.load(name)
    except ConfigError as error:
        if name in generators.BUILT_IN:
            raise
        missing, found = str(error), None
    else:
        missing = ""
    return {
        "generator": name,
        "installed": found is not None,
        "latents": found.latent_size if found else None,
        **dict(zip(("height", "width"), found.image_shape if found else (None, None), strict=True)),
        "licence": _licence(generators.BUILT_IN.get(name)),
        "notice": missing or (NOTICES["faces"] if name == generators.DIGIFACE else ""),
    }


def _encoder(name: str) -> dict[str, Any]:
    found, _ = encoders.load(name)
    return {
        "encoder": name,
        "installed": True,
        "height": found.image_size,
        "width": found.image_size,
        "licence": _licence(encoders.BUILT_IN[name]),
    }


def _licence(folder: Path | None) -> str:
    """As the model card in a folder says; without a folder, as the package of faces says."""
    if folder:
        found = re.search(r"^license: (.+)$", (folder / "README.md").read_text(), re.MULTILINE)
        return found[1] if found else "unknown"
    try:
        about = importlib.metadata.metadata("gan-face-generate")
    except importlib.metadata.PackageNotFoundError:
        return "that of gan-face-generate"
    named = [about[key] for key in ("License-Expression", "License") if key in about]
    return named[0] if named else "that of gan-face-generate"
