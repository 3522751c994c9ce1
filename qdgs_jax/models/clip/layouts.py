"""The layouts in which CLIP's weights are published, with one mapping table each."""

from collections.abc import Iterator

from qdgs_jax.models.clip.modeling import CLIPConfig
from qdgs_jax.models.tables import (
    Row,
    dense,
    from_hwio,
    from_oihw,
    fused_attention,
    hugging_face_blocks,
    norm,
    same,
    turned,
)

IGNORED = frozenset(
    ("attn_mask", "context_length", "input_resolution", "logit_bias", "output_dim", "position_ids",
     "vocab_size")
)  # fmt: skip
"""Last parts of keys that hold constants of the program, or of training, rather than weights."""


def hugging_face(config: CLIPConfig, *, flax: bool = False) -> Iterator[Row]:
    """Hugging Face's layout, that of PyTorch files or that of Flax files."""
    kernel, turn, patches = ("kernel", same, from_hwio) if flax else ("weight", turned, from_oihw)
    table = "embedding" if flax else "weight"
    vision, text = "vision_model.embeddings", "text_model.embeddings"
    yield Row("logit_scale", "logit_scale", same)
    yield Row(f"{vision}.class_embedding", "vision/class_embedding", same)
    yield Row(f"{vision}.patch_embedding.{kernel}", "vision/patch_embedding/kernel", patches)
    yield Row(f"{vision}.position_embedding.{table}", "vision/position_embedding", same)
    yield from norm("vision_model.pre_layrnorm", "vision/norm_pre", flax=flax)
    yield from hugging_face_blocks("vision", config.vision.layers, flax=flax)
    yield from norm("vision_model.post_layernorm", "vision/norm_post", flax=flax)
    yield Row(f"visual_projection.{kernel}", "vision/projection/kernel", turn)
    yield Row(f"{text}.token_embedding.{table}", "text/token_embedding/embedding", same)
    yield Row(f"{text}.position_embedding.{table}", "text/position_embedding", same)
    yield from hugging_face_blocks("text", config.text.layers, flax=flax)
    yield from norm("text_model.final_layer_norm", "text/norm_post", flax=flax)
    yield Row(f"text_projection.{kernel}", "text/projection/kernel", turn)


def openai(config: CLIPConfig) -> Iterator[Row]:
    """The layout of OpenAI's and open_clip's files: projections are stored input-major."""

    def blocks(prefix: str, tower: str, layers: int) -> Iterator[Row]:
        for i in range(layers):
            source, target = f"{prefix}.resblocks.{i}", f"{tower}/block{i}"
            yield from norm(f"{source}.ln_1", f"{target}/norm1")
            yield from norm(f"{source}.ln_2", f"{target}/norm2")
            yield from fused_attention(f"{source}.attn", f"{target}/attention")
            yield from dense(f"{source}.mlp.c_fc", f"{target}/up")
            yield from dense(f"{source}.mlp.c_proj", f"{target}/down")

    yield Row("logit_scale", "logit_scale", same)
    yield Row("visual.class_embedding", "vision/class_embedding", same)
    yield Row("visual.conv1.weight", "vision/patch_embedding/kernel", from_oihw)
    yield Row("visual.positional_embedding", "vision/position_embedding", same)
    yield from norm("visual.ln_pre", "vision/norm_pre")
    yield from blocks("visual.transformer", "vision", config.vision.layers)
    yield from norm("visual.ln_post", "vision/norm_post")
    yield Row("visual.proj", "vision/projection/kernel", same)
    yield Row("token_embedding.weight", "text/token_embedding/embedding", same)
    yield Row("positional_embedding", "text/position_embedding", same)
    yield from blocks("transformer", "text", config.text.layers)
    yield from norm("ln_final", "text/norm_post")
    yield Row("text_projection", "text/projection/kernel", same)
