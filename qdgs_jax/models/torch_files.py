"""Files of `torch.save`, read as data: zip archives, and the streams of PyTorch before 1.6.

Nothing in them is executed: `pickles` runs the pickled parts, with tensors, their storages, modules
of TorchScript as bare attributes, and objects of configs and numbers as nothing at all.
"""

import dataclasses
import functools
import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from qdgs_jax.models.pickles import Attributes, Buffer, UnreadableError, unpickle, unpickle_next

MAX_PICKLE = 8 << 20  # bytes, without the tensors; known models need less than one MiB
MAX_DIRECTORY = 4 << 20  # bytes of an archive's table of contents: 80,000 members
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."

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


@dataclasses.dataclass(eq=False)
class Storage:
    """The flat buffer that tensors are views of."""

    dtype: np.dtype
    elements: int
    read: Callable[[], Buffer] | None = None
    """Returns it; None until it is found, which some files have behind their tensors."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage that stays within it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize

    def array(self) -> np.ndarray:
        """Read-only, without a copy."""
        dtype, read = self.storage.dtype, self.storage.read
        if 0 in self.size:
            return np.zeros(self.size, dtype)
        strides = [step * dtype.itemsize for step in self.stride]
        assert read is not None, "readers return tensors whose storages are found"
        return np.ndarray(self.size, dtype, read(), self.offset * dtype.itemsize, strides)


def read_archive(data: memoryview) -> Any:
    """What a zip archive of `torch.save` or TorchScript holds, with `Tensor` for tensors.

    Raises:
        UnreadableError: It is damaged, hostile, or another archive.
        Exception: Any other, where it is malformed.
    """
    with zipfile.ZipFile(_Window(data)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        root = _root(archive.infolist(), len(data))
    order = members.get(f"{root}byteorder")
    if order and order.file_size < 99 and _content(data, order) != b"little":
        raise UnreadableError("its byte order is not little-endian")
    if members[f"{root}data.pkl"].file_size > MAX_PICKLE:
        raise UnreadableError(f"its pickle is larger than {MAX_PICKLE} bytes")
    read = functools.cache(lambda name: _content(data, members[name]))

    def storage(kind: Any, dtype: Any, key: Any, device: Any, count: Any, *_: Any) -> Storage:
        if not isinstance(dtype, np.dtype) or type(key) is not str:
            raise UnreadableError("one of its storages is malformed")
        member = members.get(f"{root}data/{key}")
        if member is None or _count(count) * dtype.itemsize > member.file_size:
            raise UnreadableError(f"its storage {key[:80]!r} is shorter than claimed")
        return Storage(dtype, count, functools.partial(read, member.filename))

    return unpickle(_content(data, members[f"{root}data.pkl"]), _torch_global, storage)


def _root(infos: list[zipfile.ZipInfo], file_size: int) -> str:
    """The top folder of a PyTorch archive."""
    names = {info.filename for info in infos}
    if len(names) != len(infos):
        raise UnreadableError("two of its members have one name")
    roots = [name[:-8] for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if names and all(name.endswith(".npy") for name in names):
        raise UnreadableError("it is an archive of NumPy's", "save its arrays as safetensors")
    if len(roots) != 1:
        raise UnreadableError(
            "it is a zip archive, but not PyTorch's", "unpack it if it holds the file of weights"
        )
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise UnreadableError("it is compressed, which PyTorch's files never are")
        if info.compress_size != info.file_size:
            raise UnreadableError("one of its members has two sizes")
    if sum(info.file_size for info in infos) > file_size:
        raise UnreadableError("its members claim more bytes than it has")
    return roots[0]


def _content(data: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of a member, without a copy."""
    start = info.header_offset
    if start < 0 or data[start : start + 4] != b"PK\x03\x04":
        raise UnreadableError("one of its members is damaged")
    start += 30 + sum(struct.unpack_from("<HH", data, start + 26))  # name and extra fields
    content = data[start : start + info.file_size]
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise UnreadableError("one of its members is damaged")
    return content


