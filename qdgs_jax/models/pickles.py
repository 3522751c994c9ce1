"""Pickles read as data: a stack machine with the opcodes that weights need, and without imports.

`pickle.Unpickler` with an allow-list is not enough against hostile files: claimed sizes are
allocated before they are checked, and hashing nested tuples takes exponential time.
"""

import io
import pickletools
from collections.abc import Callable
from typing import IO, Any

MAX_OPCODES = 1 << 21
"""Most opcodes of one pickle, read in a few seconds; known models have less than 2^16."""


class UnreadableError(ValueError):
    """Why a file cannot be read; its text is the middle of a sentence."""


class Attributes:
    """An object without its class: only the state that its pickle sets."""

    state: Any = None


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # stays empty: ADDITEMS is refused
}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
_STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_LITERALS = frozenset(_NUMBERS + _STRINGS + _BYTES)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def unpickle(
    data: bytes,
    find_global: Callable[[str, str], Any],
    find_persistent: Callable[..., Any] | None = None,
) -> Any:
    """Run one whole pickle on inert values.

    Dictionaries hold only text as keys. State set on anything but `Attributes` is dropped.

    Args:
        data: One pickle, of protocol 2 to 5, and nothing after it.
        find_global: See `unpickle_next`.
        find_persistent: See `unpickle_next`.

    Raises:
        UnreadableError: It asks for an unlisted global or opcode, or has a wrong end.
        Exception: Any other, where it is malformed.
    """
    file = io.BytesIO(data)
    value = unpickle_next(file, find_global, find_persistent)
    if file.read(1):
        raise UnreadableError("its pickle has a wrong end")
    return value


def unpickle_next(
    file: IO[bytes],
    find_global: Callable[[str, str], Any],
    find_persistent: Callable[..., Any] | None = None,
) -> Any:
    """Run the pickle that starts here in a file, up to its end.

    Args:
        file: In memory or memory-mapped, so that reading a claimed size allocates nothing.
        find_global: (module, name) -> the replacement of that global, or None to refuse it. The
            pickle may call a function found here with arguments of its choice.
        find_persistent: A persistent id, as arguments -> its replacement.

    Raises:
        UnreadableError: It asks for an unlisted global or opcode, or has a wrong end.
        Exception: Any other, where it is malformed.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under the open marks
    memo: dict[int, Any] = {}
    opcodes = enumerate[tuple[Any, Any, Any]](pickletools.genops(file))
    for number, (opcode, argument, _) in opcodes:
        if number == MAX_OPCODES:
            raise UnreadableError(f"its pickle has more than {MAX_OPCODES} opcodes")
        match opcode.name:
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
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
            case name if name in _TUPLES:
                stack.append(tuple(_pop(stack, _TUPLES[name])))
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "APPENDS":
                items, stack = stack, below.pop()
                _extend(stack[-1], items)
            case "SETITEM":
                items = _pop(stack, 2)
                _update(stack[-1], items)
            case "SETITEMS":
                items, stack = stack, below.pop()
                _update(stack[-1], items)
            case "GLOBAL":
                stack.append(_find(find_global, *argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_find(find_global, *_pop(stack, 2)))
            case "REDUCE" | "NEWOBJ":
                stack.append(_call(*_pop(stack, 2)))
            case "BINPERSID":
                stack.append(_call(find_persistent, stack.pop()))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case "STOP":
                if len(stack) == 1 and not below:
                    return stack[0]
                raise UnreadableError("its pickle has a wrong end")
            case name if name not in ("PROTO", "FRAME"):
                raise UnreadableError(f"its pickle uses {name}, which weights do not need")
    raise AssertionError("genops yields STOP last or raises")


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
    if type(target) is not list:
        raise UnreadableError("its pickle is malformed")
    target.extend(items)


def _update(target: Any, items: list[Any]) -> None:
    if type(target) is not dict:
        raise UnreadableError("its pickle is malformed")
    if not all(type(key) is str for key in items[::2]):
        raise UnreadableError("one of its names is no text")
    target.update(zip(items[::2], items[1::2], strict=True))


def _find(find_global: Callable[[str, str], Any], module: Any, name: Any) -> Any:
    if type(module) is not str or type(name) is not str:
        raise UnreadableError("its pickle is malformed")
    found = find_global(module, name)
    if found is None:
        raise UnreadableError(f"it asks for {f'{module}.{name}'[:80]!r}, which weights do not need")
    return found


def _call(function: Any, arguments: Any) -> Any:
    if type(arguments) is not tuple or not callable(function):
        raise UnreadableError("its pickle is malformed")
    return function(*arguments)
