"""What a file is that nothing here reads: formats and networks by their marks."""

from collections.abc import Iterable

from qdgs_jax.models.pickles import UnreadableError

_PACKED = "unpack it first"
_AGAIN = "download the file itself, and check that its size is the published one"
_CONVERT = "load it with the library that wrote it, and save its tensors as safetensors"

_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "only a Git LFS pointer", "fetch the file by `git lfs pull`"),
    (b"<", "a web page, saved in place of the file", _AGAIN),
    (b"{", "a text in JSON, not weights", _AGAIN),
    (b"\x1f\x8b", "packed by gzip", _PACKED),
    (b"BZh", "packed by bzip2", _PACKED),
    (b"\xfd7zXZ", "packed by xz", _PACKED),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", _PACKED),
    (b"7z\xbc\xaf", "packed by 7-Zip", _PACKED),
    (b"Rar!", "packed by RAR", _PACKED),
    (b"PK", "an empty zip archive", _AGAIN),
    (b"\x89HDF", "a file of Keras (HDF5)", _CONVERT),
    (b"\x93NUMPY", "one array of NumPy", _CONVERT),
    (b"GGUF", "a file of llama.cpp (GGUF)", _CONVERT),
)
"""Beginning -> what the file is, and what helps."""


def name_format(head: bytes) -> UnreadableError | None:
    """Why a file with this beginning, of 512 bytes, is not read; None if it is unknown."""
    if head[257:262] == b"ustar":
        return UnreadableError("it is a tar archive", _PACKED)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for mark, name, remedy in _FORMATS:
        if start.startswith(mark):
            return UnreadableError(f"it is {name}", remedy)
    return None


_REMEDIES = {
    "encoder": "give a CLIP such as openai/clip-vit-base-patch32, or a SigLIP such as "
    "google/siglip-base-patch16-224",
    "generator": "give a shapes VAE, a DCGAN, or a StyleGAN2 in a .pkl of NVIDIA's PyTorch code",
}

_FOREIGN: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("vision_model.head.probe",),
        "a SigLIP, which is read as an encoder with the config.json of its folder",
    ),
    (("visual.trunk.attn_pool.latent",), "a SigLIP in the layout of open_clip, which is not read"),
    (("visual.blocks.0.norm1.weight",), "an EVA-CLIP"),
    (("visual.trunk.cls_token",), "a CLIP with an image tower of timm's, such as EVA"),
    (("visual.trunk.stem.0.weight",), "a CLIP with an image tower of timm's"),
    (("visual.layer1.0.conv1.weight",), "a CLIP with a ResNet"),
    (("text_decoder.text_projection",), "a CoCa"),
    (
        ("cls_token", "blocks.0.attn.qkv.weight"),
        "a vision transformer that reads no text, such as DINO",
    ),
    (
        ("embeddings.cls_token", "layer.0.attention.attention.query.weight"),
        "a vision transformer that reads no text, such as DINO",
    ),
    (
        ("style.1.weight", "convs.0.conv.modulation.weight"),
        "a StyleGAN2 in the layout of rosinality's code, which is not read",
    ),
    (("synthesis.input.transform",), "a StyleGAN3"),
    (("time_embed.0.weight",), "a diffusion model"),
    (("time_embedding.linear_1.weight",), "a diffusion model"),
)
"""How names of tensors end -> what holds them all, which nothing here reads."""

_OWN = (
    ("visual.class_embedding", "a CLIP", "encoder"),
    ("vision_model.embeddings.class_embedding", "a CLIP", "encoder"),
    ("synthesis.b4.const", "a StyleGAN2", "generator"),
    ("main.1.running_mean", "a DCGAN", "generator"),
    ("decoder.fc1.weight", "a shapes VAE", "generator"),
)
"""The same, of what is read."""


def name_network(names: Iterable[str], wanted: str) -> tuple[str, str] | None:
    """What these tensors are in place of what is wanted, and what helps; None if it is unknown.

    Args:
        names: of the tensors.
        wanted: "encoder" or "generator".
    """
    known = tuple(f".{name}" for name in names)

    def held(mark: str) -> bool:
        return any(name.endswith(f".{mark}") for name in known)

    for marks, network in _FOREIGN:
        if all(map(held, marks)):
            return network, _REMEDIES[wanted]
    for mark, network, kind in _OWN:
        if kind != wanted and held(mark):
            return f"{network}, which is no {wanted}", f"give it as {kind}.model"
    return None
