"""What devices exchange in a compiled program, read from its text.

`compiled.as_text()` is XLA's HLO: computations of one instruction a line. Collectives are counted
by `channel_id`, as the text may repeat one, and both branches of a `cond` are counted, so that the
figures are upper bounds.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_CALLED = re.compile(r"[ {,](?:calls|to_apply|condition|\w+_computation)=%?([\w.-]+)")
_LISTED = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")
_BODY = re.compile(r" body=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
        kind: one of `KINDS`.
        bytes: of its result, on one device.
        depth: loops that it stands in; in `search.run` 1 is a generation, and 2 or more are loops
            within one, such as those over chunks.
        source: name of the JAX operation that it was made for.
    """

    kind: str
    bytes: int
    depth: int
    source: str


@dataclass(frozen=True)
class Loop:
    """One `while`.

    Attributes:
        trips: its known number of iterations, None if it is not known.
        depth: loops that it stands in.
        products: whether it multiplies matrices or convolves, as loops over chunks do.
    """

    trips: int | None
    depth: int
    products: bool


@dataclass(frozen=True)
class Program:
    """Collectives and loops of a compiled program."""

    collectives: tuple[Collective, ...]
    loops: tuple[Loop, ...]

    def generation(self) -> tuple[Collective, ...]:
        """Collectives of one iteration of the outermost loop, those of inner loops included."""
        return tuple(each for each in self.collectives if each.depth)

    def inner(self) -> tuple[Collective, ...]:
        """Collectives in loops within a generation."""
        return tuple(each for each in self.collectives if each.depth > 1)

    def chunk_loops(self) -> tuple[Loop, ...]:
        """Loops within a generation that multiply matrices or convolve."""
        return tuple(each for each in self.loops if each.depth and each.products)


def read(text: str) -> Program:
    """The collectives and loops of `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, list[tuple[str, str]]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (instruction := _INSTRUCTION.match(line)):
            current.append((instruction[1], instruction[2]))
    if entry is None:
        raise ValueError("the text is no HLO module: it has no ENTRY")
    collectives, loops = {}, []
    for name, shape, operation, rest, depth in _walk(computations, entry, 0):
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            channel = re.search(r"channel_id=(\d+)", rest)
            source = re.search(r'op_name="([^"]*)"', rest)
            if operation in ("all-gather-start", "collective-permute-start"):
                shape = _elements(shape)[1]  # the first are its operands
            collectives[channel[1] if channel else name] = Collective(
                kind, _bytes(shape), depth, source[1] if source else ""
            )
        elif operation == "while" and (body := _BODY.search(rest)):
            trips = _TRIPS.search(rest)
            inside = {each[2] for each in _walk(computations, body[1], 0)}
            loops.append(
                Loop(int(trips[1]) if trips else None, depth, bool({"dot", "convolution"} & inside))
            )
    return Program(tuple(collectives.values()), tuple(loops))


def _walk(
    computations: dict[str, list[tuple[str, str]]], name: str, depth: int
) -> Iterator[tuple[str, str, str, str, int]]:
    """Name, shape, operation, the rest of its line and depth of each instruction that is run."""
    for instruction, text in computations[name]:
        shape, operation, rest = _split(text)
        yield instruction, shape, operation, rest, depth
        called = _CALLED.findall(rest) + _BODY.findall(rest)
        for names in _LISTED.findall(rest):
            called += [each.strip().lstrip("%") for each in names.split(",")]
        for each in called:
            yield from _walk(computations, each, depth + (operation == "while"))


def _split(text: str) -> tuple[str, str, str]:
    """'(f32[2], f32[2]) all-to-all(%a, %b), ...' -> shape, operation, the rest."""
    end = len(_outer(text)) if text.startswith("(") else 0
    space = text.find(" ", end)
    operation, _, rest = text[space + 1 :].partition("(")
    return text[:space], operation, rest


def _outer(text: str) -> str:
    """The text up to the end of its first parenthesis."""
    nested = 0
    for end, character in enumerate(text, 1):
        nested += (character == "(") - (character == ")")
        if not nested:
            return text[:end]
    return text


def _elements(shape: str) -> list[str]:
    """'(f32[2]{0:T(8)}, (f32[4], s32[]))' -> what stands between its outer commas."""
    nested, elements = 0, [""]
    for character in shape[1:-1]:
        nested += (character in "([{") - (character in ")]}")
        if character == "," and not nested:
            elements.append("")
        else:
            elements[-1] += character
    return elements


def _bytes(shape: str) -> int:
    """Bytes of 'f32[2,3]{1,0}', or of all in a tuple."""
    total = 0
    for kind, bits, axes in _ARRAY.findall(shape):
        size = 8 if kind == "pred" else int(bits or 0)
        for axis in filter(None, axes.split(",")):
            size *= int(axis)
        total += -(-size // 8)
    return total
