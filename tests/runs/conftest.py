"""All runs here are of the toy models."""

import pytest

from qdgs_jax.config import Config


@pytest.fixture(autouse=True)
def models(toy_models: None) -> None:
    pass


@pytest.fixture
def config(toy_config: Config) -> Config:
    return toy_config
