"""Large vocabularies in bfloat16: no loss with labels, masks or deviations holds its logits in float32."""

import jax
import jax.numpy as jnp
import pytest

from mlfuncs import distillation


@pytest.mark.parametrize(
    ("loss", "blocks"),
    [
        (distillation.plackett_luce, 24),  # with the sort's keys and places of 8 MiB
        (distillation.decoupled, 10),
        (distillation.enhanced_target_cross_entropy, 10),
        (lambda s, t, y: distillation.scaled_by_deviation(s, t), 10),
        (lambda s, t, y: distillation.binary_kullback_leibler(s, t), 10),
        (lambda s, t, y: distillation.sequence_divergence(s[None], t[None], (y == 0)[None])[0], 10),
    ],
)
def test_a_large_vocabulary_is_not_copied_to_float32(loss, blocks):
    # Compiled, not run: 1024 tokens of 32k classes in bfloat16. One gradient of 64 MiB, and some blocks of 4 MiB in float32.
    logits, labels = jax.ShapeDtypeStruct((1024, 2**15), jnp.bfloat16), jax.ShapeDtypeStruct((1024,), jnp.int32)
    gradient = jax.jit(jax.grad(lambda s, t, y: loss(s, t, y).mean()))
    memory = gradient.lower(logits, logits, labels).compile().memory_analysis()
    assert memory.temp_size_in_bytes < (64 + blocks * 4) * 2**20
