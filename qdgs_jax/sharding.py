"""Batches by rows and archives by columns, over the devices of a mesh.

The mesh is the ambient one (`jax.set_mesh`), whose axes of type `Auto` are used together, whatever
they are called. Without a mesh, and on one device, all functions here change nothing.

    with jax.set_mesh(make_mesh(jax.devices())):
        state, metrics = run_jitted(search, params, state, 100)

Latents [N, D] are rendered and scored by rows: a device has N / devices of them. An archive's
latents [K, D] lie by columns: a device has all cells, and of each latent D / devices numbers, so
that insertion and look-up are local for any K. Turning a batch's rows into columns is an
all-to-all, whose bytes for a device do not grow with the number of devices.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qdgs_jax.chunks import in_chunks
from qdgs_jax.errors import ConfigError
from qdgs_jax.typing import Array


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of one axis over `devices`, for `jax.set_mesh`."""
    return jax.make_mesh((len(devices),), ("devices",), (AxisType.Auto,), devices=devices)


def limited_mesh(count: int) -> Mesh:
    """A mesh over the first `count` devices of each process.

    Raises:
        ConfigError: a process has fewer.
    """
    if not 1 <= count <= jax.local_device_count():
        raise ConfigError(
            f"There are {jax.local_device_count()} devices here, not {count}: ask for 1 to "
            f"{jax.local_device_count()}."
        )
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    return make_mesh([each for some in by_process.values() for each in some[:count]])


@contextlib.contextmanager
def all_devices() -> Iterator[None]:
    """Keeps the ambient mesh; without one, sets one over all devices, if they are several."""
    if jax.sharding.get_abstract_mesh().empty and jax.device_count() > 1:
        with jax.set_mesh(make_mesh(jax.devices())):
            yield
    else:
        yield


@contextlib.contextmanager
def no_mesh() -> Iterator[None]:
    """Takes the ambient mesh away, for what a process computes alone."""
    with jax.set_mesh(Mesh(np.empty((), dtype=object), ())):
        yield


@contextlib.contextmanager
def local_devices() -> Iterator[None]:
    """Sets a mesh over those devices of the ambient mesh, or else of all, that this process has."""
    mesh = jax.sharding.get_mesh()
    found = jax.devices() if mesh.empty else mesh.devices.flat
    with jax.set_mesh(make_mesh([each for each in found if each in jax.local_devices()])):
        yield


def axes() -> tuple[str, ...]:
    """Names of the ambient mesh's axes that rows and columns are divided over.

    Axes that a caller's own `shard_map` divides are not among them.

    Raises:
        ValueError: an axis is of type `Explicit`, under which archives cannot be updated.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if explicit := [name for name, kind in kinds.items() if kind == AxisType.Explicit]:
        raise ValueError(
            f"the mesh's axes {explicit} are of type Explicit, under which JAX divides no archive: "
            "make it with axis_types=(jax.sharding.AxisType.Auto,) for each axis"
        )
    return tuple(name for name, kind in kinds.items() if kind == AxisType.Auto)


def devices() -> int:
    """Number of devices that rows and columns are divided over; 1 without a mesh."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[name] for name in axes())


def rowwise(function: Callable[..., Any], chunk_size: int | None = None) -> Callable[..., Any]:
    """Maps function(shared, *rows) over the rows, each device its own.

    Args:
        function: a row's results must not depend on other rows. Its rows and results are pytrees
            of arrays that share a leading axis; `shared`, such as weights, all devices have whole.
        chunk_size: rows that a device computes at once; None: all that it has.
    """

    def one_device(shared: Any, *rows: Any) -> Any:
        computed = functools.partial(function, shared)
        return (in_chunks(computed, chunk_size) if chunk_size else computed)(*rows)

    def mapped(shared: Any, *rows: Any) -> Any:
        if devices() == 1:
            return one_device(shared, *rows)
        count = len(jax.tree.leaves(rows)[0])
        padded = -(-count // devices()) * devices()
        if padded > count:  # the last row again
            index = jnp.minimum(jnp.arange(padded), count - 1)
            rows = jax.tree.map(lambda leaf: leaf[index], rows)
        divided = PartitionSpec(axes())
        results = jax.shard_map(
            one_device,
            in_specs=(PartitionSpec(), *[divided] * len(rows)),
            out_specs=divided,
            axis_names=set(axes()),
            check_vma=False,  # nothing is exchanged, and functions of all kinds are mapped
        )(shared, *rows)
        return jax.tree.map(lambda leaf: leaf[:count], results)

    return mapped


def by_rows(tree: Any) -> Any:
    """Divides each leaf over the devices by its first axis; repeats one that does not divide."""
    return _constrained(tree, lambda leaf: 0 if leaf.ndim else None)


def by_columns(latents: Array) -> Array:
    """Divides [.., D] over the devices by the last axis; repeats it if D does not divide."""
    return _constrained(latents, lambda leaf: leaf.ndim - 1)


def replicated(tree: Any) -> Any:
    """All devices have all of each leaf."""
    return _constrained(tree, lambda leaf: None)


def on_all_devices(tree: Any) -> Any:
    """Copies arrays or typed keys to every device of the ambient mesh, outside of programs.

    In several processes, each gives the same values.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> Array:
        if jax.process_count() == 1:
            return jax.device_put(leaf, everywhere)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        values = np.asarray(leaf)  # device_put would compare the values of all processes
        return jax.make_array_from_callback(leaf.shape, everywhere, lambda index: values[index])

    return jax.tree.map(place, tree)


def _constrained(tree: Any, axis_of: Callable[[Array], int | None]) -> Any:
    if devices() == 1:
        return tree

    def constrain(leaf: Array) -> Array:
        axis, spec = axis_of(leaf), PartitionSpec()
        if axis is not None and leaf.shape[axis] % devices() == 0:
            spec = PartitionSpec(*[None] * axis, axes())
        return jax.lax.with_sharding_constraint(leaf, spec)

    return jax.tree.map(constrain, tree)
