"""Restricted readers of weights: a foreign file is data, and nothing in it is executed.

A file's content decides its format, not its name. The pickled parts of PyTorch's archives are read
by `pickles`; the allow-list is tensors, their storages, and TorchScript modules as attributes.
"""

import contextlib
import io
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from flax import serialization

from qdgs_jax.errors import CheckpointError
from qdgs_jax.models.pickles import Attributes, UnreadableError, unpickle, unpickle_next

MAX_PICKLE = 8 << 20  # bytes, without the tensors; known models need less than one MiB
MAX_ENTRIES = 1 << 17
MAX_NAME = 1024
MAX_STORAGE_HEAD = 1024  # bytes; PyTorch writes about 250
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a file, by name; parts of nested names are joined by dots.

    Reads safetensors, `torch.save` archives, TorchScript archives (attributes, not code) and
    Flax's msgpack. Arrays may be read-only views; values other than tensors are left out.

    Raises:
        CheckpointError: The file is absent, damaged, hostile, or of another format.
    """
    with explained(path, "fetch it again, or save its tensors as safetensors"):
        with open(path, "rb") as file:
            head = file.read(32)
        return _reader(head)(Path(path))


@contextlib.contextmanager
def explained(path: str | Path, remedy: str) -> Iterator[None]:
    """Replaces any exception of a reader by a CheckpointError of one sentence.

    Raises:
        CheckpointError: The code inside raised an exception.
    """
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        reason = error.strerror or "it is damaged"
        raise CheckpointError(f"{path} cannot be read, {reason}: check the path") from error
    except Exception as error:  # a hostile file can cause any exception
        reason = str(error) if isinstance(error, UnreadableError) else "it is damaged"
        raise CheckpointError(f"{path} cannot be read, {reason}: {remedy}") from error


def _reader(head: bytes) -> Callable[[Path], dict[str, np.ndarray]]:
    if head.startswith(b"PK\x03\x04"):
        return _read_torch_archive
    if head[8:9] == b"{":
        return _read_safetensors
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UnreadableError("it is a bare pickle (of PyTorch before 1.6, or others)")
    if 0x80 < head[0] < 0x90 or head[0] in (0xDE, 0xDF):
        return _read_msgpack
    if head.startswith(b"version https://git-lfs"):
        raise UnreadableError("it is only a Git LFS pointer (`git lfs pull` fetches the file)")
    raise UnreadableError("its format is unknown")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    for name, view in safetensors.deserialize(path.read_bytes()):
        if view["dtype"] not in _SAFETENSORS_DTYPES:
            raise UnreadableError(f"the type {view['dtype']} of {name} is unsupported")
        flat = np.frombuffer(view["data"], _SAFETENSORS_DTYPES[view["dtype"]])
        tensors[name] = flat.reshape(view["shape"])
    return tensors


def _read_msgpack(path: Path) -> dict[str, np.ndarray]:
    return _flatten(serialization.msgpack_restore(path.read_bytes()))


def _read_torch_archive(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        root, sizes = _members(archive, path.stat().st_size)
        buffers: dict[str, bytes] = {}

        def storage(kind: Any, dtype: Any, key: Any, device: Any, count: Any, *_: Any) -> Storage:
            if not isinstance(dtype, np.dtype) or type(key) is not str:
                raise UnreadableError("one of its storages is malformed")
            member = f"{root}data/{key}"
            if _count(count) * dtype.itemsize > sizes.get(member, -1):
                raise UnreadableError(f"its storage {key[:80]!r} is shorter than claimed")
            if key not in buffers:
                buffers[key] = archive.read(member)
            return Storage(buffers[key], dtype, count)

        return _flatten(unpickle(archive.read(f"{root}data.pkl"), _torch_global, storage))


def _members(archive: zipfile.ZipFile, file_size: int) -> tuple[str, dict[str, int]]:
    """The top folder of a PyTorch archive, and the sizes of its members in bytes."""
    infos = archive.infolist()
    sizes = {info.filename: info.file_size for info in infos}
    if len(sizes) != len(infos):
        raise UnreadableError("two of its members have one name")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise UnreadableError("it is compressed, which PyTorch's files never are")
    if sum(sizes.values()) > file_size:
        raise UnreadableError("its members claim more bytes than it has")
    roots = [name[:-8] for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UnreadableError("it is a zip archive, but not PyTorch's")
    root = roots[0]
    if f"{root}byteorder" in sizes and archive.read(f"{root}byteorder") != b"little":
        raise UnreadableError("its byte order is not little-endian")
    if sizes[f"{root}data.pkl"] > MAX_PICKLE:
        raise UnreadableError(f"its pickle is larger than {MAX_PICKLE} bytes")
    return root, sizes


class Storage(NamedTuple):
    """The flat buffer that tensors are views of."""

    data: bytes | memoryview
    dtype: np.dtype
    elements: int


def read_storage(stream: bytes) -> Storage:
    """Reads one storage in the format of `torch.save` before 1.6, as pickled storages still have.

    Five small pickles (magic number, version, sizes of types, storage, keys), then the number of
    elements, then the elements.

    Raises:
        UnreadableError: The number of elements is not the claimed one.
        Exception: Any other, if the stream is malformed.
    """
    head = io.BytesIO(stream[:MAX_STORAGE_HEAD])

    def claimed(kind: Any, dtype: Any, key: Any, device: Any, count: Any, view: Any) -> Storage:
        if not isinstance(dtype, np.dtype) or view is not None:
            raise UnreadableError("one of its storages is malformed")
        return Storage(b"", dtype, _count(count))

    magic, version, system, storage, _ = (
        unpickle_next(head, _storage_type, claimed) for _ in range(5)
    )
    if (magic, version, system["little_endian"]) != (LEGACY_MAGIC, LEGACY_VERSION, True):
        raise UnreadableError("one of its storages is of another format")
    if not isinstance(storage, Storage):
        raise UnreadableError("one of its storages is malformed")
    count = int.from_bytes(head.read(8), "little")
    data = memoryview(stream)[head.tell() :]
    if count != storage.elements or count * storage.dtype.itemsize != len(data):
        raise UnreadableError("one of its storages is not of the claimed size")
    return storage._replace(data=data)


def rebuild_tensor(
    storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """A read-only view into a storage, as `torch._utils._rebuild_tensor_v2` describes it.

    Raises:
        ValueError: The view leaves the storage, or repeats its elements.
    """
    if not isinstance(storage, Storage) or len(size) != len(stride) or len(size) > 32:
        raise UnreadableError("one of its tensors is malformed")
    count = math.prod(map(_count, size))
    last = _count(offset) + sum((n - 1) * _count(s) for n, s in zip(size, stride, strict=True))
    if count > storage.elements or (count and last >= storage.elements):
        raise UnreadableError("one of its tensors reaches outside its storage")
    if count == 0:
        return np.zeros(size, storage.dtype)
    itemsize = storage.dtype.itemsize
    strides = [s * itemsize for s in stride]
    return np.ndarray(size, storage.dtype, storage.data, offset * itemsize, strides)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise UnreadableError("one of its sizes, strides or offsets is no count")
    return value


def _torch_global(module: str, name: str) -> Any:
    if module.split(".")[0] == "__torch__":
        return Attributes
    return _storage_type(module, name) or _INERT.get((module, name))


def _storage_type(module: str, name: str) -> np.dtype | None:
    known = module in ("torch", "torch.cuda") and name in _STORAGES
    return np.dtype(_STORAGES[name]) if known else None


_INERT: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): lambda: {},
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    # Attributes of TorchScript modules other than tensors; `_flatten` leaves them out.
    ("torch.jit._pickle", "build_boollist"): lambda values: values,
    ("torch.jit._pickle", "build_doublelist"): lambda values: values,
    ("torch.jit._pickle", "build_intlist"): lambda values: values,
    ("torch.jit._pickle", "build_tensorlist"): lambda values: values,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, kind: value,
}


def _flatten(tree: Any) -> dict[str, np.ndarray]:
    """Tensors by dotted name. Limited, since a pickle may hold itself, or one part many times."""
    tensors: dict[str, np.ndarray] = {}
    todo: list[tuple[str, Any]] = [("", tree)]
    entries = 0
    while todo:
        name, node = todo.pop()
        if isinstance(node, Attributes):
            node = node.state
        if isinstance(node, dict):
            entries += len(node)
            if entries > MAX_ENTRIES:
                raise UnreadableError(f"it has more than {MAX_ENTRIES} entries")
            for key, child in reversed(node.items()):
                if type(key) is not str or len(name) + len(key) > MAX_NAME:
                    raise UnreadableError("one of its names is no text, or too long")
                todo.append((f"{name}.{key}" if name else key, child))
        elif isinstance(node, np.ndarray | np.generic):
            if name in tensors:
                raise UnreadableError("two of its tensors have one name")
            tensors[name] = np.asarray(node)
    if not tensors:
        raise UnreadableError("it holds no tensor by name")
    return tensors
