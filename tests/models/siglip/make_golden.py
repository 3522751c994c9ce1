"""Makes the folder tiny: a small random SigLIP in Hugging Face's layout with its tokenizer, and
golden.npz, what transformers makes of them.

Run it where torch, transformers, sentencepiece and protobuf are installed:
python tests/models/siglip/make_golden.py
"""

import os
import random
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from transformers import SiglipConfig, SiglipModel, SiglipTokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

FOLDER = Path(__file__).parent / "tiny"
SIDE, LENGTH = 18, 24  # 18 pixels are 4 patches and 2 pixels that are not read
TEXTS = [
    "A red circle, and a BLUE square!",
    "two   large   shapes: yellow & green",
    "\uff52\uff45\uff44 (small) triangle",  # wide letters, which the rules replace
    "a \u4f60\u597d shape",  # letters that it does not know
    "circle",
]
WORDS = [
    "a", "and", "background", "black", "blue", "bright", "circle", "circles", "dark", "green",
    "ground", "large", "on", "one", "orange", "red", "shape", "shapes", "small", "square",
    "squares", "triangle", "triangles", "two", "very", "white", "with", "yellow",
]  # fmt: skip


def make_tokenizer() -> SiglipTokenizer:
    """Writes spiece.model, with rules for wide letters."""
    path = FOLDER.resolve() / "spiece.model"
    sentences = (" ".join(random.Random(i).choices(WORDS, k=7)) for i in range(300))
    rules = "".join(f"{0xFF41 + i:X}\t{ord('a') + i:X}\n" for i in range(26))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the model holds the name of the file of rules
        Path("rules.tsv").write_text(rules)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences, model_prefix="spiece", vocab_size=60,
            hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            normalization_rule_tsv="rules.tsv",
        )  # fmt: skip
        path.write_bytes(Path("spiece.model").read_bytes())
        os.chdir("/")
    return SiglipTokenizer(str(path))


def make_model(vocabulary_size: int) -> SiglipModel:
    """Writes config.json and model.safetensors."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 24, "image_size": SIDE, "patch_size": 4}  # fmt: skip
    text = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_size": 20, "max_position_embeddings": LENGTH,
            "vocab_size": vocabulary_size, "projection_size": 16}  # fmt: skip
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(FOLDER)
    return model.double()


def main() -> None:
    """Writes all files."""
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(FOLDER)

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"].double()
    pixels.requires_grad_()
    ids = tokenizer(TEXTS, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    embeddings = model.get_image_features(pixels).pooler_output
    unit = embeddings / embeddings.norm(dim=-1, keepdim=True)
    cotangent = generator.normal(size=unit.shape)
    (unit * torch.tensor(cotangent)).sum().backward()
    with torch.no_grad():
        texts = model.get_text_features(ids).pooler_output
    np.savez_compressed(
        FOLDER / "golden.npz", images=images, image_embeddings=embeddings.detach().numpy(),
        cotangent=cotangent,
        # Of pixels in [0, 1], which are normalised by 0.5 and 0.5.
        gradient=2 * pixels.grad.permute(0, 2, 3, 1).numpy().astype(np.float32),
        texts=np.array(TEXTS), ids=ids.numpy().astype(np.uint8), text_embeddings=texts.numpy(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
