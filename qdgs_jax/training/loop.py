"""The outer loop of a long training: batches of epochs, a progress bar, and checkpoints."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from qdgs_jax import processes
from qdgs_jax.runs import checkpoints as saved
from qdgs_jax.typing import Array, Key

STEPS_AT_ONCE = 50  # steps a call at most: Ctrl-C is noticed between calls
SECONDS = 300  # between checkpoints

State = TypeVar("State")


def train_all(
    train: Callable[[State, Any], tuple[State, dict[str, Array]]],
    state: State,
    batches: Callable[[range], Any],
    *,
    steps: int,
    checkpoints: Path | None = None,
) -> State:
    """Trains for all steps; terminals show a progress bar.

    Args:
        train: (state, batches [T, ...]) -> the state, which counts its own `step`, and figures [T].
        batches: those of some steps, counted over the whole training.
        checkpoints: folder in which the state is saved every `SECONDS` and at the end. If it has a
            state, the training continues from there, as if it had not been interrupted.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
        OSError: a checkpoint cannot be written.
    """
    some = max(count for count in range(1, STEPS_AT_ONCE + 1) if steps % count == 0)
    with contextlib.ExitStack() as stack:
        save: Callable[[State], None] | None = None
        if checkpoints is not None:
            state = saved.restore(checkpoints, state, counter="step") or state
            save = stack.enter_context(saved.saving(checkpoints, counter="step"))
        begun, figures, when = int(getattr(state, "step")), None, time.monotonic()  # noqa: B009
        bar = stack.enter_context(tqdm(initial=begun, total=steps, unit="step", disable=None))
        for done in range(begun, steps, some):
            given = batches(range(done, done + some))
            if figures is not None:  # of the steps before, which ran while batches were read
                means = {name: f"{values.mean():.4g}" for name, values in figures.items()}
                bar.set_postfix(means, refresh=False)
            state, figures = train(state, given)
            bar.update(some)
            now = time.monotonic()
            due = done + some >= steps or now - when > SECONDS
            if save and any(processes.gather(due)):  # of several processes, all save or none
                save(state)
                when = now
    return state


def batch_rows(key: Key, count: int, batch_size: int, steps: range) -> np.ndarray:
    """Which of `count` images are the batches [T, B] of some steps, counted over all epochs.

    An epoch uses each image at most once, in its own random order; images that do not fill its last
    batch are left out.
    """
    an_epoch = count // batch_size
    orders = {
        epoch: np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), count))
        for epoch in {step // an_epoch for step in steps}
    }
    starts = [(step // an_epoch, step % an_epoch * batch_size) for step in steps]
    return np.stack([orders[epoch][begin : begin + batch_size] for epoch, begin in starts])
