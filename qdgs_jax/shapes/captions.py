"""Captions of drawings and scenes: the texts that the shapes CLIP is trained on."""

import itertools
from typing import NamedTuple, TypeAlias

from qdgs_jax.shapes.drawings import COLOURS, SHAPES

ATTRIBUTES = {
    "shape": (*SHAPES, "none"),
    "colour": tuple(COLOURS),
    "edges": ("crisp", "soft"),
    "size": ("small", "medium", "large"),
    "across": ("left", "middle", "right"),
    "down": ("top", "middle", "bottom"),
}
"""The attributes that captions describe, and their values."""

Allows: TypeAlias = dict[str, tuple[str, ...]]
"""For each attribute that a text describes, the values of which the text is true."""
Phrases: TypeAlias = dict[str, Allows]


class Caption(NamedTuple):
    """A text, without article and full stop, and its meaning."""

    text: str
    allows: Allows


SENTENCES = (
    "{text}", "{a} {text}", "{a} {text}.", "an image of {a} {text}.", "a drawing of {a} {text}",
    "a picture of {a} {text}.", "a photo of {a} {text}",
)  # fmt: skip


def sentence(caption: Caption, template: str) -> str:
    """A caption in one of `SENTENCES`."""
    first = caption.text.split()[0]
    article = "" if first.endswith("s") else "an" if first[0] in "aeiou" else "a"
    return " ".join(template.format(a=article, text=caption.text).split())


def captions() -> list[list[Caption]]:
    """Families of captions; the captions of a family describe the same attributes."""
    names: dict[str, tuple[str, ...]] = {shape: (shape,) for shape in SHAPES}
    names |= {"square": ("square", "square or diamond", "diamond"), "ellipse": ("ellipse", "oval")}
    nouns = {name: shape for shape in SHAPES for name in names[shape]}
    noun: Phrases = {name: {"shape": (shape,)} for name, shape in nouns.items()}
    either: Phrases = {
        f"{one} or {a}{other}": {"shape": (nouns[one], nouns[other])}
        for one, other in itertools.permutations(nouns, 2)
        for a in ("", "a ")
        if nouns[one] != nouns[other]
    }
    cornered: Phrases = {
        f"{name} with {number} {part}": {"shape": (shape,)}
        for shape, numbers in {
            "triangle": ("3", "three"), "square": ("4", "four"), "pentagon": ("5", "five"),
        }.items()
        for name, number in itertools.product((*names[shape], "shape"), numbers)
        for part in ("edges", "sides", "corners")
    }  # fmt: skip
    colour: Phrases = {name: {"colour": (name,)} for name in COLOURS}
    either_colour: Phrases = {
        f"{c} or {d}": {"colour": (c, d)} for c, d in itertools.permutations(COLOURS, 2)
    }
    good: Phrases = {
        word: {"edges": ("crisp",)} for word in ("regular", "sharp", "clean", "perfect")
    }
    bad: Phrases = {word: {"edges": ("soft",)} for word in ("blurry", "faint", "soft", "pale")}
    some: Phrases = {"shape": {"shape": SHAPES}}
    sizes = {"small": "small", "tiny": "small", "large": "large", "big": "large"}
    size: Phrases = {word: {"size": (value,)} for word, value in sizes.items()}
    place: Phrases = {f"on the {side}": {"across": (side,)} for side in ("left", "right")}
    place |= {f"at the {side}": {"down": (side,)} for side in ("top", "bottom")}
    words = ("splatter", "splatters", "smear", "smears", "stain", "blots", "blob", "scribbles")
    mess: Phrases = {word: {"shape": ("none",)} for word in words}
    return [
        _combine("{}", noun),
        _combine("{}", cornered),
        _combine("{}", either),
        _combine("{} shape", colour),
        _combine("{} shape", either_colour),
        _combine("shape in {}", colour) + _combine("shape of {} color", colour),
        _combine("{} {}", colour, noun),
        _combine("{} in {}", noun, colour),
        _combine("{} {}", colour, cornered),
        _combine("{} {}", good, noun | some),
        _combine("{} {}", good, either),
        _combine("{} {}", bad, noun | some),
        _combine("{} {}", size, noun) + _combine("{} {} shape", size, colour),
        _combine("{} {}", noun, place) + _combine("{} shape {}", colour, place),
        _combine("{} of {}", mess, {"colors": {}, "paint": {}, "color": {}}),
        _combine("{} of {}", mess, colour),
        _combine("{}", mess) + _combine("{} {}", colour, mess),
    ]


def _combine(template: str, *parts: Phrases) -> list[Caption]:
    """All combinations of one phrase from every part."""
    return [
        Caption(
            template.format(*(phrase for phrase, _ in choice)),
            dict(item for _, allows in choice for item in allows.items()),
        )
        for choice in itertools.product(*(part.items() for part in parts))
    ]
