"""Keys are unrelated across purposes, and a sample's does not depend on its batch."""

import jax
import jax.numpy as jnp

from qdgs_jax.keys import make_key, row_keys


def data(keys):
    return [tuple(key) for key in jax.random.key_data(keys).tolist()]


def test_purposes_share_no_key_nor_any_that_is_made_from_it():
    seeds = jnp.arange(50)
    roots = [jax.vmap(jax.random.key)(seeds)]
    for purpose in ("one", "another", "latents"):
        roots.append(jax.vmap(lambda seed, purpose=purpose: make_key(seed, purpose))(seeds))
    families = []
    for root in roots:
        made = jax.vmap(lambda key: jax.random.split(key, 40))(root)
        families.append({*data(root), *data(made.ravel())})
    assert [len(family) for family in families] == [50 * 41] * 4
    assert len(set.union(*families)) == 4 * 50 * 41


def test_a_key_is_the_same_wherever_its_batch_begins():
    key = make_key(3, "test")
    whole = data(row_keys(key, 0, 10))
    assert data(row_keys(key, 0, 4)) + data(row_keys(key, 4, 6)) == whole
    assert len(set(whole)) == 10
