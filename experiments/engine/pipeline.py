"""Batches as a function of (seed, step): shuffled epochs, from memory or through grain."""

import functools
from collections.abc import Callable, Iterator

import grain
import numpy as np

SHUFFLE_STREAM = 0x5EED  # keeps the shuffle apart from other uses of the seed


class Order:
    """Which example stands at which position of an endless sequence of shuffled epochs."""

    def __init__(self, seed: int, num_examples: int, batch_size: int):
        self.num_examples, self.batch_size = num_examples, batch_size

        @functools.lru_cache(maxsize=2)  # a batch can straddle two epochs
        def epoch_order(epoch: int) -> np.ndarray:
            return np.random.default_rng([SHUFFLE_STREAM, seed, epoch]).permutation(num_examples).astype(np.int32)

        self._epoch_order = epoch_order

    def at(self, positions: np.ndarray) -> np.ndarray:
        """int32 examples at the given positions."""
        epochs, places = np.divmod(positions, self.num_examples)
        examples = np.empty(positions.shape, np.int32)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            examples[here] = self._epoch_order(int(epoch))[places[here]]
        return examples

    def batches(self, first_step: int, num_steps: int) -> np.ndarray:
        """int32 [num_steps, batch_size]: the examples of those steps."""
        first = first_step * self.batch_size
        positions = np.arange(first, first + num_steps * self.batch_size)
        return self.at(positions).reshape(num_steps, self.batch_size)


def stream(
    read: Callable[[np.ndarray], dict[str, np.ndarray]],
    order: Order,
    first_step: int,
    last_step: int,
    *,
    rows: np.ndarray,
    threads: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the steps from `first_step` up to `last_step` of a split that stays on disk, read ahead by grain.

    Of each batch only `rows` are read: those of this process.
    """

    def read_batch(step: int) -> dict[str, np.ndarray]:
        return read(order.batches(step, 1)[0][rows])

    dataset = grain.MapDataset.range(first_step, last_step).map(read_batch)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, 2 * threads))
    return iter(dataset.to_iter_dataset(options))
