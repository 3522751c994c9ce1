"""Hostile pickles, made by hand: none is executed, none exhausts time or memory."""

import mmap
import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from qdgs_jax.models import pickles
from qdgs_jax.models.pickles import Attributes, UnreadableError, unpickle, unpickle_next

START = b"\x80\x02"
CALLED: list[Any] = []
HARMLESS = {("fine", "call"): lambda *arguments: CALLED.append(arguments) or arguments}


def find(module: str, name: str) -> Any:
    return HARMLESS.get((module, name))


def text(value: str) -> bytes:
    return b"\x8c" + struct.pack("<B", len(value)) + value.encode()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_pickle_writes(protocol: int) -> None:
    value = {
        "numbers": [0, 255, 65535, -1, 2**40, 2**2100, 0.5],
        "constants": (None, True, False),
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "strings": ["", "x" * 300, "ü", b"\x00" * 300, b""] if protocol > 2 else ["ü"],
        "nested": {"a": {"b": []}},
        **({"empty set": set()} if protocol > 3 else {}),
        **{f"key{i}": [i] * 3 for i in range(300)},
    }
    value["again"] = value["nested"]
    loaded = unpickle(pickle.dumps(value, protocol), find)
    assert loaded == {**value, **({"empty set": []} if protocol > 3 else {})}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("copyreg", "_reconstructor"),
        ("fine", "call.__globals__"),
        ("fine", "os.system"),
        ("fine.call", "__class__"),
    ],
)
@pytest.mark.parametrize("by_stack", [False, True])
def test_no_other_global_is_found(tmp_path: Path, module: str, name: str, by_stack: bool) -> None:
    argument = text(f"touch {tmp_path / 'executed'}")
    named = f"c{module}\n{name}\n".encode()
    function = text(module) + text(name) + b"\x93" if by_stack else named
    with pytest.raises(UnreadableError, match="asks for"):
        unpickle(b"\x80\x04" + function + argument + b"\x85R.", find)
    assert not os.listdir(tmp_path)


def nested_tuples(depth: int) -> bytes:
    """The tuple (t, t) of the tuple (t, t) of ...: its hash and its text take 2^depth steps."""
    return START + b")" + b"q\x00h\x00\x86" * depth


