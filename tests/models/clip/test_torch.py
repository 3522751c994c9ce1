"""Full-size CLIPs with random weights, compared with transformers: minutes and gigabytes."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.models import clip

torch = pytest.importorskip("torch", reason="PyTorch is absent: install the extra `bench`")

VIT_L_14 = {
    "projection_dim": 768,
    "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                      "intermediate_size": 4096, "patch_size": 14, "projection_dim": 768},
    "text_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
                    "projection_dim": 768},
}  # fmt: skip
COSINES = {"highest": 0.99999, "bf16": 0.999}


@pytest.mark.bench
@pytest.mark.parametrize("sizes", [{}, VIT_L_14], ids=["ViT-B/32", "ViT-L/14"])
def test_full_size(tmp_path: Path, sizes: dict[str, Any]) -> None:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(**sizes)).eval()
    random = np.random.default_rng(0)
    pixel_values = random.normal(size=(2, 224, 224, 3)).astype(np.float32)
    input_ids = random.integers(1000, 40000, (2, 77))
    input_ids[0, 9:], input_ids[1, 30:] = 49407, 49407
    with torch.inference_mode():
        images = model.vision_model(torch.tensor(pixel_values).permute(0, 3, 1, 2))
        texts = model.text_model(torch.tensor(input_ids))
        desired = {
            "images": model.visual_projection(images.pooler_output).numpy(),
            "texts": model.text_projection(texts.pooler_output).numpy(),
        }
    model.save_pretrained(tmp_path)
    del model, images, texts
    config, params = clip.load(tmp_path)
    for precision, least in COSINES.items():
        embed_images = jax.jit(partial(clip.embed_images, config, precision=precision))
        embed_tokens = jax.jit(partial(clip.embed_tokens, config, precision=precision))
        actual = {
            "images": embed_images(params, pixel_values),
            "texts": embed_tokens(params, jnp.asarray(input_ids, jnp.int32)),
        }
        for kind, embeddings in actual.items():
            cosine = np.sum(_unit(embeddings) * _unit(desired[kind]), axis=1)
            assert cosine.min() > least, f"{kind}, {precision}: {cosine}"


def _unit(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
