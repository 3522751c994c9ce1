"""Restricted readers of weights: a foreign file is data, and nothing in it is executed.

A file's content decides its format, not its name. Files are memory-mapped, and tensors are views of
them.
"""

import contextlib
import hashlib
import json
import math
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import safetensors

from qdgs_jax import files
from qdgs_jax.errors import CheckpointError
from qdgs_jax.models import torch_files
from qdgs_jax.models.foreign import name_format
from qdgs_jax.models.pickles import Attributes, UnreadableError
from qdgs_jax.models.torch_files import Tensor
from qdgs_jax.typing import Array

MAX_ENTRIES = 1 << 17
MAX_NAME = 256
MAX_HEADER = 16 << 20  # bytes before the tensors of a safetensors file
MAX_JSON = 1 << 20  # bytes of a config
MAX_INDEX = 16 << 20  # bytes of an index of shards
MAX_SHARDS = 1 << 10

INDEX = ".index.json"
"""How the name of an index of shards ends, behind that of the file that it stands for."""

Tensors: TypeAlias = dict[str, np.ndarray]

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
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_DTYPES = {np.dtype(kind).name: np.dtype(kind) for kind in _SAFETENSORS_DTYPES.values()}


def read_tensors(path: str | Path) -> Tensors:
    """All tensors of a file, by name; parts of nested names are joined by dots.

    Reads safetensors, files of `torch.save` of any age, TorchScript archives (attributes, not
    code), Flax's msgpack, and Hugging Face's indices of shards. Arrays may be read-only views of
    the file; what is not a tensor, and what numbers name (states of optimizers), is left out.

    Raises:
        CheckpointError: The file is absent, damaged, hostile, or of another format.
    """
    path = Path(path)
    if path.name.endswith(INDEX):
        tensors: Tensors = {}
        for shard, names in _shards(path).items():
            found = read_tensors(shard)
            with explained(shard, "fetch it and its index again"):
                if lacking := names - found.keys():
                    raise UnreadableError(f"it lacks {min(lacking)} of the {path.name}")
            tensors |= {name: found[name] for name in names}
        return tensors
    with explained(path, "fetch it again, or save its tensors as safetensors"):
        data = map_file(path)
        return _flatten(_read(path, data), 2 * len(data))


def existing(name: str) -> Path | None:
    """The path that a user gives, if it is one and something is there."""
    try:
        path = Path(name).expanduser()
        path.stat()
    except (OSError, RuntimeError, ValueError):  # too long, of no user's home, or with a NUL
        return None
    return path


def shown(name: str) -> str:
    """A name that anybody chose, for a sentence: short and on one line."""
    short = name if len(name) <= MAX_NAME else f"{name[:80]} ..."
    return "".join(letter if letter.isprintable() else "?" for letter in short)


def fingerprint(path: Path) -> str:
    """SHA-256 of a file of weights in hex; of those of its shards, where it is their index.

    Raises:
        CheckpointError: A file cannot be read.
    """
    if not path.name.endswith(INDEX):
        return files.sha256(path)
    digests = "".join(files.sha256(shard) for shard in _shards(path))
    return hashlib.sha256(digests.encode()).hexdigest()


def to_device(tensor: np.ndarray) -> Array:
    """A copy as float32, which neither lies in the file nor keeps what was read of it in memory."""
    copy = np.array(tensor, np.float32, order="C")
    base: Any = tensor
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap) and _DONTNEED is not None:
        base.obj.madvise(_DONTNEED)
    return jnp.asarray(copy)


