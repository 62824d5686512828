"""The data set: its examples are its scenes, its sets share no combination, and it trains."""

import ml_collections
import numpy as np
import pytest

from configs import common
from experiments import runs, tasks, worlds
from experiments.engine.errors import UserError
from experiments.worlds import scenes
from tests.experiments.helpers import SMALL_MLP, small
from tests.experiments.worlds.scenes.helpers import differing

SMALL = {"train_size": 40, "test_size": 24}


def config(**fields):
    return common.scenes(**{**SMALL, **fields})


def test_examples():
    world = worlds.build(config(objects=2, fewest=1), None)
    assert (len(world.train), len(world.test)) == (40, 24)
    assert (world.example_shape, world.num_classes, world.flip) == ((16, 16, 3), 30, False)
    shapes = {name: (values.shape, str(values.dtype)) for name, values in world.train.examples.items()}
    assert shapes == {
        "image": ((40, 16, 16, 3), "uint8"),
        "label": ((40,), "int32"),
        "tokens": ((40, scenes.length(2)), "int32"),
    }
    found = scenes.detect(np.asarray(world.to_model(world.train.examples["image"]) / 2 + 0.5), objects=2)
    np.testing.assert_array_equal(scenes.caption(found), world.train.examples["tokens"])
    np.testing.assert_array_equal(scenes.label(found), world.train.examples["label"])
    raw = world.train.examples["image"]
    np.testing.assert_array_equal(world.to_pixels(world.to_model(raw)), raw)


def test_scenes_of_a_data_set():
    drawn, examples = scenes.examples(config(objects=2), "train")
    np.testing.assert_array_equal(examples["tokens"], scenes.caption(drawn))
    np.testing.assert_array_equal(examples["image"], np.round(255 * np.asarray(scenes.render(drawn, 16))))
    # Scene i does not depend on how many there are, and differs between sets and seeds.
    longer, _ = scenes.examples(config(objects=2, train_size=1500), "train")
    assert len(longer.background) == 1500
    assert not len(differing(drawn, scenes.Scene(*(x[:40] for x in longer))))
    test, _ = scenes.examples(config(objects=2, test_size=40), "test")
    other, _ = scenes.examples(config(objects=2, seed=1), "train")
    assert len(differing(drawn, test)) > 30
    assert len(differing(drawn, other)) > 30


def test_held_out_pairs_are_in_the_test_set_alone():
    world = worlds.build(config(held_out=6, train_size=400, test_size=100), None)
    train, test = (set(split.examples["label"].tolist()) for split in (world.train, world.test))
    assert not train & test
    assert len(test) <= 6
    assert len(train) == 24


def test_captions_mention_what_is_asked():
    world = worlds.build(config(mention=("shape",)), None)
    assert {scenes.decode(line) for line in world.train.examples["tokens"]} <= set(scenes.SHAPES)


def test_captions_may_leave_things_out_and_pictures_stay_as_they_are():
    full = worlds.build(config(train_size=400), None).train.examples
    some = worlds.build(config(train_size=400, mention=("color", "shape"), unsaid=0.5), None).train.examples
    np.testing.assert_array_equal(full["image"], some["image"])
    np.testing.assert_array_equal(full["label"], some["label"])
    said = scenes.read(some["tokens"])
    shape, color = said.shape[:, 0], said.color[:, 0]
    assert np.all((shape == -1) | (shape == full["label"] // 6))
    assert np.all((color == -1) | (color == full["label"] % 6))
    shares = [
        np.mean((shape >= 0) & (color >= 0)),
        np.mean((shape >= 0) & (color < 0)),
        np.mean((shape < 0) & (color < 0)),
    ]
    np.testing.assert_allclose(shares, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 400))


def test_only_some_words_and_places():
    only = {"style": ("striped",), "size": ("large",), "background": ("grey", "black")}
    drawn, _ = scenes.examples(config(train_size=200, grid=1, jitter=0.0, only=only), "train")
    assert {scenes.STYLES[i] for i in drawn.style.ravel()} == {"striped"}
    assert {scenes.SIZES[i] for i in drawn.size.ravel()} == {"large"}
    assert {scenes.BACKGROUNDS[i] for i in drawn.background} == {"grey", "black"}
    assert len(set(drawn.color.ravel().tolist())) == len(scenes.COLORS)
    np.testing.assert_allclose(drawn.position, 0.5, atol=1e-6)


def test_the_world_without_its_data():
    given = config(objects=3, image_size=32, train_size=10**7)
    described = worlds.describe(given, None)
    assert len(described.train) == 10**7
    assert described.example_shape == (32, 32, 3)
    built = worlds.build(config(objects=3, image_size=32), None)
    ours, theirs = (
        {name: (values.shape[1:], values.dtype) for name, values in world.train.read(np.arange(2)).items()}
        for world in (described, built)
    )
    assert ours == theirs


def test_defaults_are_those_of_configs():
    """A config that gives the name alone means what `configs.common.scenes` says."""
    bare = worlds.describe(ml_collections.ConfigDict({"name": "scenes"}), None)
    full = worlds.describe(common.scenes(), None)
    assert (
        scenes.data._settings(ml_collections.ConfigDict({"name": "scenes"}))[0]
        == scenes.data._settings(common.scenes())[0]
    )
    assert (len(bare.train), len(bare.test)) == (len(full.train), len(full.test))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"train_size": 0}, r"config\.data\.train_size must be at least 1, got 0"),
        ({"image_size": 4}, r"config\.data: size must be"),
        ({"objects": 5}, r"config\.data: objects must be in \[1, 4\]"),
        ({"held_out": 30}, r"config\.data: held_out must be in"),
        ({"mention": ("weight",)}, r"config\.data: mention must name"),
        ({"unsaid": 1.5}, r"config\.data\.unsaid must be in \[0, 1\], got 1\.5"),
        ({"jitter": -1.0}, r"config\.data\.jitter must be in \[0, 1\], got -1\.0"),
        ({"only": {"style": ("woolly",)}}, r"config\.data: style must be one of .* got 'woolly'"),
        ({"only": {"weight": ("heavy",)}}, r"config\.data: attribute must be one of .* got 'weight'"),
        ({"only": {"background": ()}}, r"config\.data: backgrounds must name at least one"),
    ],
)
def test_bad_settings_are_the_users(fields, says):
    with pytest.raises(UserError, match=says):
        worlds.build(config(**fields), None)


@pytest.mark.parametrize(
    ("name", "model"), [("classification/digits", {"model.channels": (4,)}), ("diffusion/digits", SMALL_MLP)]
)
def test_it_trains(name, model, tmp_path):
    given = small(name, **model, **{"evaluation.features": {}, "cache_dir": str(tmp_path / "cache")})
    with given.unlocked():
        given.data = config(train_size=64)
    resolved = tasks.resolve(given)
    run = runs.train(resolved, tmp_path / "run")
    del run
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) >= 2
