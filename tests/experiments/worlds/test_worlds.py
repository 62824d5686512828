"""Splits in memory, batches larger than the data, names of worlds."""

import ml_collections
import numpy as np
import pytest

from experiments import worlds
from experiments.engine.errors import UserError


def split(num):
    return worlds.InMemory({"image": np.arange(3 * num).reshape(num, 3), "label": np.arange(num)})


def test_split_in_memory():
    held = split(5)
    assert len(held) == 5
    read = held.read(np.array([4, 0, 4]))
    assert read.keys() == {"image", "label"}
    np.testing.assert_array_equal(read["image"], [[12, 13, 14], [0, 1, 2], [12, 13, 14]])
    np.testing.assert_array_equal(read["label"], [4, 0, 4])
    np.testing.assert_array_equal(held.examples["label"], np.arange(5))


def test_batch_larger_than_the_data():
    worlds.check_batch(5, split(5))
    with pytest.raises(UserError, match=r"config\.batch_size 6 is larger than the data, 5 training examples"):
        worlds.check_batch(6, split(5))


@pytest.mark.parametrize("name", ["digit", "latents/digits"])
def test_unknown_name_lists_the_known(name, tmp_path):
    config = ml_collections.ConfigDict({"name": name, "data_dir": str(tmp_path)})
    with pytest.raises(
        UserError, match=rf"config\.data\.name '{name}'; known: .*cifar10, digits, facts, latents, mnist, scenes, text"
    ):
        worlds.build(config)
