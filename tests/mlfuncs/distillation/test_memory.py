"""Large vocabularies in bfloat16: no loss with labels, masks or deviations holds its logits in float32."""

import jax
import jax.numpy as jnp
import pytest

from mlfuncs import distillation


@pytest.mark.parametrize(
    "loss",
    [
        distillation.plackett_luce,
        distillation.decoupled,
        distillation.enhanced_target_cross_entropy,
        lambda s, t, y: distillation.scaled_by_deviation(s, t),
        lambda s, t, y: distillation.binary_kullback_leibler(s, t),
        lambda s, t, y: distillation.sequence_divergence(s[None], t[None], (y == 0)[None])[0],
    ],
)
def test_a_large_vocabulary_is_not_copied_to_float32(loss):
    # Compiled, not run: 1024 tokens of 32k classes in bfloat16.
    logits, labels = jax.ShapeDtypeStruct((1024, 2**15), jnp.bfloat16), jax.ShapeDtypeStruct((1024,), jnp.int32)
    gradient = jax.jit(jax.grad(lambda s, t, y: loss(s, t, y).mean()))
    assert gradient.lower(logits, logits, labels).compile().memory_analysis().temp_size_in_bytes < 2 * 1024 * 2**15
