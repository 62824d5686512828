"""What networks say of the axes of their parameters, and that a mesh may split these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import mesh as meshes
from tests.experiments.models.helpers import build, inputs, quickly, shapes, weights

ATTENDING = {"channel_multipliers": (1, 2), "attention_resolutions": (4,), "head_channels": 4}
FIRST = {"kernel": (None, "hidden"), "bias": ("hidden",)}
SECOND = {"kernel": ("hidden", None), "bias": (None,)}


def declared(model):
    """{layer: {parameter: what its axes hold}}."""
    layers = {}
    for (*path, name), holds in model.axes.items():
        layers.setdefault("/".join(path), {})[name] = holds
    return layers


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("autoencoder", {}),
        ("classifier", {}),
        ("mlp", {}),
        ("mlp", {"class_condition": True, "time_conditioning": "scale_shift"}),
        ("dit", {}),
        ("resnet", {}),
        ("transformer", {}),
        ("language", {}),
        ("unet", {}),
        ("unet", ATTENDING),
    ],
)
def test_what_is_declared_is_there(name, fields):
    model = build(name, **fields)
    assert model.axes
    for path, holds in model.axes.items():
        node = shapes(model)
        for key in path:
            node = node[key]
        assert len(holds) == len(node.shape), path
        assert {what for what in holds if what} <= meshes.RULES.keys()


def test_hidden_features_of_the_mlp():
    pairs = ("embed", "block_0", "block_1")
    assert declared(build("mlp")) == {
        **{f"{layer}/first": FIRST for layer in pairs},
        **{f"{layer}/second": SECOND for layer in pairs},
    }


def test_heads_of_the_unet():
    heads = {
        "attend": {"kernel": (None, "heads"), "bias": ("heads",)},
        "project": {"kernel": ("heads", None), "bias": (None,)},
    }
    embedding = {"embed/first": FIRST, "embed/second": SECOND}
    assert declared(build("unet")) == embedding
    blocks = ("down_1_0", "middle", "up_1_0", "up_1_1")
    assert declared(build("unet", **ATTENDING)) == {
        **embedding,
        **{f"{block}/{layer}": holds for block in blocks for layer, holds in heads.items()},
    }


def test_heads_on_two_devices_give_the_loss_of_one():
    """Forward and backward, with the parameters that a mesh splits over its model axis."""
    model = build("unet", channels=32, attention_resolutions=(8,), head_channels=8)
    params, (x, c_noise) = weights(model), inputs((8, 8, 1), batch=4)
    step = quickly(
        jax.value_and_grad(lambda params, x, c_noise: jnp.mean((model.apply(params, x, c_noise) - x) ** 2)),
    )
    loss, gradients = step(params, x, c_noise)
    mesh = meshes.make({"data": 2, "model": 2}, "jit", 4)
    split = jax.device_put(params, meshes.state_sharded(mesh, params, model.axes))
    for block, layer, part in (("middle", "attend", (32, 48)), ("middle", "project", (16, 32))):
        assert {shard.data.shape for shard in split[block][layer]["kernel"].addressable_shards} == {part}
    batch = jax.device_put((x, c_noise), meshes.batch_sharded(mesh, 0))
    split_loss, split_gradients = step(split, *batch)
    np.testing.assert_allclose(split_loss, loss, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(split_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
