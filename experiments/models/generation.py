"""Sampling from a language model, token by token, with a cache of what it has read."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.models import Model

PAD = 0  # what stands after the end


def choose(keys: Array, logits: Array, *, temperature: float, top_k: int = 0) -> Array:
    """int32 tokens [B] from logits [B, V]: temperature 0 takes the likeliest, `top_k` > 0 draws among that many alone.

    Raises:
      ValueError: temperature < 0, or a top_k outside [0, V].
    """
    if temperature < 0:
        raise ValueError(f"temperature must be >= 0, got {temperature}")
    if not 0 <= top_k <= logits.shape[-1]:
        raise ValueError(f"top_k must be in [0, {logits.shape[-1]}], the vocabulary, got {top_k}")
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if top_k:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits / temperature).astype(jnp.int32)


def generate(
    model: Model,
    params: Any,
    keys: Array,
    prompt: Array,
    *,
    length: int,
    given: Array | None = None,
    prefill: int = 0,
    end: int = -1,
    temperature: float = 1.0,
    top_k: int = 0,
) -> Array:
    """Continues prompts; no gradient passes.

    Args:
      model: a network with `empty_cache` and `extend`.
      params: of the network.
      keys: [B], one an example: the token at place t is drawn from key and t alone.
      prompt: int [B, L].
      length: of what is returned, prompt and response together, >= L.
      given: int [B] in [1, L], how many tokens of the prompt each example is given; None: all.
      prefill: as many first tokens, given to every example, are read in one pass; 0: L without `given`, else 1.
      end: token after which there is only padding; -1: none.
      temperature: 0 takes the likeliest token, without chance.
      top_k: draws among the likeliest only; 0: among all.

    Returns:
      int32 [B, length].

    Raises:
      ValueError: an empty prompt, one longer than `length`, or a setting out of range.
    """
    batch, longest = prompt.shape
    prefill = prefill or (longest if given is None else 1)
    if not 1 <= prefill <= longest <= length:
        raise ValueError(f"1 <= prefill <= prompt <= length must hold, got {prefill}, {longest} and {length}")
    given = jnp.full(batch, longest) if given is None else given
    prompt = jnp.pad(prompt, ((0, 0), (0, length - longest))).astype(jnp.int32)

    def step(carry: Any, place: Array) -> Any:
        cache, logits, ended = carry
        drawn = choose(
            jax.vmap(jax.random.fold_in, (0, None))(keys, place), logits, temperature=temperature, top_k=top_k
        )
        token = jnp.where(place < given, prompt[:, place], jnp.where(ended, PAD, drawn))
        ended = ended | ((place >= given) & (token == end))
        out = model.apply(params, token[:, None], cache, place, method="extend")
        return (out["cache"], out["logits"][:, 0], ended), token

    cache = model.apply(params, batch, length, method="empty_cache")
    read = model.apply(params, prompt[:, :prefill], cache, 0, method="extend")
    start = (read["cache"], read["logits"][:, -1], jnp.zeros(batch, bool))
    _, tokens = jax.lax.scan(step, start, jnp.arange(prefill, length))
    return jax.lax.stop_gradient(jnp.concatenate([prompt[:, :prefill], tokens.T], axis=1))