HOSTILE = {
    "nothing": b"",
    "no stop": START + b"N",
    "two values": START + b"NN.",
    "open mark": START + b"(N.",
    "empty stack": START + b".",
    "trailing bytes": START + b"N.N",
    "pop from nothing": START + b"\x86.",
    "tuple without mark": START + b"t.",
    "unset memo": START + b"h\x07.",
    "memo of nothing": START + b"q\x00.",
    "call of a constant": START + b"N)R.",
    "call of text": START + text("os.system") + b")R.",
    "arguments that are no tuple": START + b"cfine\ncall\n]R.",
    "list as a dictionary": START + b"]" + text("a") + b"Ns.",
    "text as a list": START + text("a") + b"Na.",
    "odd dictionary": START + b"}(" + text("a") + b"u.",
    "tuple as a global": b"\x80\x04" + nested_tuples(60)[2:] + text("a") + b"\x93.",
    "text beyond the end": START + b"\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "text larger than any": START + b"\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"x.",
    "bytes beyond the end": START + b"\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N",
    "number beyond the end": START + b"\x8b" + struct.pack("<i", 1 << 30) + b"x.",
    "number of negative size": START + b"\x8b" + struct.pack("<i", -1) + b"x.",
    "persistent id by text": START + b"Pos.system\n.",
    "unknown opcode": START + b"\xff.",
    "instance": START + b"(ios\nsystem\n.",
    "object": START + b"(cos\nsystem\no.",
    "extension": START + b"\x82\x01.",
    "byte array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b".",
    "not ascii": START + b"c\xff\xfe\nx\n)R.",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_malformed(data: bytes) -> None:
    CALLED.clear()
    with pytest.raises(Exception):  # noqa: B017, PT011  # any: the callers turn all into one
        unpickle(data, find)
    assert not CALLED


def test_memo_is_as_large_as_its_use() -> None:
    # pickle.Unpickler allocates one slot for every smaller number: 16 GiB here.
    far = struct.pack("<I", (1 << 31) - 1)
    assert unpickle(START + b"Nr" + far + b"j" + far + b"\x86.", find) == (None, None)


def test_depth_costs_no_recursion() -> None:
    value = unpickle(START + b")" + b"\x85" * 100_000 + b".", find)
    for _ in range(100_000):
        (value,) = value
    assert value == ()


def test_state_is_kept_only_by_attributes() -> None:
    HARMLESS["fine", "thing"] = Attributes
    state = b"}" + text("x") + b"K\x01s"
    thing = unpickle(START + b"cfine\nthing\n)\x81" + state + b"b.", find)
    assert type(thing) is Attributes
    assert thing.state == {"x": 1}
    assert unpickle(START + b"}" + state + b"b.", find) == {}
    listed = b"cfine\nthing\nK\x01\x85\x81(K\x01K\x02e(" + text("x") + b"K\x01u."
    assert unpickle(START + listed, find).state is None  # a class of lists, or of dictionaries


def test_persistent_ids_are_given_as_arguments() -> None:
    data = START + b"(" + text("storage") + b"K\x05tQ."
    assert unpickle(data, find, lambda *arguments: list(arguments)) == ["storage", 5]
    with pytest.raises(UnreadableError):
        unpickle(data, find)


def test_names_are_texts_and_counts() -> None:
    # Tuples take 2^60 steps to be hashed, and large numbers may share one hash.
    for key in (
        nested_tuples(60)[2:],
        b"\x8a\x08" + bytes(7) + b"\x40",
        b"J\xff\xff\xff\xff",
        b"N",
    ):
        assert unpickle(START + b"}(" + key + b"NK\x01K\x02" + text("a") + b"Nu.", find) == {
            1: 2,
            "a": None,
        }


def test_one_pickle_after_another() -> None:
    content = START + b"K\x01." + START + b"K\x02.rest"
    assert unpickle_next(content, 0, find) == (1, 5)
    assert unpickle_next(content, 5, find) == (2, 10)


def test_work_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_OPCODES", 100)
    assert len(unpickle(START + b"]" + b"Na" * 48 + b".", find)) == 48
    with pytest.raises(UnreadableError, match="more than 100 opcodes"):
        unpickle(START + b"]" + b"Na" * 49 + b".", find)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"c", "too long"),
        (b"cos\n", "too long"),
        (b"\x8e" + struct.pack("<Q", 7 << 30), "opcode"),  # bytes that are there
        (b"\x8e" + struct.pack("<Q", 9 << 30), "too long"),
        (b"\x8d" + struct.pack("<Q", 7 << 30), "too long"),
        (b"X" + struct.pack("<I", (1 << 32) - 1), "too long"),
        (b"\x8b" + struct.pack("<i", (1 << 31) - 1), "too long"),
        (b"\x95" + struct.pack("<Q", 7 << 30), "opcode"),
        (b"\x96" + struct.pack("<Q", 7 << 30), "BYTEARRAY8"),
        (b"P", "PERSID"),
        (b"V", "UNICODE"),
    ],
)
def test_claims_cost_no_memory(tmp_path: Path, head: bytes, reason: str) -> None:
    """A file of 8 GiB, most of it not even on the disk, is read where it lies."""
    path = tmp_path / "x"
    path.write_bytes(b"\x80\x05" + head)
    os.truncate(path, 8 << 30)
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=reason):
        unpickle(data, find)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_texts_are_limited_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_TEXT", 100)
    assert unpickle(START + b"]" + (text("x" * 22) + b"a") * 4 + b".", find) == ["x" * 22] * 4
    with pytest.raises(UnreadableError, match="more than 100 bytes of text"):
        unpickle(START + b"]" + (text("x" * 22) + b"a") * 5 + b".", find)
