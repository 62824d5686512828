"""Latents: standardised, struck by outliers in the training set alone, decoded to pictures."""

import ml_collections
import numpy as np
import pytest

from experiments import runs, worlds
from experiments.engine.errors import UserError
from experiments.tasks import autoencoding
from experiments.worlds import latents
from tests.experiments.helpers import small
from tests.experiments.image_sets import write_image_set

FACTOR = 10.0


def configured(autoencoder, **fields):
    settings = {"std": 0.5, "outlier_fraction": 0.0, "outlier_factor": FACTOR, "outlier_seed": 0, **fields}
    return ml_collections.ConfigDict({"name": "latents", "autoencoder": autoencoder, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A hardly trained autoencoder of the digits."""
    config = small("autoencoding/digits", steps=20, batch_size=64, ema_decay=0.5)
    return runs.obtain(config, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def build(run):
    return lambda **fields: worlds.build(configured(run.config, **fields), lambda config: run)


def values(split):
    return split.examples["image"]


def test_latents_are_standardised(run, build):
    world = build()
    assert (world.example_shape, world.num_classes, world.flip) == ((16,), 10, False)
    assert (values(world.train).shape, values(world.test).shape) == ((1437, 16), (360, 16))
    assert values(world.train).dtype == values(world.test).dtype == np.float32
    np.testing.assert_allclose(values(world.train).mean(0), np.zeros(16), atol=1e-5)
    np.testing.assert_allclose(values(world.train).std(0), np.full(16, 0.5), rtol=1e-4)
    for ours, theirs in ((world.train, run.world.train), (world.test, run.world.test)):
        np.testing.assert_array_equal(ours.examples["label"], theirs.examples["label"])
    np.testing.assert_array_equal(world.to_model(values(world.test)), values(world.test))


def test_test_set_has_the_scale_of_the_training_set(run, build):
    world, coder = build(std=2.0), autoencoding.coder(run)
    raw = [np.asarray(coder.encode(run.world.to_model(values(split)))) for split in (run.world.train, run.world.test)]
    expected = 2 * (raw[1] - raw[0].mean(0)) / raw[0].std(0)
    np.testing.assert_allclose(values(world.test), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fraction", [0.005, 0.3, 1.0])
def test_outliers(build, fraction):
    clean, world = build(), build(outlier_fraction=fraction)
    np.testing.assert_array_equal(values(world.test), values(clean.test))
    struck = values(world.train) != values(clean.train)
    np.testing.assert_allclose(values(world.train)[struck], FACTOR * values(clean.train)[struck], rtol=1e-5)
    # 22,992 independent entries: beyond 5 standard deviations with probability below 1e-5.
    assert abs(struck.mean() - fraction) <= 5 * np.sqrt(fraction * (1 - fraction) / struck.size)


def test_outlier_seed(build):
    one, again, other = (values(build(outlier_fraction=0.1, outlier_seed=seed).train) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_outlier_fraction_out_of_range(build, fraction):
    with pytest.raises(UserError, match=r"config\.data\.outlier_fraction must be in \[0, 1\], got"):
        build(outlier_fraction=fraction)


def test_negative_outlier_seed(build):
    with pytest.raises(UserError, match=r"config\.data\.outlier_seed must be >= 0, got -1"):
        build(outlier_seed=-1)


def test_pixels_are_those_of_the_decoder(run, build):
    world, coder = build(outlier_fraction=0.1), autoencoding.coder(run)
    pixels = np.asarray(world.to_pixels(world.to_model(values(world.test)[:20])))
    assert (pixels.shape, pixels.dtype) == ((20, 8, 8, 1), np.uint8)
    images = run.world.to_model(values(run.world.test)[:20])
    expected = np.asarray(run.world.to_pixels(coder.decode(coder.encode(images))))
    assert expected.std() > 1
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1  # rounded


def test_encoding_in_blocks(build, monkeypatch):
    whole = values(build().test)
    monkeypatch.setattr(latents, "ENCODE_BATCH", 1000)
    np.testing.assert_allclose(values(build().test), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_channel_of_hardly_any_spread_is_zero(run, bias):
    average = {name: dict(layer) for name, layer in run.state.average.items()}
    average["encoder_out"]["kernel"] = np.array(average["encoder_out"]["kernel"])
    average["encoder_out"]["kernel"][:, 3] *= 1e-8
    average["encoder_out"]["bias"] = np.full(len(average["encoder_out"]["bias"]), bias, np.float32)
    cut = run._replace(state=run.state._replace(average=average))
    world = worlds.build(configured(run.config), lambda config: cut)
    for split in (world.train, world.test):
        np.testing.assert_array_equal(values(split)[:, 3], 0)
        assert np.all(np.std(values(split)[:, [2, 4]], axis=0) > 0.2)
    coder = autoencoding.coder(cut)
    images = run.world.to_model(values(run.world.test)[:20])
    expected = np.asarray(run.world.to_pixels(coder.decode(coder.encode(images))), int)
    assert np.abs(np.asarray(world.to_pixels(values(world.test)[:20]), int) - expected).max() <= 1  # rounded


def test_the_autoencoder_of_the_config_is_asked_for(run):
    asked = []

    def trained(config):
        asked.append(config)
        return run

    config = configured(run.config)
    worlds.build(config, trained)
    assert [one.to_dict() for one in asked] == [config.autoencoder.to_dict()]


def test_base_set_must_fit_in_memory(run, tmp_path):
    write_image_set(tmp_path, "tiny", np.zeros((4, 8, 8, 1), np.uint8), [0, 1, 2, 3])
    autoencoder = ml_collections.ConfigDict(run.config.to_dict())
    autoencoder.data = {"name": "tiny", "data_dir": str(tmp_path), "resident_bytes": 0}
    with pytest.raises(UserError, match=r"latents need a set that fits in memory \(raise data\.resident_bytes\)"):
        worlds.build(configured(autoencoder), lambda config: run)


def test_without_a_run_they_are_refused(run):
    with pytest.raises(ValueError, match="'latents' needs a run"):
        worlds.build(configured(run.config))
