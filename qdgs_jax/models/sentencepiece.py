"""SentencePiece's Unigram models (`spiece.model`), read without that package."""

import base64
import struct
from collections.abc import Iterator
from typing import Any

from qdgs_jax.models.pickles import UnreadableError

_UNIGRAM, _UNKNOWN = 1, 2  # kinds of model and of piece
_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
_STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}
_WORDS = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": False}


def as_tokenizer_json(data: bytes) -> dict[str, Any]:
    """The content of a tokenizer.json that tokenizes like a spiece.model.

    Args:
        data: the file, a `ModelProto` of sentencepiece_model.proto in protobuf's wire format.

    Raises:
        UnreadableError: it is no Unigram model.
        Exception: any, where it is malformed.
    """
    vocabulary: list[list[Any]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    unknown = None
    for field, value in _fields(data):
        if field == 1:
            piece = {2: bytes(4), 3: 1, **dict(_fields(value))}  # text, score, kind
            if piece[3] == _UNKNOWN:
                unknown = len(vocabulary)
            vocabulary.append([piece[1].decode(), struct.unpack("<f", piece[2])[0]])
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    if trainer.get(3, _UNIGRAM) != _UNIGRAM or not vocabulary:
        raise UnreadableError("it is no Unigram model of SentencePiece")
    rules = base64.b64encode(normalizer.get(2, b"")).decode()
    replaced = [{"type": "Precompiled", "precompiled_charsmap": rules}] if rules else []
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [*replaced, _SPACES, _STRIP]},
        "pre_tokenizer": _WORDS,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": vocabulary,
            "byte_fallback": bool(trainer.get(35, 0)),
        },
    }


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message of protobuf: number, and a whole number or bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        value: Any
        match key & 7:
            case 0:
                value, place = _varint(data, place)
            case 1:
                value, place = data[place : place + 8], place + 8
            case 2:
                size, place = _varint(data, place)
                value, place = data[place : place + size], place + size
            case 5:
                value, place = data[place : place + 4], place + 4
            case _:
                raise UnreadableError("it is no message of protobuf")
        if place > len(data):
            raise UnreadableError("it ends too early")
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A whole number of 7 bits a byte, the lowest ones first, and the place behind it."""
    value = shift = 0
    while data[place] & 128 and shift < 63:
        value |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return value | (data[place] & 127) << shift, place + 1
