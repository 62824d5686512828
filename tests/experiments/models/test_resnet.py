"""The residual network: shapes, a block by hand, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.resnet import ResidualBlock
from tests.experiments.models.helpers import build, compiled, inputs, keys, layer, shapes, weights


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 3)])
def test_shapes(shape):
    model = build("resnet", shape, num_classes=7)
    params = shapes(model)
    assert [name for name in sorted(params) if name.startswith("block")] == [f"block_{index}" for index in range(4)]
    # Only the block that halves the image and widens it needs a projection.
    assert [name for name, block in sorted(params.items()) if "project" in block] == ["block_2"]
    assert params["block_2"]["project"]["kernel"].shape == (1, 1, 4, 6)
    out = jax.eval_shape(model.apply, params, inputs(shape)[0])
    assert {name: value.shape for name, value in out.items()} == {"logits": (4, 7), "features": (4, 6)}


def test_a_block_adds_to_what_it_is_given():
    def construct(rngs):
        return ResidualBlock(4, 4, stride=1, norm="none", dtype=jnp.dtype("float32"), rngs=rngs)

    block, (x, _) = layer(construct), inputs((5, 5, 4))
    change = block.second(nnx.relu(block.first(nnx.relu(x))))
    np.testing.assert_allclose(block(x), x + change, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(change).max()) > 0.1


def test_logits_are_linear_in_the_mean_of_the_last_map():
    model = build("resnet")
    params, (x, _) = weights(model), inputs((8, 8, 1))
    out = compiled(model)(params, x)
    assert out["features"].min() >= 0
    expected = out["features"] @ params["last"]["kernel"] + params["last"]["bias"]
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-5, atol=1e-6)
    dropped = compiled(build("resnet", dropout=0.5))
    np.testing.assert_allclose(dropped(params, x)["logits"], out["logits"], rtol=1e-5, atol=1e-6)
    assert not np.allclose(dropped(params, x, keys=keys(4))["logits"], out["logits"])


def test_images_alone():
    with pytest.raises(ValueError, match=r"'resnet' needs images \[H, W, C\], got examples of shape \(16,\)"):
        build("resnet", (16,))
