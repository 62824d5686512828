"""Both resolutions, what the teacher is not shown, maps of each reading, and areas and sizes by hand."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.papers import layer_transfer_anomaly as configs
from experiments.papers import layer_transfer_anomaly as study
from tests.experiments.papers.smoke import smoke

KEY = jax.random.key(0)


def config():
    given = configs.get_config()
    made = ml_collections.ConfigDict(given.settings.to_dict())
    made.update(given.smoke.to_dict())
    return made


@pytest.fixture(scope="module")
def teacher():
    return jax.jit(study.transformer(config().shared, study.SIZE).init)(KEY)


def tokens(key=KEY):
    early, late = jax.random.normal(key, (2, 3, 16, 8))
    return {"early": early, "late": late}


def students():
    init = jax.jit(study.student(8).init)
    return {"forward": init(KEY), "backward": init(jax.random.key(1))}


def test_pictures_shrink_by_means():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_allclose(study.shrunk(x, 2)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(study.shrunk(x, 1), x)


def test_the_teacher_sees_both_resolutions(teacher):
    shared = config().shared
    full, half = (study.layers(shared, teacher, jnp.full((2, size, size, 3), 0.5)) for size in (64, 32))
    assert full["early"].shape == full["late"].shape == (2, 16, 8)
    assert half["early"].shape == (2, 4, 8)
    # At full resolution places are those that were learned.
    plain = study.transformer(shared, 64).apply(teacher, jnp.zeros((2, 64, 64, 3)))["hidden"]
    np.testing.assert_allclose(full["late"], plain[shared.late], rtol=1e-4, atol=1e-5)


def test_hidden_patches_are_told_from_the_others(teacher):
    shared = config().shared
    x = jax.random.uniform(KEY, (2, 64, 64, 3))
    with shared.unlocked():
        shared.hidden = 1.0

    def error(pictures):
        return study.reconstruction(shared, teacher, pictures, KEY)

    # Where nothing is seen, what is told is one picture: the gradient is that of the target alone.
    told = study.blocks(shared, teacher, jnp.full_like(x, study.CENTRE))[-1]
    told = told @ teacher["last"]["kernel"] + teacher["last"]["bias"]
    target = (study.vision.patchify(x, patch=16, channels_last=True) - study.CENTRE) / study.SPREAD
    np.testing.assert_allclose(error(x), jnp.mean((told - target) ** 2), rtol=1e-4)


def test_students_learn_to_tell_one_layer_from_the_other():
    shared = config().shared
    shared.update({"train": 3, "student_batch": 3, "student_steps": 100, "student_learning_rate": 1e-2})
    given = tokens()
    before = study.distillation.layer_transfer(*study.told(students(), given), **given)
    trained = jax.jit(lambda given: study.transferred(shared, given, KEY))(given)
    after = study.distillation.layer_transfer(*study.told(trained, given), **given)
    assert float(jnp.mean(after)) < 0.6 * float(jnp.mean(before))


def test_the_product_is_that_of_both_readings(monkeypatch):
    monkeypatch.setattr(study, "BLUR", ())
    monkeypatch.setattr(study, "SIZE", 4)  # no resizing
    jax.clear_caches()
    read = lambda reading: study.maps(reading, students(), jnp.zeros((1, 16)), tokens())  # noqa: E731
    product, forward, backward = map(read, ("product", "forward", "backward"))
    jax.clear_caches()
    assert product.shape == (3, 4, 4)
    np.testing.assert_allclose(product, forward * backward, rtol=1e-4, atol=1e-5)


def test_what_is_in_memory_is_usual():
    given = tokens()
    known = study.joined(given)
    np.testing.assert_allclose(jnp.sum(known**2, -1), 2, rtol=1e-5)
    np.testing.assert_allclose(study.from_memory(known.reshape(-1, 16), given), 0, atol=2e-3)
    others = study.joined(tokens(jax.random.key(3))).reshape(-1, 16)
    pairs = jnp.linalg.norm(known.reshape(-1, 1, 16) - others, axis=-1).min(1).reshape(3, 16)
    np.testing.assert_allclose(study.from_memory(others, given), pairs, rtol=1e-4)


def test_the_smallest_quartile_is_of_defects():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 0, 0] = masks[0, 1, 1] = True  # one defect of two pixels, by a corner
    masks[0, 5:8, 5:8] = True
    masks[1, :4, :4] = True
    assert study.smallest_quartile(masks) == np.quantile([2, 9, 16], 0.25)


def test_readings_nobody_knows_are_refused():
    made = config()
    made.reading = "all"
    with pytest.raises(ValueError, match="reading must be one of product, forward, backward, memory, got 'all'"):
        study.run(made, KEY, {})


def test_smoke(tmp_path):
    smoke("layer_transfer_anomaly", tmp_path)