class _Window(io.RawIOBase):
    """Mapped memory as a file, of which no more is read at once than a table of contents."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._place = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        place = offset + (0, self._place, len(self._data))[whence]
        if place < 0:
            raise OSError("it ends too early")
        self._place = place
        return place

    def read(self, size: int | None = -1) -> bytes:
        left = max(len(self._data) - self._place, 0)
        size = left if size is None or size < 0 else min(size, left)
        if size > MAX_DIRECTORY:
            raise UnreadableError(f"its table of contents is larger than {MAX_DIRECTORY} bytes")
        content = bytes(self._data[self._place : self._place + size])
        self._place += size
        return content


def read_legacy(
    data: Buffer,
    find_global: Callable[[str, str], Any] | None = None,
    *,
    limit: int | None = None,
) -> Any:
    """What a stream of `torch.save` before PyTorch 1.6 holds, with `Tensor` for tensors.

    Five pickles (magic number, version, sizes of types, the object, keys of its storages), then for
    each key the number of elements and the elements.

    Args:
        data: The whole stream.
        find_global: What its object may name; what archives may, by default.
        limit: The most opcodes of a pickle.

    Raises:
        UnreadableError: It is damaged, hostile, or of another format.
        Exception: Any other, where it is malformed.
    """
    data = memoryview(data)
    storages: dict[str, Storage] = {}
    find_global = find_global or _torch_global

    def claimed(kind: Any, dtype: Any, key: Any, device: Any, count: Any, view: Any) -> Storage:
        if not isinstance(dtype, np.dtype) or type(key) is not str or view is not None:
            raise UnreadableError("one of its storages is malformed")
        storage = storages.setdefault(key, Storage(dtype, _count(count)))
        if (storage.dtype, storage.elements) != (dtype, count):
            raise UnreadableError("one of its storages is malformed")
        return storage

    values, place = [], 0
    for _ in range(5):
        value, place = unpickle_next(data, place, find_global, claimed, limit=limit)
        values.append(value)
    magic, version, system, tree, keys = values
    if (magic, version, system["little_endian"]) != (LEGACY_MAGIC, LEGACY_VERSION, True):
        raise UnreadableError("its format is another one of PyTorch's")
    if type(keys) is not list or len(keys) != len(storages):
        raise UnreadableError("its storages are not those of its tensors")
    for key in keys:
        storage = storages[key]
        (count,) = struct.unpack_from("<Q", data, place)
        place += 8
        end = place + storage.elements * storage.dtype.itemsize
        if count != storage.elements or end > len(data) or storage.read is not None:
            raise UnreadableError("one of its storages is not of the claimed size")
        storage.read, place = functools.partial(_slice, data, place, end), end
    if place != len(data):
        raise UnreadableError("its storages are not of the claimed size")
    return tree


def _slice(data: memoryview, start: int, end: int) -> memoryview:
    return data[start:end]


def rebuild_tensor(
    storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """What `torch._utils._rebuild_tensor_v2` describes.

    Raises:
        ValueError: The view leaves the storage, or repeats its elements.
    """
    if not isinstance(storage, Storage) or len(size) != len(stride) or len(size) > 32:
        raise UnreadableError("one of its tensors is malformed")
    count = math.prod(map(_count, size))
    last = _count(offset) + sum((n - 1) * _count(s) for n, s in zip(size, stride, strict=True))
    if count > storage.elements or (count and last >= storage.elements):
        raise UnreadableError("one of its tensors reaches outside its storage")
    return Tensor(storage, offset, tuple(size), tuple(stride))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise UnreadableError("one of its sizes, strides or offsets is no count")
    return value


def _torch_global(module: str, name: str) -> Any:
    known = storage_type(module, name) or _INERT.get((module, name))
    if known is not None:
        return known
    top, plain = module.split(".")[0], _PLAIN.get(module, ())
    if top in _DATA or name in plain:
        return Attributes
    refuse_class(module, name)
    return None


def refuse_class(module: str, name: str) -> None:
    """Says what helps where a pickle holds objects of a class of somebody's own.

    Raises:
        UnreadableError: This is no module of Python itself.
    """
    top = module.split(".")[0]
    if top not in sys.stdlib_module_names and top not in ("__builtin__", "copy_reg"):
        raise UnreadableError(
            f"it holds an object of the class {f'{module}.{name}'[:80]!a}, whose code would have "
            "to be run",
            "where that code is at hand, save the weights alone, "
            "`torch.save(model.state_dict(), FILE)`, and give that file",
        )


def storage_type(module: str, name: str) -> np.dtype | None:
    """The elements of a storage, None for any other global."""
    known = module in ("torch", "torch.cuda") and name in _STORAGES
    return np.dtype(_STORAGES[name]) if known else None


_DATA = frozenset(
    ("__torch__", "addict", "argparse", "datetime", "easydict", "ml_collections", "numpy",
     "omegaconf", "pathlib", "yacs")
)  # fmt: skip
"""Packages whose objects in training checkpoints are configs, numbers, paths and times."""

_TYPES = frozenset(
    ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long",
     "object", "range", "set", "slice", "str", "tuple", "unicode")
)  # fmt: skip
_PLAIN = {
    "builtins": _TYPES,
    "__builtin__": _TYPES,  # as protocol 2 has it
    "_codecs": ("encode",),  # bytes, in protocol 2
    "collections": ("Counter", "deque"),
    "copyreg": ("_reconstructor",),
    "copy_reg": ("_reconstructor",),
    "types": ("SimpleNamespace",),
    "torch": (
        "Size", "Tensor", "device", "bfloat16", "bool", "float16", "float32", "float64", "int16",
        "int32", "int64", "int8", "uint8", "strided", "contiguous_format",
    ),
    "torch.nn.parameter": ("Parameter",),
}  # fmt: skip
"""Module -> names in it that are inert in training checkpoints."""

_INERT: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "defaultdict"): lambda *_: {},
    ("collections", "OrderedDict"): lambda *_: {},
    ("torch._tensor", "_rebuild_from_type_v2"): lambda rebuild, kind, values, state: rebuild(
        *values
    ),
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    # Attributes of TorchScript modules other than tensors.
    ("torch.jit._pickle", "build_boollist"): lambda values: values,
    ("torch.jit._pickle", "build_doublelist"): lambda values: values,
    ("torch.jit._pickle", "build_intlist"): lambda values: values,
    ("torch.jit._pickle", "build_tensorlist"): lambda values: values,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, kind: value,
}
