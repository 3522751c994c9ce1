"""Files of weights: read in every format; damaged ones are refused in one sentence."""

import io
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.checkpoint import read_tensors

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([0.5, -1, 2], np.float16)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)


def counts(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    key: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    offset: int = 0,
    elements: int = 6,
    storage: str = "torch\nFloatStorage",
    device: str = "cpu",
) -> bytes:
    """What torch pickles for a tensor whose elements lie in the member data/<key>."""
    where = text("storage") + f"c{storage}\n".encode() + text(key) + text(device) + number(elements)
    place = number(offset) + counts(shape) + counts(strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + where + b"tQ" + place + hooks + b"tR"


MATRIX = tensor("0", (2, 3), (3, 1))
VECTOR = tensor("1", (3,), (1,), elements=3, storage="torch.cuda\nHalfStorage", device="cuda:0")


def pickled(**values: bytes) -> bytes:
    items = b"".join(text(name) + value for name, value in values.items())
    metadata = b"}" + text("_metadata") + b"Ns"  # torch sets an attribute of the dictionary
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u" + metadata + b"b."


def scripted(**attributes: bytes) -> bytes:
    """What TorchScript pickles for a module: an instance of a class of its own with a state."""
    items = b"".join(text(name) + value for name, value in attributes.items())
    return b"c__torch__.clip.model.___torch_mangle_1\nThing\n)\x81}(" + items + b"ub"


def archive(
    data: bytes,
    *,
    compression: int = zipfile.ZIP_STORED,
    byteorder: str = "little",
    **members: bytes,
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("model/data.pkl", data)
        file.writestr("model/byteorder", byteorder)
        file.writestr("model/data/0", WEIGHT.tobytes())
        file.writestr("model/data/1", BIAS.tobytes())
        for name, content in members.items():
            file.writestr(f"model/{name}", content)
    return buffer.getvalue()


STATE_DICT = archive(pickled(**{"layer.weight": MATRIX, "layer.bias": VECTOR}))
TORCHSCRIPT = archive(
    b"\x80\x02"
    + scripted(
        layer=scripted(weight=MATRIX, bias=VECTOR),
        training=b"\x89",
        hook=b"N",
        sizes=b"ctorch.jit._pickle\nbuild_intlist\n](K\x01K\x02e\x85R",
    )
    + b".",
    **{"code/__torch__/clip/model.py": b"import os; os.abort()", "constants.pkl": b"not read"},
)
MSGPACK = serialization.msgpack_serialize({"layer": {"weight": WEIGHT, "bias": BIAS}, "step": 3})


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], dict[str, np.ndarray]]:
    def read(content: bytes) -> dict[str, np.ndarray]:
        path = tmp_path / "weights"  # no suffix: the content decides the format
        path.write_bytes(content)
        return read_tensors(path)

    return read


@pytest.fixture
def safetensors(tmp_path: Path) -> bytes:
    save_file({"layer.weight": WEIGHT, "layer.bias": BIAS}, tmp_path / "x")
    return (tmp_path / "x").read_bytes()


@pytest.mark.parametrize("content", [STATE_DICT, TORCHSCRIPT, MSGPACK, "safetensors"])
def test_formats(read: Callable, safetensors: bytes, content: bytes | str) -> None:
    tensors = read(safetensors if isinstance(content, str) else content)
    assert set(tensors) == {"layer.weight", "layer.bias"}
    np.testing.assert_array_equal(tensors["layer.weight"], WEIGHT, strict=True)
    np.testing.assert_array_equal(tensors["layer.bias"], BIAS, strict=True)


@pytest.mark.parametrize(
    ("storage", "dtype"),
    [
        ("Float", np.float32),
        ("Double", np.float64),
        ("Half", np.float16),
        ("BFloat16", ml_dtypes.bfloat16),
        ("Long", np.int64),
        ("Int", np.int32),
        ("Short", np.int16),
        ("Char", np.int8),
        ("Byte", np.uint8),
        ("Bool", np.bool_),
    ],
)
def test_storages(read: Callable, storage: str, dtype: Any) -> None:
    values = np.array([1, 0, 1], dtype)
    data = tensor("2", (3,), (1,), elements=3, storage=f"torch\n{storage}Storage")
    tensors = read(archive(pickled(x=data), **{"data/2": values.tobytes()}))
    np.testing.assert_array_equal(tensors["x"], values, strict=True)


