"""The digits: how many, their values, the test set, pixels."""

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments import worlds
from experiments.engine.errors import UserError


def build(**fields):
    return worlds.build(ml_collections.ConfigDict({"name": "digits", **fields}), None)


def test_all_digits():
    world = build()
    assert len(world.train) == 1797
    assert world.test is world.train
    assert (world.example_shape, world.num_classes, world.flip) == ((8, 8, 1), 10, False)
    images, labels = world.train.examples["image"], world.train.examples["label"]
    assert (images.shape, images.dtype, labels.dtype) == ((1797, 8, 8, 1), np.uint8, np.int32)
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 170
    assert counts.max() < 190


@pytest.mark.parametrize("held_out", [1, 360])
def test_held_out_digits_are_the_last(held_out):
    every, world = build(held_out=0).train.examples, build(held_out=held_out)
    assert (len(world.train), len(world.test)) == (1797 - held_out, held_out)
    for name, values in every.items():
        together = np.concatenate([world.train.examples[name], world.test.examples[name]])
        np.testing.assert_array_equal(together, values)


def test_values_of_a_model():
    world = build()
    x = world.to_model(jnp.asarray(world.train.examples["image"]))
    assert x.dtype == jnp.float32
    assert (float(x.min()), float(x.max())) == (-1, 1)
    np.testing.assert_array_equal(world.to_model(jnp.arange(17, dtype=jnp.uint8)), np.linspace(-1, 1, 17))


def test_pixels():
    world = build()
    x = jnp.array([-3.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    pixels = world.to_pixels(x)
    assert pixels.dtype == jnp.uint8
    np.testing.assert_array_equal(pixels, [0, 0, 128, 191, 255, 255])
    # The 17 grey levels of the scan stay apart and in order.
    levels = np.asarray(world.to_pixels(world.to_model(jnp.arange(17, dtype=jnp.uint8))), np.int32)
    np.testing.assert_array_equal(np.round(levels * 16 / 255), np.arange(17))


@pytest.mark.parametrize("held_out", [-5, 1797])
def test_held_out_leaves_something_to_train_on(held_out):
    with pytest.raises(UserError, match=r"config\.data\.held_out must be in \[0, 1796\]"):
        build(held_out=held_out)