def find_network(tensors: Tensors, *signs: str) -> Tensors:
    """The tensors of one network, by the names that it gives them itself.

    Training checkpoints hold it under a prefix (`state_dict.module.`), beside other networks and
    the states of optimizers; of a network and its moving average (`ema`), the average is taken.
    `torch.compile` adds `_orig_mod.` anywhere.

    Args:
        signs: names of tensors, one of which every network of this kind has, and no other.

    Returns:
        Its tensors; none if there is no such network.
    """
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        plain = tensors
    prefixes = {
        name.removesuffix(sign)
        for name in plain
        for sign in signs
        if name == sign or name.endswith(f".{sign}")
    }
    if not prefixes:
        return {}

    def rank(prefix: str) -> tuple[bool, int, str]:
        return "ema" not in re.split(r"[._]", prefix.lower()), len(prefix), prefix

    best = min(prefixes, key=rank)
    return {
        name.removeprefix(best): tensor for name, tensor in plain.items() if name.startswith(best)
    }


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file of at most `limit` bytes.

    Raises:
        CheckpointError: The file is absent, too large, or holds something else.
    """
    with explained(path, "fetch it again"):
        with files.open_regular(path, limit) as file:
            content = file.read(limit)
        try:
            values = json.loads(content.decode("utf-8-sig"))
            json.dumps(values, ensure_ascii=False).encode()  # halves of surrogate pairs fail
        except (ValueError, RecursionError) as error:
            raise UnreadableError("it is not JSON") from error
        if not isinstance(values, dict):
            raise UnreadableError("it holds no JSON object")
        return values


@contextlib.contextmanager
def explained(path: str | Path, remedy: str) -> Iterator[None]:
    """Replaces any exception of a reader by a CheckpointError of one sentence.

    Args:
        remedy: what helps, unless an UnreadableError knows better.

    Raises:
        CheckpointError: The code inside raised an exception.
    """
    try:
        yield
    except (CheckpointError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except OSError as error:
        reason = error.strerror or "it is damaged"
        raise CheckpointError(f"{path} cannot be read, {reason}: check the path") from error
    except UnreadableError as error:
        remedy = error.remedy or remedy
        raise CheckpointError(f"{path} cannot be read, {error}: {remedy}") from error
    # A hostile file can cause any exception, and Rust's panics are not derived from Exception.
    except BaseException as error:
        raise CheckpointError(f"{path} cannot be read, it is damaged: {remedy}") from error


def map_file(path: Path) -> memoryview:
    """The bytes of a file, which stay on disk until they are used.

    Raises:
        UnreadableError: It is empty.
        OSError: It is absent or no regular file.
    """
    with files.open_regular(path) as file:
        if not file.read(1):
            raise UnreadableError("it is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _read(path: Path, data: memoryview) -> Any:
    """Nested dictionaries of tensors."""
    head = bytes(data[:512])
    if head.startswith(b"PK\x03\x04"):
        return torch_files.read_archive(data)
    if head.startswith(torch_files.LEGACY_START):
        return torch_files.read_legacy(data)
    if head[8:9] == b"{":
        return _read_safetensors(path, data)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UnreadableError("it is a bare pickle, not written by `torch.save`")
    if foreign := name_format(head):
        raise foreign
    if 0x80 < head[0] < 0x90 or head[0] in (0xDE, 0xDF):
        return _read_msgpack(data)
    raise UnreadableError("its format is unknown")


def _read_safetensors(path: Path, data: memoryview) -> Tensors:
    size = 8 + int.from_bytes(data[:8], "little")
    if size > MAX_HEADER:
        raise UnreadableError("it is damaged")
    tensors = {}
    with safetensors.safe_open(path, framework="np") as file:
        for name in file.offset_keys():  # tensors lie one behind another
            described = file.get_slice(name)
            if described.get_dtype() not in _SAFETENSORS_DTYPES:
                raise UnreadableError("it holds numbers of a type that is unsupported")
            dtype = np.dtype(_SAFETENSORS_DTYPES[described.get_dtype()])
            shape = described.get_shape()
            start, size = size, size + math.prod(shape) * dtype.itemsize
            tensors[name] = np.frombuffer(data[start:size], dtype).reshape(shape)
    return tensors


def _read_msgpack(data: memoryview) -> Any:
    """What `flax.serialization` wrote; values other than arrays and numbers become None."""
    entries = 0

    def count(node: Any) -> Any:
        nonlocal entries
        entries += 1 + len(node)
        if entries > MAX_ENTRIES:
            raise UnreadableError(f"it has more than {MAX_ENTRIES} entries")
        return node

    # Containers are counted at their end, and as many may be open as msgpack's stack is deep.
    limits = {"max_map_len": 1 << 12, "max_array_len": 64, "max_str_len": 1 << 16}
    hooks = {"object_hook": count, "list_hook": count}

    def array(kind: int, content: bytes) -> np.ndarray | None:
        if kind not in (1, 3):  # arrays, scalars
            return None
        shape, name, values = msgpack.unpackb(content, raw=True, **hooks, **limits)
        return np.frombuffer(values, _DTYPES[name.decode()]).reshape(shape)

    return msgpack.unpackb(data, ext_hook=array, **hooks, **limits)


def _shards(index: Path) -> dict[Path, set[str]]:
    """The files that an index of shards names, each with the names of its tensors."""
    names = read_json(index, MAX_INDEX).get("weight_map")
    shards: dict[Path, set[str]] = {}
    with explained(index, "fetch it and its shards again"):
        if not isinstance(names, dict) or not 0 < len(names) <= MAX_ENTRIES:
            raise UnreadableError("it has no weight_map of names to files")
        for name, shard in names.items():
            if not isinstance(shard, str) or not re.fullmatch(r"[\w-][\w.-]{,254}", shard, re.A):
                raise UnreadableError("it names a file outside of its folder, or none")
            if shard.endswith(INDEX):
                raise UnreadableError("it names another index")
            shards.setdefault(index.parent / shard, set()).add(name)
        if len(shards) > MAX_SHARDS:
            raise UnreadableError(f"it names more than {MAX_SHARDS} files")
    return shards


def _flatten(tree: Any, limit: int) -> Tensors:
    """Tensors by dotted name. Limited, since a pickle may hold itself, or one part many times.

    Args:
        limit: the most bytes of all tensors together.
    """
    tensors: Tensors = {}
    todo: list[tuple[str, Any]] = [("", tree)]
    entries = total = 0
    while todo:
        name, node = todo.pop()
        if isinstance(node, Attributes):
            node = node.state
        if isinstance(node, dict):
            entries += len(node)
            if entries > MAX_ENTRIES:
                raise UnreadableError(f"it has more than {MAX_ENTRIES} entries")
            for key, child in reversed(node.items()):
                if type(key) is not str:
                    continue
                if len(name) + len(key) > MAX_NAME or not key.isprintable():
                    raise UnreadableError("one of its names is too long, or no plain text")
                todo.append((f"{name}.{key}" if name else key, child))
        elif isinstance(node, Tensor | np.ndarray | np.generic):
            if name in tensors:
                raise UnreadableError("two of its tensors have one name")
            total += node.bytes if isinstance(node, Tensor) else node.nbytes
            if total > limit:
                raise UnreadableError("its tensors claim more bytes than it has")
            tensors[name] = node.array() if isinstance(node, Tensor) else np.asarray(node)
    if not tensors:
        raise UnreadableError(
            "it holds no tensor by name",
            "save `model.state_dict()`, which has names, and give that",
        )
    return tensors