def test_bfloat16_in_safetensors(read: Callable) -> None:
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    values = np.array([1.5, -2], ml_dtypes.bfloat16)
    tensors = read(struct.pack("<Q", len(header)) + header + values.tobytes())
    np.testing.assert_array_equal(tensors["x"], values, strict=True)


def test_views_of_a_storage(read: Callable) -> None:
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + MATRIX + b"\x88N" + b"tR"
    data = pickled(
        turned=tensor("0", (3, 2), (1, 3)),
        tail=tensor("0", (2,), (2,), offset=3),
        scalar=tensor("0", (), (), offset=5),
        empty=tensor("0", (0, 4), (4, 1)),
        parameter=parameter,
    )
    tensors = read(archive(data))
    np.testing.assert_array_equal(tensors["turned"], WEIGHT.T)
    np.testing.assert_array_equal(tensors["tail"], [3, 5])
    np.testing.assert_array_equal(tensors["parameter"], WEIGHT)
    assert tensors["scalar"] == 5
    assert tensors["empty"].shape == (0, 4)


def deep(levels: int) -> bytes:
    """A dictionary in a dictionary in ...; `levels` opcodes are only a few bytes each."""
    return b"\x80\x02}" + (text("a") + b"}") * levels + b"s" * levels + b"."


def wide(levels: int) -> bytes:
    """Two names for one dictionary with two names for one dictionary ...: 2^levels tensors."""
    start, end = b"}(" + text("a"), b"q\x00" + text("b") + b"h\x00u"
    return b"\x80\x02" + start * levels + MATRIX + end * levels + b"."


def lying(content: bytes, member: bytes, size: int) -> bytes:
    """The archive, claiming another uncompressed size for a member."""
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(member)) + 24
    return content[:place] + struct.pack("<I", size) + content[place + 4 :]


LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
REFUSED = {
    "empty file": (b"", "damaged"),
    "text": (b"hello, hello, hello", "unknown"),
    "bare pickle": (LEGACY, "bare pickle"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "half an archive": (STATE_DICT[: len(STATE_DICT) // 2], "damaged"),
    "half a msgpack": (MSGPACK[: len(MSGPACK) // 2], "damaged"),
    "trailing bytes in msgpack": (MSGPACK + b"x", "damaged"),
    "safetensors header beyond the end": (struct.pack("<Q", 1 << 40) + b'{"a":', "damaged"),
    "compressed": (archive(pickled(x=MATRIX), compression=zipfile.ZIP_DEFLATED), "compressed"),
    "bomb": (lying(STATE_DICT, b"model/data/0", 1 << 31), "more bytes"),
    "other zip": (archive(b"").replace(b"data.pkl", b"data.npy"), "not PyTorch"),
    "big-endian": (archive(pickled(x=MATRIX), byteorder="big"), "little-endian"),
    "no tensor": (archive(pickled(x=b"N")), "no tensor"),
    "list of tensors": (archive(b"\x80\x02](" + MATRIX + b"e."), "no tensor"),
    "deep": (archive(deep(2000)), "too long"),
    "wide": (archive(wide(60)), "entries"),
    "within itself": (archive(b"\x80\x02}q\x00" + text("a") + b"h\x00s."), "too long"),
    "nameless within itself": (archive(b"\x80\x02}q\x00" + text("") + b"h\x00s."), "entries"),
    "one name twice": (archive(pickled(**{"a.b": MATRIX, "a": b"}" + text("b") + MATRIX + b"s"})),
                       "one name"),
    "command": (archive(b"\x80\x02cos\nsystem\n" + text("exit 1") + b"\x85R."), "os.system"),
    "class": (archive(pickled(x=b"ctorch.nn.modules.linear\nLinear\n)\x81")), "asks for"),
    "call of a storage type": (archive(b"\x80\x02ctorch\nFloatStorage\n)R."), "malformed"),
    "trailing pickle": (archive(pickled(x=MATRIX) + b"."), "wrong end"),
    "missing storage": (archive(pickled(x=tensor("7", (1,), (1,)))), "storage '7'"),
    "storage elsewhere": (archive(pickled(x=tensor("../data.pkl", (1,), (1,)))), "storage"),
    "short storage": (archive(pickled(x=tensor("0", (2,), (1,), elements=7))), "shorter"),
    "huge storage": (archive(pickled(x=tensor("0", (2,), (1,), elements=1 << 62))), "no count"),
    "size outside": (archive(pickled(x=tensor("0", (7,), (1,)))), "outside"),
    "stride outside": (archive(pickled(x=tensor("0", (2, 3), (4, 1)))), "outside"),
    "offset outside": (archive(pickled(x=tensor("0", (2, 3), (3, 1), offset=1))), "outside"),
    "repeated elements": (archive(pickled(x=tensor("0", (1 << 30, 9), (0, 0)))), "outside"),
    "negative size": (archive(pickled(x=tensor("0", (-2, -3), (3, 1)))), "no count"),
    "negative stride": (archive(pickled(x=tensor("0", (2,), (-1,), offset=2))), "no count"),
    "negative offset": (archive(pickled(x=tensor("0", (1,), (1,), offset=-1))), "no count"),
    "sizes without strides": (archive(pickled(x=tensor("0", (2, 3), (1,)))), "malformed"),
    "many axes": (archive(pickled(x=tensor("0", (1,) * 65, (1,) * 65))), "malformed"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(read: Callable, tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        read(content)
    message = str(caught.value)
    assert str(tmp_path / "weights") in message
    assert message.endswith("or save its tensors as safetensors")
    assert "\n" not in message


def test_large_pickle_is_refused(read: Callable) -> None:
    with pytest.raises(CheckpointError, match="larger"):
        read(archive(b"\x80\x02" + b"N" * (8 << 20) + b"."))


def test_two_members_of_one_name(read: Callable) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        content = archive(pickled(x=MATRIX), **{"data/0": b"other"})
    with pytest.raises(CheckpointError, match="two of its members"):
        read(content)


def test_absent(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match="check the path"):
            read_tensors(path)


def mutate(random: np.random.Generator, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        place, length = random.integers(len(data)), random.integers(1, 9)
        match random.integers(5):
            case 0:
                data[place] ^= 1 << random.integers(8)
            case 1:
                data[place : place + length] = random.bytes(length)
            case 2:
                del data[place : place + length]
            case 3:
                other = random.integers(len(data))
                data[place:place] = data[other : other + length]
            case 4:
                del data[max(place, 32) :]
    return bytes(data)


@pytest.mark.parametrize("kind", ["state dict", "torchscript", "msgpack", "safetensors", "pickle"])
def test_mutations(read: Callable, safetensors: bytes, kind: str) -> None:
    """A file with any damage is read or refused, in short time."""
    random = np.random.default_rng(0)
    data = pickled(**{"layer.weight": MATRIX, "layer.bias": VECTOR})
    refused, start = 0, time.perf_counter()
    for _ in range(80):
        match kind:
            case "pickle":  # below the archive's checksums
                content = archive(mutate(random, data))
            case "state dict":
                content = mutate(random, STATE_DICT)
            case "torchscript":
                content = mutate(random, TORCHSCRIPT)
            case "msgpack":
                content = mutate(random, MSGPACK)
            case _:
                content = mutate(random, safetensors)
        try:
            tensors = read(content)
        except CheckpointError:
            refused += 1
        else:
            assert sum(x.nbytes for x in tensors.values()) <= len(content)
    assert 40 < refused <= 80
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("name", ["openai_state_dict.pt", "openai_torchscript.pt"])
def test_openai_distributions_agree(reference: Path, name: str) -> None:
    tensors = read_tensors(reference / "clip/tiny_vit32" / name)
    assert len(tensors) == 74
    assert tensors["visual.transformer.resblocks.0.attn.in_proj_weight"].shape == (384, 128)
    assert tensors["visual.proj"].shape == (128, 64)


def test_cuda_storages_of_the_reference(reference: Path) -> None:
    assert read_tensors(reference / "qdgs/vae-shapes.pt")["decoder.fc1.weight"].shape == (8192, 6)
