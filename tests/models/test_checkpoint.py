"""Files of weights: read in every format; damaged ones are refused in one sentence."""

import io
import json
import os
import resource
import struct
import time
import tracemalloc
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
from qdgs_jax.models import torch_files
from qdgs_jax.models.checkpoint import (
    explained,
    find_network,
    fingerprint,
    read_json,
    read_tensors,
    to_device,
)

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


def legacy(value: bytes, keys: bytes, *storages: np.ndarray) -> bytes:
    """What `torch.save` wrote before PyTorch 1.6."""
    start = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    system = b"\x80\x02}" + text("little_endian") + b"\x88s."
    # A sixth part of a persistent id: the view that a storage was of another.
    value = value.replace(b"tQ", b"NtQ")
    data = b"".join(struct.pack("<Q", x.size) + x.tobytes() for x in storages)
    return start + system + value + b"\x80\x02](" + keys + b"e." + data


LEGACY = legacy(
    pickled(**{"layer.weight": MATRIX, "layer.bias": VECTOR}), text("1") + text("0"), BIAS, WEIGHT
)


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


@pytest.mark.parametrize(
    "content",
    [STATE_DICT, TORCHSCRIPT, LEGACY, MSGPACK, "safetensors"],
    ids=["zip", "torchscript", "legacy", "msgpack", "safetensors"],  # bytes have a time in them
)
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


def wide(levels: int, value: bytes = MATRIX) -> bytes:
    """Two names for one dictionary with two names for one dictionary ...: 2^levels tensors."""
    start, end = b"}(" + text("a"), b"q\x00" + text("b") + b"h\x00u"
    return b"\x80\x02" + start * levels + value + end * levels + b"."


def lying(content: bytes, member: bytes, size: int) -> bytes:
    """The archive, claiming another uncompressed size for a member."""
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(member)) + 24
    return content[:place] + struct.pack("<I", size) + content[place + 4 :]


