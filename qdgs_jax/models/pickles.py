"""Pickles read as data: a stack machine with the opcodes that weights need, and without imports.

`pickle.Unpickler` with an allow-list is not enough against hostile files: claimed sizes are
allocated before they are checked, and hashing nested tuples takes exponential time.
"""

import pickletools
import struct
from collections.abc import Callable, Iterator, Set
from typing import Any, NamedTuple, TypeAlias

MAX_OPCODES = 1 << 21
"""Most opcodes of one pickle, read in a few seconds; known models have less than 2^16."""

MAX_TEXT = 32 << 20
"""Bytes of all texts of one pickle; NVIDIA's hold the source of their classes."""

MAX_LINE = 1 << 10
MAX_NUMBER = 1 << 10  # bytes
MAX_KEY = 1 << 31  # larger ones may share one hash, and then slow dictionaries down

Buffer: TypeAlias = bytes | memoryview


class UnreadableError(ValueError):
    """Why a file cannot be read; its text is the middle of a sentence.

    Args:
        reason: What is wrong.
        remedy: What helps, where it is not what helps against damage.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


class Attributes:
    """An object without its class: only the state that its pickle sets."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        """Takes any arguments, and drops them."""


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # stays empty: ADDITEMS is refused
}
_NUMBERS = {"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d"}
_LONGS = {"LONG1": "<B", "LONG4": "<i"}
_STRINGS = {
    "BINUNICODE": "<I", "SHORT_BINUNICODE": "<B", "BINUNICODE8": "<Q",
    "BINSTRING": "<i", "SHORT_BINSTRING": "<B",  # of Python 2
}  # fmt: skip
_OF_PYTHON_2 = frozenset(("BINSTRING", "SHORT_BINSTRING"))
_BYTES = {"BINBYTES": "<I", "SHORT_BINBYTES": "<B", "BINBYTES8": "<Q"}
_PLACES = {"BINPUT": "<B", "LONG_BINPUT": "<I", "BINGET": "<B", "LONG_BINGET": "<I"}
_IGNORED = {"PROTO": "<B", "FRAME": "<Q"}
_LITERALS = frozenset(_NUMBERS | _LONGS | _STRINGS | _BYTES)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def unpickle(
    data: Buffer,
    find_global: Callable[[str, str], Any],
    find_persistent: Callable[..., Any] | None = None,
    *,
    texts_as_bytes: bool = False,
) -> Any:
    """Run one whole pickle on inert values.

    Dictionaries hold only texts and counts as keys; items under others are dropped. Bytes are views
    of `data`. State set on anything but `Attributes` is dropped.

    Args:
        data: One pickle, of protocol 2 to 5, and nothing after it.
        find_global: See `unpickle_next`.
        find_persistent: See `unpickle_next`.
        texts_as_bytes: See `unpickle_next`.

    Raises:
        UnreadableError: It asks for an unlisted global or opcode, is too large, or has a wrong end.
        Exception: Any other, where it is malformed.
    """
    value, end = unpickle_next(data, 0, find_global, find_persistent, texts_as_bytes=texts_as_bytes)
    if end != len(data):
        raise UnreadableError("its pickle has a wrong end")
    return value


def unpickle_next(
    data: Buffer,
    start: int,
    find_global: Callable[[str, str], Any],
    find_persistent: Callable[..., Any] | None = None,
    *,
    limit: int | None = None,
    texts_as_bytes: bool = False,
) -> tuple[Any, int]:
    """Run the pickle that starts at `data[start]`, up to its end.

    Args:
        data: In memory, or memory-mapped.
        find_global: (module, name) -> the replacement of that global, or None to refuse it. The
            pickle may call a function found here with arguments of its choice.
        find_persistent: A persistent id, as arguments -> its replacement.
        limit: The most opcodes that it may have; MAX_OPCODES by default.
        texts_as_bytes: Whether the texts of Python 2 are bytes rather than UTF-8.

    Returns:
        Its value, and where it ends.

    Raises:
        UnreadableError: It asks for an unlisted global or opcode, is too large, or has a wrong end.
        Exception: Any other, where it is malformed.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under the open marks
    memo: dict[int, Any] = {}
    texts = _STRINGS.keys() - _OF_PYTHON_2 if texts_as_bytes else _STRINGS.keys()
    for name, argument, place in _opcodes(memoryview(data), start, limit or MAX_OPCODES, texts):
        match name:
            case _ if name in _LITERALS:
                stack.append(argument)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, below.pop()
                stack.append(tuple(items))
            case _ if name in _TUPLES:
                stack.append(tuple(_pop(stack, _TUPLES[name])))
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS":
                items, stack = stack, below.pop()
                _extend(stack[-1], items)
            case "SETITEM":
                _update(stack[-3], _pop(stack, 2))
            case "SETITEMS":
                items, stack = stack, below.pop()
                _update(stack[-1], items)
            case "GLOBAL":
                stack.append(_find(find_global, *argument))
            case "STACK_GLOBAL":
                stack.append(_find(find_global, *_pop(stack, 2)))
            case "REDUCE" | "NEWOBJ":
                stack.append(_call(*_pop(stack, 2)))
            case "BINPERSID":
                stack.append(_call(find_persistent, stack.pop()))
            case "BUILD":
                _build(stack[-2], stack.pop())
            case "STOP":
                if len(stack) == 1 and not below:
                    return stack[0], place
                raise UnreadableError("its pickle has a wrong end")
    raise AssertionError("opcodes end with STOP or raise")


