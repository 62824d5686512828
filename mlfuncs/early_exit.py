r"""Networks that stop early: halting probabilities of layers, the exits they imply, and the loss that trains them.

Layers are counted from 0. A halting probability is that of leaving after a layer, once it was reached.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, example_keys

LEAST = 1e-12  # a probability whose logarithm is still taken


def _check_layers(name: str, value: ArrayLike) -> None:
    """Probabilities [B, L] of at least one layer."""
    _checks.rank(name, value, 2)
    if np.shape(value)[1] == 0:
        raise ValueError(f"{name} must hold at least one layer, got shape {np.shape(value)}")
    _checks.within(name, value, 0, 1)


def _check_parts(name: str, params: Mapping[str, Any], parts: set[str]) -> None:
    if not parts <= set(params):
        raise ValueError(f"{name} must hold {' and '.join(sorted(parts))}, got {sorted(params)}")


def _check_dense(name: str, layer: Mapping[str, ArrayLike], inputs: int, outputs: int) -> None:
    _check_parts(name, layer, {"kernel", "bias"})
    for part, shape in (("kernel", (inputs, outputs)), ("bias", (outputs,))):
        if np.shape(layer[part]) != shape:
            raise ValueError(f"{name}['{part}'] must have shape {shape}, got {np.shape(layer[part])}")


def halting_logits(params: Mapping[str, Any], current: ArrayLike, previous: ArrayLike) -> Array:
    r"""Logits of leaving after a layer, from its pooled state and that of the layer before.

    Dense layers with tanh on the concatenation :math:`[h_i, h_{i-1}]`, then a dense layer to one value. No hidden layers
    give PonderNet's linear head.

    Args:
      params: {"hidden": list of {"kernel" [2D, 2D], "bias" [2D]}, "output": {"kernel" [2D, 1], "bias" [1]}}. PALBERT has
        three hidden layers.
      current: [B, D], h_i.
      previous: [B, D], h_{i-1}; zeros before the first layer.

    Returns:
      [B] logits; their sigmoid is the halting probability.

    Raises:
      ValueError: states that are not [B, D] of one shape, or a layer that is missing or does not fit them.

    References:
      Balagansky and Gavrilov, PALBERT: Teaching ALBERT to Ponder, arXiv:2204.03276.
    """
    _checks.rank("current", current, 2)
    _checks.same_shape("current", current, "previous", previous)
    width = 2 * np.shape(current)[1]
    _check_parts("params", params, {"hidden", "output"})
    for number, layer in enumerate(params["hidden"]):
        _check_dense(f"params['hidden'][{number}]", layer, width, width)
    _check_dense("params['output']", params["output"], width, 1)

    def dense(x: Array, layer: Mapping[str, ArrayLike]) -> Array:
        return x @ as_float(layer["kernel"]) + as_float(layer["bias"])

    x = jnp.concatenate([as_float(current), as_float(previous)], axis=-1)
    for layer in params["hidden"]:
        x = jnp.tanh(dense(x, layer))
    return dense(x, params["output"])[:, 0]


def _reached(halting: Array) -> Array:
    """[B, L]: the probability of getting to each layer, 1 for the first."""
    survived = jnp.cumprod(1 - halting[:, :-1], axis=1)
    return jnp.concatenate([jnp.ones_like(halting[:, :1]), survived], axis=1)


def exit_distribution(halting_probabilities: ArrayLike, *, epsilon: ArrayLike = 0.05) -> Array:
    r"""Exit probabilities of layers in training, :math:`p_i = \lambda_i \prod_{j < i} (1 - \lambda_j)`.

    Once more than 1 - epsilon has left before a layer, its probability is the constant epsilon / L, without gradient.
    What never leaves is not given to the last layer, so the sum is below 1 in general, and above it by at most epsilon
    behind such constants: `pondering` pushes it to 1.

    Args:
      halting_probabilities: [B, L] in [0, 1], L >= 1; 0 and 1 included.
      epsilon: in [0, 1). 0 gives the plain distribution, whose sum falls short of 1 by the product of all 1 - lambda.
        Default 0.05, as in the paper's code.

    Returns:
      [B, L] in [0, 1].

    Raises:
      ValueError: not [B, L], no layers, concrete probabilities outside [0, 1], or epsilon outside [0, 1).

    References:
      Balagansky and Gavrilov, arXiv:2204.03276; Banino et al., PonderNet, arXiv:2107.05407.
    """
    _check_layers("halting_probabilities", halting_probabilities)
    _checks.rate("epsilon", epsilon, below_one=True)
    halting, epsilon = as_float(halting_probabilities), as_float(epsilon)
    reached = _reached(halting)
    # Constants are added only behind the point where the plain sum has passed 1 - epsilon: it decides alone.
    return jnp.where(reached < epsilon, epsilon / halting.shape[1], halting * reached)


def geometric_prior(num_layers: int, *, rate: ArrayLike = 0.1) -> Array:
    r"""Geometric distribution over layers, :math:`r (1 - r)^i`, whose tail goes to the last one.

    Args:
      num_layers: L >= 1.
      rate: r in (0, 1), may be traced. Default 0.1, as in the paper's code.

    Returns:
      [L], of sum 1; [1] for one layer.

    Raises:
      ValueError: `num_layers` below 1, or a concrete `rate` not in (0, 1).

    References:
      Balagansky and Gavrilov, arXiv:2204.03276; Banino et al., arXiv:2107.05407.
    """
    _checks.count("num_layers", num_layers)
    _check_open("rate", rate)
    left = (1 - as_float(rate)) ** jnp.arange(num_layers)
    return left * jnp.where(jnp.arange(num_layers) < num_layers - 1, as_float(rate), 1.0)


def _check_open(name: str, value: ArrayLike) -> None:
    _checks.rank(name, value, 0)
    if _checks.is_concrete(value) and not 0 < float(np.asarray(value, np.float64)) < 1:
        raise ValueError(f"{name} must be in (0, 1), got {value!r}")


def pondering(
    layer_losses: ArrayLike, exit_probabilities: ArrayLike, prior: ArrayLike, *, beta: ArrayLike = 0.5
) -> Array:
    r"""Expected loss over exits and the divergence of the exits from a prior.

    .. math:: \sum_i p_i \ell_i + \beta \sum_i g_i (\log g_i - \log p_i)

    The divergence is KL(prior || exits), as the paper's code has it; PonderNet's text has the other direction. Exits whose
    sum is above 1, as the constants behind epsilon allow, can make it slightly negative. Logarithms of exits stop at
    1e-12, with gradient 0 below.

    Args:
      layer_losses: [B, L], of each layer's prediction.
      exit_probabilities: [B, L], p of `exit_distribution`.
      prior: [L], g >= 0, such as `geometric_prior`; entries of 0 ask nothing of their layers.
      beta: >= 0, scalar, may be traced. Default 0.5, as in the paper.

    Returns:
      [B] losses.

    Raises:
      ValueError: shapes that do not fit, no layers, concrete exits outside [0, 1], a negative prior or a negative beta.

    References:
      Balagansky and Gavrilov, arXiv:2204.03276; Banino et al., arXiv:2107.05407.
    """
    _check_layers("exit_probabilities", exit_probabilities)
    _checks.same_shape("layer_losses", layer_losses, "exit_probabilities", exit_probabilities)
    if np.shape(prior) != np.shape(exit_probabilities)[1:]:
        raise ValueError(
            f"prior must have shape {np.shape(exit_probabilities)[1:]}, one value a layer, got {np.shape(prior)}"
        )
    _checks.non_negative("prior", prior)
    _checks.rank("beta", beta, 0)
    _checks.non_negative("beta", beta)
    losses, exits, prior = as_float(layer_losses), as_float(exit_probabilities), as_float(prior)
    wanted = jnp.log(jnp.where(prior > 0, prior, 1.0))
    divergence = jnp.sum(prior * (wanted - jnp.log(jnp.maximum(exits, LEAST))), axis=1)
    return jnp.sum(exits * losses, axis=1) + as_float(beta) * divergence


def _first(leaves: Array) -> Array:
    """int32 [B]: the first True of bool [B, L], the last layer where there is none."""
    last = leaves.shape[1] - 1
    return jnp.where(jnp.any(leaves, axis=1), jnp.argmax(leaves, axis=1), last).astype(jnp.int32)


def quantile_exit(halting_probabilities: ArrayLike, *, threshold: ArrayLike = 0.5) -> Array:
    r"""Q-exit: the first layer by which the probability of having left exceeds a threshold. Deterministic.

    Args:
      halting_probabilities: [B, L] in [0, 1], L >= 1.
      threshold: q in (0, 1), may be traced; the paper's quantile is 0.5. The layer grows with q.

    Returns:
      int32 [B], 0-based: the first i with :math:`\sum_{j \le i} \lambda_j \prod_{k < j} (1 - \lambda_k) > q`, the last
      layer where there is none. NaN exceeds nothing.

    Raises:
      ValueError: not [B, L], no layers, concrete probabilities outside [0, 1], or a threshold not in (0, 1).

    References:
      Balagansky and Gavrilov, arXiv:2204.03276.
    """
    _check_layers("halting_probabilities", halting_probabilities)
    _check_open("threshold", threshold)
    halting = as_float(halting_probabilities)
    left = jnp.cumsum(halting * _reached(halting), axis=1)
    return _first(left > as_float(threshold))


def sample_exit(key: Array, halting_probabilities: ArrayLike, *, axis_name: str | None = None) -> Array:
    """PonderNet's exit: a coin at every layer, with its halting probability.

    Example i draws from (key, i) alone, so that the result does not depend on the size or the sharding of the batch.

    Args:
      key: a PRNG key.
      halting_probabilities: [B, L] in [0, 1], L >= 1.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: examples are then counted over
        the global batch.

    Returns:
      int32 [B], 0-based; the last layer where no coin says to leave. Probability 1 always leaves, 0 never does.

    Raises:
      ValueError: not [B, L], no layers, or concrete probabilities outside [0, 1].

    References:
      Banino et al., arXiv:2107.05407.
    """
    _check_layers("halting_probabilities", halting_probabilities)
    halting = as_float(halting_probabilities)
    keys = example_keys(key, halting.shape[0], axis_name)
    uniform = jax.vmap(lambda k: jax.random.uniform(k, halting.shape[1:]))(keys)
    return _first(uniform < halting)


def patience_exit(logits: ArrayLike, *, patience: int = 6) -> Array:
    """PABEE's exit: the first layer whose class is that of the layer before for the `patience`-th time in a row.

    So `patience` + 1 layers in a row predict one class there.

    Args:
      logits: [L, B, C] of all layers, L >= 1 and C >= 1; of equal ones the lower class is predicted.
      patience: >= 1. Default 6, as in the papers.

    Returns:
      int32 [B], 0-based: at least `patience`, and the last layer where none qualifies or there are no more.

    Raises:
      ValueError: not three axes, no layers or no classes, or `patience` below 1.

    References:
      Zhou et al., BERT Loses Patience: Fast and Robust Inference with Early Exit, arXiv:2006.04152.
    """
    _checks.rank("logits", logits, 3)
    if np.shape(logits)[0] == 0 or np.shape(logits)[2] == 0:
        raise ValueError(f"logits must hold at least one layer and one class, got shape {np.shape(logits)}")
    _checks.count("patience", patience)
    classes = jnp.argmax(jnp.asarray(logits), axis=-1).T
    layers = jnp.arange(classes.shape[1])
    changed = jnp.concatenate([jnp.ones_like(classes[:, :1], bool), jnp.diff(classes, axis=1) != 0], axis=1)
    since = layers - jax.lax.cummax(jnp.where(changed, layers, 0), axis=1)
    return _first(since >= patience)