REFUSED = {
    "empty file": (b"", "it is empty"),
    "text": (b"hello, hello, hello", "unknown"),
    "bare pickle": (b"\x80\x04]\x94.", "bare pickle"),
    "half of a legacy file": (LEGACY[:-5], "claimed size"),
    "pickles without storages": (LEGACY[: LEGACY.rindex(b"\x80\x02](")], "too early"),
    "half an archive": (STATE_DICT[: len(STATE_DICT) // 2], "damaged"),
    "half a msgpack": (MSGPACK[: len(MSGPACK) // 2], "damaged"),
    "trailing bytes in msgpack": (MSGPACK + b"x", "damaged"),
    "safetensors header beyond the end": (struct.pack("<Q", 1 << 40) + b'{"a":', "damaged"),
    "compressed": (archive(pickled(x=MATRIX), compression=zipfile.ZIP_DEFLATED), "compressed"),
    "bomb": (lying(STATE_DICT, b"model/data/0", 1 << 31), "two sizes"),
    "big-endian": (archive(pickled(x=MATRIX), byteorder="big"), "little-endian"),
    "deep": (archive(deep(2000)), "too long"),
    "wide": (archive(wide(60)), "claim more bytes"),
    "wide and empty": (archive(wide(60, tensor("0", (0,), (1,)))), "entries"),
    "within itself": (archive(b"\x80\x02}q\x00" + text("a") + b"h\x00s."), "too long"),
    "nameless within itself": (archive(b"\x80\x02}q\x00" + text("") + b"h\x00s."), "entries"),
    "one name twice": (archive(pickled(**{"a.b": MATRIX, "a": b"}" + text("b") + MATRIX + b"s"})),
                       "one name"),
    "command": (archive(b"\x80\x02cos\nsystem\n" + text("exit 1") + b"\x85R."), "os.system"),
    "call of a storage type": (archive(b"\x80\x02ctorch\nFloatStorage\n)R."), "malformed"),
    "trailing pickle": (archive(pickled(x=MATRIX) + b"."), "wrong end"),
    "name with a line": (archive(pickled(**{"a\nb": MATRIX})), "no plain text"),
    "name with an escape": (archive(pickled(**{"a\x1b[2Jb": MATRIX})), "no plain text"),
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
    assert message.isprintable()


def packed(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, b"")
    return buffer.getvalue()


LINEAR = b"ctorch.nn.modules.linear\nLinear\n)\x81"
NAMED = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "page": (b"\n <!DOCTYPE html><html>Sign in</html>", "a web page.*: download the file itself"),
    "json": (b'{"error": "Invalid username"}', "a text in JSON.*: download the file itself"),
    "gzip": (b"\x1f\x8b\x08\x00 and so on", "gzip: unpack it"),
    "tar": (b"weights".ljust(257, b"\0") + b"ustar\x0000", "a tar archive: unpack it"),
    "keras": (b"\x89HDF\r\n\x1a\n", "Keras.*: load it with the library that wrote it"),
    "other zip": (packed("weights.pt"), "a zip archive, but not PyTorch's: unpack it"),
    "numpy": (packed("a.npy"), "an archive of NumPy's: save its arrays"),
    "module": (archive(b"\x80\x02" + LINEAR + b"."), "linear.Linear'.*state_dict"),
    "own module": (legacy(b"\x80\x02c__main__\nNet\n)\x81.", b""), "'__main__.Net'.*state_dict"),
    "no tensor": (archive(pickled(x=b"N")), r"no tensor by name: save `model\.state_dict"),
    "list of tensors": (archive(b"\x80\x02](" + MATRIX + b"e."), "no tensor by name: save"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), NAMED.values(), ids=NAMED.keys())
def test_named_as_what_they_are(read: Callable, content: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        read(content)
    assert str(caught.value).isprintable()


def test_training_checkpoints(read: Callable) -> None:
    """Configs, numbers and paths are dropped, and what integers name: states of optimizers."""
    namespace = b"cargparse\nNamespace\n)\x81}" + text("lr") + b"K\x01sb"
    scalar = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(" + text("f8") + b"\x89\x88tR"
    scalar += b"c_codecs\nencode\n(" + text("x") + text("latin1") + b"tRtR"
    state = b"}(" + text("state") + b"}K\x00}" + text("exp_avg") + VECTOR + b"ss"
    state += text("param_groups") + b"]}" + text("params") + b"](K\x00K\x01esau"
    content = pickled(
        epoch=b"K\x07",
        state_dict=b"}" + text("module.layer.weight") + MATRIX + b"s",
        optimizer=state,
        args=namespace,
        best=scalar,
        path=b"cpathlib\nPosixPath\n(" + text("a") + b"tR",
        lists=b"ccollections\ndefaultdict\n(c__builtin__\nlist\ntR" + text("a") + b"]s",
        device=b"ctorch\ndevice\n(" + text("cpu") + b"tR",
    )
    for written in (archive(content), legacy(content, text("0") + text("1"), WEIGHT, BIAS)):
        tensors = read(written)
        assert tensors.keys() == {"state_dict.module.layer.weight"}
        np.testing.assert_array_equal(tensors["state_dict.module.layer.weight"], WEIGHT)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("w", "b"), ("w", "b")),
        (("module.w", "module.b"), ("w", "b")),
        (("_orig_mod.module.w", "_orig_mod.module.b"), ("w", "b")),
        (("a._orig_mod.x.w", "a._orig_mod.x.b", "other"), ("w", "b")),
        (("g.w", "d.b", "g_ema.w", "g_ema.b", "schema.w"), ("w", "b")),
        (("long.prefix.w", "net.w", "net.b", "net.c"), ("w", "b", "c")),
        (("net.ww", "b"), ()),
    ],
)
def test_a_network_is_found_under_its_prefix(
    names: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    tensors = {name: np.array(i) for i, name in enumerate(names)}
    assert tuple(find_network(tensors, "w")) == chosen


def test_of_a_network_and_its_average_the_average_is_taken() -> None:
    assert find_network({"g.w": np.zeros(1), "netG_ema.module.w": np.ones(1)}, "w") == {"w": 1}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    shards = {"m-1-of-2": {"layer.weight": WEIGHT, "spare": BIAS}, "m-2-of-2": {"layer.bias": BIAS}}
    for name, tensors in shards.items():
        if kind == "safetensors":
            save_file(tensors, tmp_path / name)
        else:
            data = {"layer.weight": MATRIX, "layer.bias": VECTOR}
            own = {key: value for key, value in data.items() if key in tensors}
            (tmp_path / name).write_bytes(archive(pickled(**own)))
    index = tmp_path / "model.index.json"
    names = {"layer.weight": "m-1-of-2", "layer.bias": "m-2-of-2"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    tensors = read_tensors(index)
    assert tensors.keys() == names.keys()
    np.testing.assert_array_equal(tensors["layer.weight"], WEIGHT)
    np.testing.assert_array_equal(tensors["layer.bias"], BIAS)
    before = fingerprint(index)
    with open(tmp_path / "m-2-of-2", "ab") as file:
        file.write(b"x")
    assert fingerprint(index) != before


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        ("../x", "outside of its folder"),
        ("/etc/passwd", "outside of its folder"),
        ("..", "outside of its folder"),
        ("a\\b", "outside of its folder"),
        ("", "outside of its folder"),
        (3, "outside of its folder"),
        ("other.index.json", "another index"),
        ("absent", "No such file"),
        ("there", "lacks layer.weight of the model.index.json"),
    ],
)
def test_indices_that_are_none(tmp_path: Path, shard: Any, reason: str) -> None:
    save_file({"spare": WEIGHT}, tmp_path / "there")
    index = tmp_path / "model.index.json"
    index.write_text(json.dumps({"weight_map": {"layer.weight": shard}}))
    with pytest.raises(CheckpointError, match=reason):
        read_tensors(index)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"a": %s}' % (b"9" * 5000), "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"\\udfff": 1}', "not JSON"),
        (b"\0", "not JSON"),
        (b"[]", "no JSON object"),
        (b'{"a": "%s"}' % (b"x" * (1 << 20)), "more than the 1,048,576 expected"),
    ],
)
def test_hostile_json(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        read_json(tmp_path / "x.json")


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": [1, "\\ud83d\\ude00"]}')
    assert read_json(tmp_path / "x.json") == {"a": [1, "\U0001f600"]}


def test_a_panic_is_a_sentence_and_an_interruption_is_none() -> None:
    class PanicException(BaseException):
        """As Rust's, no `Exception`."""

    damaged = pytest.raises(CheckpointError, match="x cannot be read, it is damaged: fetch it")
    with damaged, explained("x", "fetch it"):
        raise PanicException
    with pytest.raises(KeyboardInterrupt), explained("x", "fetch it"):
        raise KeyboardInterrupt


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device")):
        with pytest.raises(CheckpointError, match=reason):
            read_tensors(path)


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    """A file of 3 GiB costs no memory until its tensors are used."""
    path = tmp_path / "x"
    size = 3 << 30
    header = b'{"x":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (size // 4, size)
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    tensors = read_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert tensors["x"].nbytes == size
    assert not tensors["x"].flags.writeable


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is mapped")
def test_weights_are_copies_that_leave_no_pages_of_their_file(tmp_path: Path) -> None:
    def mapped() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssFile:")[1].split()[0])  # KiB

    path = tmp_path / "x"
    values = np.arange(4 << 20, dtype=np.float32).reshape(1 << 11, -1)
    save_file({"x": values}, path)
    to_device(np.zeros(1))  # maps JAX's own libraries
    before, tensors = mapped(), read_tensors(path)
    weights = to_device(tensors["x"].T)
    assert mapped() - before < 4 << 10
    os.truncate(path, 0)  # what lies in the file would now end the process
    np.testing.assert_array_equal(weights, values.T)
    halves = to_device(np.array([0.5, 2], np.float16))
    np.testing.assert_array_equal(halves, np.array([0.5, 2], np.float32), strict=True)


def safetensors_header(header: bytes, size: int = 0) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(size)


ENTRY = '"%s":{"dtype":"U8","shape":[%s],"data_offsets":[%d,%d]}'
FLOODS = {
    "maps": b"\xdc\xff\xff" + b"\x80" * 0xFFFF,
    "maps in maps": b"\x81\xa1a" * 2000 + b"\x80",
    "maps beside maps": (b"\x82\xa1a\x80\xa1b" * 900) + b"\x80",
    "wide maps": b"\xdf\x00\x00\xff\xff",
    "an array of an array of ...": b"\x81\xa1a\xc7\xff\x01" + b"\x91" * 254 + b"\xc0",
    "an array of objects": serialization.msgpack_serialize({"a": np.zeros(2)}).replace(
        b"float64", b"object "
    ),
    "an array of another size": serialization.msgpack_serialize({"a": np.zeros(2)}).replace(
        b"\x91\x02", b"\x91\x7f"
    ),
    "tensors that overlap": safetensors_header(
        ("{" + ENTRY % ("a", "8", 0, 8) + "," + ENTRY % ("b", "8", 0, 8) + "}").encode(), 8
    ),
    "a tensor beyond the end": safetensors_header(
        ("{" + ENTRY % ("a", "9", 0, 9) + "}").encode(), 8
    ),
    "a tensor with a hole": safetensors_header(("{" + ENTRY % ("a", "4", 4, 8) + "}").encode(), 8),
    "a shape too large": safetensors_header(
        ("{" + ENTRY % ("a", f"{1 << 62},{1 << 62}", 0, 8) + "}").encode(), 8
    ),
    "a shape of many": safetensors_header(
        ("{" + ENTRY % ("a", ",".join("1" * 999), 0, 1) + "}").encode(), 1
    ),
    "a deep header": safetensors_header(b'{"a":' * 50_000),
}


@pytest.mark.parametrize("content", FLOODS.values(), ids=FLOODS.keys())
def test_floods(read: Callable, content: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        read(content)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


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


@pytest.mark.parametrize(
    "kind", ["state dict", "torchscript", "legacy", "msgpack", "safetensors", "pickle"]
)
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
            case "legacy":
                content = mutate(random, LEGACY)
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


def test_a_long_table_of_contents_is_not_read(
    read: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive(pickled(x=MATRIX), **{f"data/x{i}": b"" for i in range(200)})
    assert read(content).keys() == {"x"}
    monkeypatch.setattr(torch_files, "MAX_DIRECTORY", 200 * 46)
    with pytest.raises(CheckpointError, match="table of contents is larger"):
        read(content)