class _Opcode(NamedTuple):
    name: str
    argument: Any
    end: int
    """Where the next one starts."""


def _opcodes(data: memoryview, place: int, limit: int, texts: Set[str]) -> Iterator[_Opcode]:
    """Opcodes up to STOP. Each argument is checked before anything is allocated for it.

    Args:
        texts: those whose arguments are decoded.
    """
    total = 0
    for _ in range(limit):
        if place >= len(data):
            raise UnreadableError("its pickle ends too early")
        name = _NAMES.get(data[place], "")
        if name not in _KNOWN:
            unknown = name or "an unknown opcode"
            raise UnreadableError(f"its pickle uses {unknown}, which plain data do not need")
        opcode = _Opcode(name, *_argument(name, data, place + 1, texts))
        if name in texts:
            total += opcode.end - place
            if total > MAX_TEXT:
                raise UnreadableError(f"its pickle holds more than {MAX_TEXT} bytes of text")
        yield opcode
        if name == "STOP":
            return
        place = opcode.end
    raise UnreadableError(f"its pickle has more than {limit} opcodes")


def _argument(name: str, data: memoryview, place: int, texts: Set[str]) -> tuple[Any, int]:
    """The argument of an opcode, and where it ends."""
    if name == "GLOBAL":
        *lines, _ = bytes(data[place : place + MAX_LINE]).split(b"\n", 2)
        if len(lines) != 2:
            raise UnreadableError("one of its names is too long")
        module, called = (line.decode("ascii") for line in lines)
        return (module, called), place + len(lines[0]) + len(lines[1]) + 2
    if form := _PLAIN.get(name):
        return struct.unpack_from(form, data, place)[0], place + struct.calcsize(form)
    if form := _SIZED.get(name):
        size, place = struct.unpack_from(form, data, place)[0], place + struct.calcsize(form)
        limit = MAX_NUMBER if name in _LONGS else MAX_TEXT if name in texts else len(data)
        if not 0 <= size <= min(limit, len(data) - place):
            raise UnreadableError("one of its values is too long")
        content = data[place : place + size]
        if name in _LONGS:
            return int.from_bytes(content, "little", signed=True), place + size
        return str(content, "utf-8") if name in texts else content, place + size
    return None, place


_PLAIN = _NUMBERS | _PLACES | _IGNORED
_SIZED = _LONGS | _STRINGS | _BYTES
_BARE = (
    "MEMOIZE", "MARK", "TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL",
    "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BINPERSID", "BUILD", "STOP",
)  # fmt: skip
_KNOWN = frozenset((*_PLAIN, *_SIZED, *_BARE, *_CONSTANTS, *_TUPLES))
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


def _build(target: Any, state: Any) -> None:
    if isinstance(target, Attributes):
        target.state = state


def _pop(stack: list[Any], n: int) -> list[Any]:
    if len(stack) < n:
        raise UnreadableError("its pickle is malformed")
    items = stack[-n:]
    del stack[-n:]
    return items


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, Attributes):  # of a class of lists
        return
    if type(target) is not list:
        raise UnreadableError("its pickle is malformed")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    if isinstance(target, Attributes):  # of a class of dictionaries
        return
    if type(target) is not dict:
        raise UnreadableError("its pickle is malformed")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is str or (type(key) is int and 0 <= key < MAX_KEY):
            target[key] = value


def _find(find_global: Callable[[str, str], Any], module: Any, name: Any) -> Any:
    if type(module) is not str or type(name) is not str:
        raise UnreadableError("its pickle is malformed")
    found = find_global(module, name)
    if found is None:
        raise UnreadableError(
            f"it asks for {f'{module}.{name}'[:80]!r}, which plain data do not need"
        )
    return found


def _call(function: Any, arguments: Any) -> Any:
    if type(arguments) is not tuple or not callable(function):
        raise UnreadableError("its pickle is malformed")
    return function(*arguments)
