"""The order of examples: whole epochs, a function of (seed, step) alone, the same from disk as from memory."""

import numpy as np
import pytest

from experiments.engine.pipeline import Order, stream


@pytest.mark.parametrize(("examples", "batch"), [(10, 4), (12, 4), (7, 7), (5, 1)])
def test_every_epoch_holds_each_example_once(examples, batch):
    steps = 3 * examples // np.gcd(examples, batch)
    epochs = Order(3, examples, batch).batches(0, steps).reshape(-1, examples)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(examples), (len(epochs), 1)))


def test_epochs_are_shuffled_anew():
    epochs = Order(0, 50, 50).batches(0, 3)
    assert len({tuple(epoch) for epoch in [np.arange(50), *epochs]}) == 4


def test_a_batch_that_straddles_two_epochs():
    order = Order(0, 10, 4)
    first, second = order.at(np.arange(10)), order.at(np.arange(10, 20))
    batches = order.batches(0, 5)
    assert batches.shape == (5, 4)
    assert batches.dtype == np.int32
    np.testing.assert_array_equal(batches[1], first[4:8])
    np.testing.assert_array_equal(batches[2], [first[8], first[9], second[0], second[1]])
    np.testing.assert_array_equal(batches[4], second[6:])


def test_batches_depend_on_seed_and_step_alone():
    straight = Order(5, 13, 4).batches(0, 40)
    jumping = Order(5, 13, 4)
    for first, count in [(30, 10), (0, 1), (39, 1), (7, 20), (0, 40)]:
        np.testing.assert_array_equal(jumping.batches(first, count), straight[first : first + count])
    assert (Order(6, 13, 4).batches(0, 40) != straight).any()


def test_positions_far_beyond_int32():
    order = Order(0, 7, 4)
    far = order.batches(7 * 2**31, 7)
    np.testing.assert_array_equal(np.sort(far.reshape(4, 7)), np.tile(np.arange(7), (4, 1)))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("first", [0, 5])
def test_streamed_batches_are_those_of_memory(first, threads):
    values = np.arange(11) ** 2
    order = Order(1, 11, 4)
    streamed = stream(lambda indices: {"value": values[indices]}, order, first, 9, rows=np.arange(4), threads=threads)
    got = np.stack([batch["value"] for batch in streamed])
    np.testing.assert_array_equal(got, values[order.batches(0, 9)[first:]])


def test_a_read_that_fails_ends_the_stream():
    def read(indices):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(stream(read, Order(0, 8, 4), 0, 3, rows=np.arange(4), threads=2))
