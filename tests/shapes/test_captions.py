"""Captions are true of the attributes that they allow."""

import pytest

from qdgs_jax.shapes.captions import ATTRIBUTES, Caption, captions, sentence


def test_captions_allow_known_values_only():
    families = captions()
    texts = [caption.text for family in families for caption in family]
    assert len(set(texts)) == len(texts)
    for family in families:
        assert family
        for caption in family:
            for attribute, allowed in caption.allows.items():
                assert set(allowed) <= set(ATTRIBUTES[attribute])


@pytest.mark.parametrize(
    ("text", "template", "expected"),
    [
        ("orange star", "an image of {a} {text}.", "an image of an orange star."),
        ("splatters of colors", "{a} {text}.", "splatters of colors."),
        ("red shape", "{text}", "red shape"),
    ],
)
def test_sentences(text, template, expected):
    assert sentence(Caption(text, {}), template) == expected
