"""Learned simulators: recurrent world models whose dropout stays on while a policy dreams in them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, vary_with
from mlfuncs.dropout import apply_mask, bernoulli_mask

RESAMPLE = ("episode", "step")
SAMPLED_LOG_SCALES = (-10.0, 5.0)  # in sampling alone, never in the loss


def world_model_masks(
    key: Array,
    *,
    latent_size: int,
    action_size: int,
    hidden_size: int,
    batch_shape: tuple[int, ...] = (),
    input_rate: ArrayLike = 0.05,
    hidden_rate: ArrayLike = 0.05,
) -> tuple[Array, Array]:
    """Multipliers of one simulator: what of latents and hidden state it hears. Actions are always heard, unscaled.

    Args:
      key: a PRNG key.
      latent_size: Z >= 1.
      action_size: A >= 0.
      hidden_size: H >= 1.
      batch_shape: of environments, each with masks of its own.
      input_rate: probability of dropping a latent, in [0, 1). Default 0.05, as in the paper.
      hidden_rate: of dropping a hidden unit, in [0, 1).

    Returns:
      float32 multipliers [*batch_shape, Z + A], 0 or 1/(1 - rate) for latents and 1 for actions, and
      [*batch_shape, H], 0 or 1/(1 - rate).

    Raises:
      ValueError: a size too small or a rate outside [0, 1).

    References:
      Wellmer and Kwok, Dropout's Dream Land, arXiv:2109.08342.
    """
    for name, size, low in (
        ("latent_size", latent_size, 1),
        ("action_size", action_size, 0),
        ("hidden_size", hidden_size, 1),
    ):
        _checks.count(name, size, low)
    _checks.rate("input_rate", input_rate, below_one=True)
    _checks.rate("hidden_rate", hidden_rate, below_one=True)

    def multipliers(key: Array, size: int, rate: ArrayLike) -> Array:
        shape = (*batch_shape, size)
        return apply_mask(jnp.ones(shape), bernoulli_mask(key, shape, rate=rate), rate=rate)

    input_key, hidden_key = jax.random.split(key)
    latents = multipliers(input_key, latent_size, input_rate)
    inputs = jnp.concatenate([latents, jnp.ones((*batch_shape, action_size))], axis=-1)
    return inputs, multipliers(hidden_key, hidden_size, hidden_rate)


def masked_lstm_step(
    params: Mapping[str, ArrayLike],
    carry: Mapping[str, ArrayLike],
    inputs: ArrayLike,
    input_mask: ArrayLike,
    hidden_mask: ArrayLike,
    *,
    input_rate: ArrayLike = 0.05,
    hidden_rate: ArrayLike = 0.05,
) -> dict[str, Array]:
    r"""A step of an LSTM with masks on its input and its hidden state, one pair for all four gates.

    .. math:: [i\, f\, g\, o] = (m_x \odot x) K + (m_h \odot h) R + b, \quad
              c' = \sigma(f) c + \sigma(i) \tanh g, \quad h' = \sigma(o) \tanh c'

    The cell is never masked, and the returned h' is not: a constant mask is applied at each use, not compounded.

    Args:
      params: "kernel" [I, 4H], "recurrent_kernel" [H, 4H], "bias" [4H]; gates in the order i, f, g, o.
      carry: "h" and "c", [B, H].
      inputs: [B, I], latents and actions.
      input_mask: [B or 1, I]. Floats are multipliers as they are; bool masks are scaled by 1/(1 - input_rate).
      hidden_mask: [B or 1, H], likewise.
      input_rate: in [0, 1), for bool masks.
      hidden_rate: in [0, 1), for bool masks.

    Returns:
      {"h", "c"}, [B, H].

    Raises:
      ValueError: sizes that do not fit or a rate outside [0, 1).

    References:
      Wellmer and Kwok, arXiv:2109.08342; Gal and Ghahramani, arXiv:1512.05287.
    """
    _checks.rate("input_rate", input_rate, below_one=True)
    _checks.rate("hidden_rate", hidden_rate, below_one=True)
    _checks.rank("inputs", inputs, 2)
    _checks.rank("carry['h']", carry["h"], 2)
    width, hidden = np.shape(inputs)[1], np.shape(carry["h"])[1]
    expected = {"kernel": (width, 4 * hidden), "recurrent_kernel": (hidden, 4 * hidden), "bias": (4 * hidden,)}
    for name, shape in expected.items():
        if np.shape(params[name]) != shape:
            raise ValueError(f"params[{name!r}] must have shape {shape}, got {np.shape(params[name])}")
    _checks.same_shape("carry['h']", carry["h"], "carry['c']", carry["c"])
    if np.shape(inputs)[0] != np.shape(carry["h"])[0]:
        raise ValueError(f"inputs and carry must have one batch, got {np.shape(inputs)} and {np.shape(carry['h'])}")
    _checks.broadcasts("input_mask", input_mask, "inputs", np.shape(inputs))
    _checks.broadcasts("hidden_mask", hidden_mask, "carry['h']", np.shape(carry["h"]))

    def heard(x: Array, mask: ArrayLike, rate: ArrayLike) -> Array:
        mask = jnp.asarray(mask)
        return apply_mask(x, mask, rate=rate if mask.dtype == jnp.bool_ else 0.0)

    x = heard(as_float(inputs), input_mask, input_rate)
    h = heard(as_float(carry["h"]), hidden_mask, hidden_rate)
    gates = x @ as_float(params["kernel"]) + h @ as_float(params["recurrent_kernel"]) + as_float(params["bias"])
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * as_float(carry["c"]) + jax.nn.sigmoid(i) * jnp.tanh(g)
    return {"h": jax.nn.sigmoid(o) * jnp.tanh(c), "c": c}


def dream_rollout(
    key: Array,
    step: Callable[[Array, Any, Array, Any], tuple[Any, Array, Array]],
    policy: Callable[[Any], Array],
    initial: Any,
    sample_masks: Callable[[Array], Any],
    *,
    horizon: int,
    resample: str = "step",
) -> dict[str, Any]:
    """A policy in a dreamed environment.

    Many environments: `jax.vmap` over keys and initial states, or states with a batch axis and masks to match.

    Args:
      key: a PRNG key of this environment.
      step: `step(key, state, action, masks) -> (state, reward, done)`, the state like `initial`.
      policy: `policy(state) -> action`.
      initial: pytree, the first state.
      sample_masks: `sample_masks(key) -> masks`, such as `world_model_masks`.
      horizon: T >= 1 steps.
      resample: "step" draws new masks at every step, as the official code in effect does; "episode" keeps one pair.

    Returns:
      {"states" (before each action), "actions", "rewards", "done", "valid"}, each [T, ...]; valid[t] is True up to and
      including the step in which the episode ends. Later states go on evolving and must be left out.

    Raises:
      ValueError: `horizon` below 1 or an unknown `resample`.

    References:
      Wellmer and Kwok, arXiv:2109.08342.
    """
    _checks.count("horizon", horizon)
    _checks.one_of("resample", resample, RESAMPLE)
    step_key, mask_key = jax.random.split(key)
    fixed = sample_masks(mask_key) if resample == "episode" else None

    def advance(state: Any, t: Array) -> tuple[Any, dict[str, Any]]:
        masks = sample_masks(jax.random.fold_in(mask_key, t)) if resample == "step" else fixed
        action = policy(state)
        after, reward, done = step(jax.random.fold_in(step_key, t), state, action, masks)
        return after, {"states": state, "actions": action, "rewards": reward, "done": jnp.asarray(done, bool)}

    start = jax.tree.map(lambda x: vary_with(jnp.asarray(x), key), initial)
    _, records = jax.lax.scan(advance, start, jnp.arange(horizon))
    ended = records["done"].astype(jnp.int32)
    return {**records, "valid": jnp.cumsum(ended, axis=0) == ended}  # no end before this one


def _check_mixture(log_weights: ArrayLike, means: ArrayLike, log_scales: ArrayLike) -> None:
    _checks.same_shape("log_weights", log_weights, "means", means)
    _checks.same_shape("log_weights", log_weights, "log_scales", log_scales)
    if np.ndim(means) < 1 or np.shape(means)[-1] == 0:
        raise ValueError(f"means must hold at least one component on the last axis, got shape {np.shape(means)}")


def mixture_density_negative_log_likelihood(
    log_weights: ArrayLike, means: ArrayLike, log_scales: ArrayLike, targets: ArrayLike
) -> Array:
    r"""Of a mixture of normal laws for each dimension, :math:`-\log \sum_k \pi_k \mathcal{N}(z; \mu_k, \sigma_k)`.

    Args:
      log_weights: [..., Z, K], unnormalised.
      means: like `log_weights`.
      log_scales: like `log_weights`; not clipped.
      targets: [..., Z].

    Returns:
      [..., Z], in at least float32.

    Raises:
      ValueError: shapes that do not fit, or no components.

    References:
      Bishop, Mixture Density Networks (1994); Wellmer and Kwok, arXiv:2109.08342.
    """
    _check_mixture(log_weights, means, log_scales)
    if np.shape(targets) != np.shape(means)[:-1]:
        raise ValueError(f"targets must have shape {np.shape(means)[:-1]}, got {np.shape(targets)}")
    scaled = (as_float(targets)[..., None] - as_float(means)) * jnp.exp(-as_float(log_scales))
    log_normal = -0.5 * scaled**2 - as_float(log_scales) - 0.5 * np.log(2 * np.pi)
    return -jax.nn.logsumexp(jax.nn.log_softmax(as_float(log_weights)) + log_normal, axis=-1)


def sample_mixture_density(key: Array, log_weights: ArrayLike, means: ArrayLike, log_scales: ArrayLike) -> Array:
    """Draws from a mixture of normal laws for each dimension.

    Args:
      key: a PRNG key.
      log_weights: [..., Z, K], unnormalised.
      means: like `log_weights`.
      log_scales: like `log_weights`; clipped to [-10, 5] here.

    Returns:
      [..., Z].

    Raises:
      ValueError: shapes that do not fit, or no components.

    References:
      Wellmer and Kwok, arXiv:2109.08342.
    """
    _check_mixture(log_weights, means, log_scales)
    component_key, noise_key = jax.random.split(key)
    chosen = jax.random.categorical(component_key, as_float(log_weights), axis=-1)[..., None]
    mean = jnp.take_along_axis(as_float(means), chosen, axis=-1)[..., 0]
    log_scale = jnp.take_along_axis(jnp.clip(as_float(log_scales), *SAMPLED_LOG_SCALES), chosen, axis=-1)[..., 0]
    return mean + jnp.exp(log_scale) * jax.random.normal(noise_key, mean.shape)
