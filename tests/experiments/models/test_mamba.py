"""The stack of Mamba blocks: by hand, causality inside a block, the first step sizes, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.mamba import MambaBlock
from tests.experiments.models.helpers import build, changed, compiled, inputs, layer, silu, weights

IMAGES = inputs((8, 8, 1))[0]


def norm(p, h):
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def block_by_hand(p, h):
    """Step by step, in NumPy: width 8, inner 16, one step rank, three states."""
    x, gate = np.split(norm(p["norm"], h) @ p["enter"]["kernel"], 2, axis=-1)
    early = np.pad(x, ((0, 0), (3, 0), (0, 0)))
    x = silu(sum(early[:, k : k + 8] * p["taps"][k] for k in range(4)) + p["tap_bias"])
    low, into, out = np.split(x @ p["select"]["kernel"], (1, 4), axis=-1)
    step = np.log1p(np.exp(low @ p["step"]["kernel"] + p["step_bias"]))
    state, ys = np.zeros((4, 16, 3)), []
    for t in range(8):
        decay = np.exp(-step[:, t, :, None] * np.exp(p["log_rate"]))
        state = decay * state + (step[:, t] * x[:, t])[..., None] * into[:, t, None]
        ys.append(np.einsum("bdn,bn->bd", state, out[:, t]) + p["skip"] * x[:, t])
    return h + (np.stack(ys, 1) * silu(gate)) @ p["leave"]["kernel"]


def test_by_hand():
    network = build("mamba")
    params = weights(network)
    p = jax.tree.map(np.asarray, params)
    h = IMAGES.reshape(4, 8, 8) @ p["embed"]["kernel"] + p["embed"]["bias"]
    for index in range(2):
        h = block_by_hand(p[f"block_{index}"], h)
    features = norm(p["norm"], h).mean(1)
    out = compiled(network)(params, IMAGES)
    np.testing.assert_allclose(out["features"], features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(out["logits"], features @ p["last"]["kernel"] + p["last"]["bias"], rtol=1e-3, atol=1e-4)


def test_a_block_sees_no_later_step():
    block = layer(lambda rngs: MambaBlock(8, 3, 2, jnp.dtype("float32"), rngs))
    h = np.random.default_rng(0).standard_normal((2, 9, 8)).astype(np.float32)
    ours, theirs = (np.asarray(block(x)) for x in (h, changed(h, (slice(None), 5), 2.0)))
    np.testing.assert_allclose(ours[:, :5], theirs[:, :5], atol=1e-6)
    assert np.all(np.abs(ours - theirs)[:, 5:].max((0, 2)) > 1e-5)


def test_first_rates_and_step_sizes():
    block = MambaBlock(64, 4, 2, jnp.dtype("float32"), nnx.Rngs(0))
    np.testing.assert_allclose(jnp.exp(block.log_rate[...]), np.tile([1, 2, 3, 4], (128, 1)), rtol=1e-5)
    steps = jax.nn.softplus(block.step_bias[...])
    assert float(steps.min()) > 0.99e-3
    assert float(steps.max()) < 1.01e-1


def test_it_reads_series():
    with pytest.raises(ValueError, match="needs series"):
        build("mamba", (8,))
