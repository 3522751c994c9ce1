"""Prompts in words -> embeddings."""

import dataclasses
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from qdgs_jax.config import Config, MeasureConfig, ObjectiveConfig
from qdgs_jax.encoders import Encoder
from qdgs_jax.prompts import UnknownWordsWarning, embed_prompts

WORDS = {"a": 1, "red": 2, "blue": 3, "shape": 4}


def fake_encoder(calls):
    def tokenize(texts):
        calls.append(texts)
        return jnp.array([[sum(WORDS.get(word, 0) for word in text.split())] for text in texts])

    def embed_tokens(params, ids):
        angle = params * ids[:, 0]
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)

    def unknown_words(text):
        return [word for word in text.split() if word not in WORDS]

    return Encoder("fake", "", 8, None, embed_tokens, tokenize, unknown_words)  # type: ignore[arg-type]


def make_config(positive):
    return Config(
        objective=ObjectiveConfig(positive=positive, negative="a"),
        measures=(
            MeasureConfig(name="light", function="brightness"),
            MeasureConfig(name="hue", low="a red shape", high="a blue shape"),
        ),
    )


def angle(embedding):
    return np.arctan2(embedding[:, 1], embedding[:, 0]) / 0.1


def test_each_text_is_embedded_once_in_its_place():
    calls = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts = embed_prompts(make_config("a red shape | a"), fake_encoder(calls), 0.1)
    assert calls == [["a red shape", "a", "a blue shape"]]
    np.testing.assert_allclose(angle(prompts.objective.near), [7, 1], rtol=1e-5)
    np.testing.assert_allclose(angle(prompts.objective.far), [1], rtol=1e-5)
    light, hue = prompts.measures
    assert light is None
    np.testing.assert_allclose(angle(hue.near), [7], rtol=1e-5)
    np.testing.assert_allclose(angle(hue.far), [8], rtol=1e-5)


def test_without_prompts_there_is_nothing_to_embed():
    config = Config(
        objective=ObjectiveConfig(regularisation=1.0),
        measures=(MeasureConfig(name="light", function="brightness"),),
    )
    assert not config.has_prompts
    prompts = embed_prompts(config, None, None)
    assert (prompts.objective, prompts.measures) == (None, (None,))


def test_measures_can_have_prompts_where_the_objective_has_none():
    config = make_config("a")
    config = dataclasses.replace(config, objective=ObjectiveConfig())
    assert config.has_prompts
    calls = []
    prompts = embed_prompts(config, fake_encoder(calls), 0.1)
    assert calls == [["a red shape", "a blue shape"]]
    assert prompts.objective is None
    assert prompts.measures[1] is not None


def test_unknown_words_are_named_once():
    with pytest.warns(
        UnknownWordsWarning, match=r"fake does not know 'zebra', 'green': "
    ) as caught:
        embed_prompts(make_config("a zebra | a green zebra"), fake_encoder([]), 0.1)
    assert len(caught) == 1
