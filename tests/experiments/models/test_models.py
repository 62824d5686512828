"""Networks as functions: what build refuses, what init gives, what apply leaves alone."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments import models
from tests.experiments.models.helpers import build, compiled, inputs, quickly, shapes, weights

NAMES = sorted(models.MODELS)


def dense(x):
    return x["first"]["kernel"] if "first" in x else x["encoder_in"]["kernel"]


def test_unknown_name():
    with pytest.raises(ValueError, match=rf"model\.name must be one of {', '.join(NAMES)}, got 'swin'"):
        build("swin")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("autoencoder", "depth"),
        ("classifier", "width"),
        ("mlp", "channels"),
        ("unet", "width"),
        ("mlp", "rngs"),
        ("mlp", "example_shape"),
    ],
)
def test_unknown_field(name, field):
    with pytest.raises(ValueError, match=rf"model\.{field} is no field of '{name}', which has .*dtype"):
        build(name, **{field: 3})


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("autoencoder", "latent", 0),
        ("autoencoder", "width", -2),
        ("classifier", "channels", (4, -1)),
        ("classifier", "dropout", 1.0),
        ("classifier", "features", 0),
        ("mlp", "depth", 0),
        ("mlp", "dropout", -0.1),
        ("mlp", "dropout", float("nan")),
        ("mlp", "dtype", "float16"),
        ("mlp", "fourier_features", 0),
        ("mlp", "fourier_scale", 0.0),
        ("mlp", "norm", "batch"),
        ("mlp", "time_conditioning", "concatenated"),
        ("mlp", "fourier_features", 7),
        ("mlp", "fourier_scale", float("nan")),
        ("mlp", "width", 0),
        ("mlp", "width", 2.5),
        ("mlp", "width", "wide"),
        ("mlp", "dropout", None),
        ("transformer", "heads", 0),
        ("transformer", "expansion", 1.5),
        ("dit", "patch", 3),
        ("dit", "heads", 0),
        ("dit", "expansion", 0),
        ("unet", "channel_multipliers", 2),
        ("unet", "blocks_per_level", 0),
        ("unet", "channel_multipliers", ()),
        ("unet", "channel_multipliers", (1, 0)),
        ("unet", "channels", 0),
        ("unet", "head_channels", -1),
        ("unet", "head_channels", 3),
        ("vit", "patch", 3),
        ("mamba", "states", 0),
    ],
)
def test_values_out_of_range(name, field, value):
    with pytest.raises(ValueError, match=rf"model\.{field} must .*got"):
        build(name, **{field: value})


def test_a_class_condition_needs_classes():
    with pytest.raises(ValueError, match=r"model\.class_condition needs labels"):
        build("mlp", num_classes=0, class_condition=True)


@pytest.mark.parametrize("name", ["classifier", "dit", "unet"])
def test_networks_of_images_refuse_flat_examples(name):
    with pytest.raises(ValueError, match=rf"model\.name '{name}' needs images .*\(64,\)"):
        build(name, shape=(64,))


def test_the_config_is_left_alone():
    config = ml_collections.ConfigDict({"name": "mlp", "width": 8})
    models.build(config, example_shape=(4,), num_classes=0)
    assert config.to_dict() == {"name": "mlp", "width": 8}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_float32_in_nested_dicts(name, dtype):
    params = shapes(build(name, dtype=dtype))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))

    def check(node):
        assert type(node) is dict
        for key, child in node.items():
            assert type(key) is str
            if not isinstance(child, jax.ShapeDtypeStruct):
                check(child)

    check(params)


@pytest.mark.parametrize("name", ["autoencoder", "mlp"])
def test_init_is_a_function_of_the_key(name):
    model = build(name, shape=(6,))
    init = quickly(model.init)
    params, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert not np.any(np.asarray(dense(params)) == np.asarray(dense(other)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes(model))


@pytest.mark.parametrize("name", ["autoencoder", "mlp"])
def test_apply_is_pure(name):
    model = build(name, shape=(6,))
    one, two = weights(model), weights(model, 1)
    kept = jax.tree.map(np.array, one)
    given = inputs((6,)) if name == "mlp" else inputs((6,))[:1]
    first, between, again = (model.apply(params, *given) for params in (one, two, one))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.allclose(jax.tree.leaves(first)[0], jax.tree.leaves(between)[0])
    jax.tree.map(np.testing.assert_array_equal, kept, one)
    assert jax.tree.structure(one) == jax.tree.structure(kept)


def test_apply_keeps_nothing_of_a_trace():
    model = build("autoencoder", shape=(6,))
    with jax.checking_leaks():
        jax.eval_shape(model.apply, shapes(model), inputs((6,))[0])


def test_apply_under_transformations():
    model = build("mlp", shape=(6,))
    one, two, given = weights(model), weights(model, 1), inputs((6,))
    eager = [np.asarray(model.apply(params, *given)) for params in (one, two)]
    np.testing.assert_allclose(compiled(model)(one, *given), eager[0], rtol=1e-5, atol=1e-6)
    both = jax.vmap(model.apply, in_axes=(0, None, None))(
        jax.tree.map(lambda a, b: jnp.stack([a, b]), one, two), *given
    )
    np.testing.assert_allclose(both, eager, rtol=1e-5, atol=1e-6)
    gradient = quickly(jax.grad(lambda params: jnp.sum(model.apply(params, *given) ** 2)))(one)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, one)
    # d/db sum(out^2) = 2 sum over the batch of out, at the bias of the last layer.
    np.testing.assert_allclose(gradient["last"]["bias"], 2 * eager[0].sum(0), rtol=1e-4, atol=1e-5)
