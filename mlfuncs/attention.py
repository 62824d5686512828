r"""Attention as a function of queries, keys and values, and ways to steer it away from a negative prompt.

Heads are an axis before the tokens, [..., heads, tokens, width], and projections are the caller's. Softmax and sums run in
at least float32; results have the precision of the values.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, expand_like, float_dtype, per_example_axes, safe_sqrt, vary_with

EPS = 1e-12  # norms at most this count as zero
CHUNK = 128  # steps of a selective scan that are held at once


def _check_tokens(query: ArrayLike, key: ArrayLike, value: ArrayLike, prefix: str = "") -> None:
    """Keys [..., Nk, D] and values [..., Nk, Dv], Nk >= 1, that fit queries [..., Nq, D]."""
    q, k, v = jnp.shape(query), jnp.shape(key), jnp.shape(value)
    if len(q) < 2:
        raise ValueError(f"query must be [..., tokens, width], got shape {q}")
    if len(k) != len(q) or k[:-2] != q[:-2] or k[-1] != q[-1]:
        raise ValueError(f"{prefix}key must have the leading axes and the width of query {q}, got shape {k}")
    if len(v) != len(k) or v[:-1] != k[:-1]:
        raise ValueError(f"{prefix}value must have the leading axes and the tokens of {prefix}key {k}, got shape {v}")
    if k[-2] == 0:
        raise ValueError(f"{prefix}key must have at least one token, got none")


def _attend(query: ArrayLike, key: ArrayLike, value: ArrayLike, mask: Array | None = None) -> Array:
    """softmax(Q K^T / sqrt(D)) V in at least float32, zeros where a query sees no key."""
    query, key, value = as_float(query), as_float(key), as_float(value)
    logits = jnp.einsum("...qd,...kd->...qk", query, key) / query.shape[-1] ** 0.5
    if mask is None:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        # A finite value, not -inf: a row without keys has finite weights and gradients, and is then set to 0.
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
        weights = jnp.where(mask, jax.nn.softmax(logits, axis=-1), 0.0)
    return jnp.einsum("...qk,...kd->...qd", weights, value)


def _result_dtype(*values: ArrayLike) -> Any:
    return jnp.result_type(*(float_dtype(jnp.asarray(value)) for value in values))


def scaled_dot_product_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, mask: ArrayLike | None = None
) -> Array:
    r"""Attention, :math:`\mathrm{softmax}(Q K^\top / \sqrt D)\, V`.

    Unlike `jax.nn.dot_product_attention` heads come before tokens, leading axes are free, and a query that sees no key
    gets zeros, not the mean of the values.

    Args:
      query: [..., Nq, D].
      key: [..., Nk, D], Nk >= 1, with the leading axes of `query`.
      value: [..., Nk, Dv].
      mask: bool, broadcasts to [..., Nq, Nk], True where a query sees a key; None: all is seen. Values that are not seen
        must be finite all the same.

    Returns:
      [..., Nq, Dv] in the precision of `value`.

    Raises:
      ValueError: shapes do not fit, no keys, or a mask that is not bool or does not broadcast.

    References:
      Vaswani et al., Attention Is All You Need, arXiv:1706.03762.
    """
    _check_tokens(query, key, value)
    if mask is not None:
        mask = jnp.asarray(mask)
        _checks.broadcasts("mask", mask, "the weights", (*jnp.shape(query)[:-1], jnp.shape(key)[-2]))
        if mask.dtype != jnp.bool_:
            raise ValueError(f"mask must be bool, True where a key is seen, got {mask.dtype}")
    return _attend(query, key, value, mask).astype(_result_dtype(value))


def _key_mask(name: str, mask: ArrayLike | None, key: ArrayLike) -> Array | None:
    """A bool mask [B, Nk] of tokens, with axes for heads and queries."""
    if mask is None:
        return None
    mask, keys = jnp.asarray(mask), jnp.shape(key)
    if mask.shape != (keys[0], keys[-2]):
        raise ValueError(f"{name} must have shape {(keys[0], keys[-2])}, one value per token, got {mask.shape}")
    if mask.dtype != jnp.bool_:
        raise ValueError(f"{name} must be bool, True for tokens that are kept, got {mask.dtype}")
    return mask.reshape(keys[0], *(1,) * (len(keys) - 2), keys[-2])


def negative_away_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    negative_key: ArrayLike,
    negative_value: ArrayLike,
    *,
    scale: ArrayLike,
    mask: ArrayLike | None = None,
    negative_mask: ArrayLike | None = None,
) -> Array:
    r"""Negative-away steer attention (NASA): a negative prompt that works in one step and without guidance.

    .. math:: \mathrm{softmax}(Q K_+^\top / \sqrt D)\, V_+ - \alpha\; \mathrm{softmax}(Q K_-^\top / \sqrt D)\, V_-

    Takes the place of cross-attention, before the output projection. Two softmaxes: one over both prompts would mix
    them. The weights sum to 1 - alpha and nothing is renormalised, so a large `scale` drives the features out of
    the range that later layers know; results are best between 0.5 and 1 at most.

    Args:
      query: [B, ..., Nq, D] of image features, usually [B, heads, Nq, D].
      key: [B, ..., Nk, D] of the positive prompt.
      value: [B, ..., Nk, Dv].
      negative_key: [B, ..., Nn, D] of the negative prompt, through the same projections; Nn may differ from Nk.
      negative_value: [B, ..., Nn, Dv].
      scale: alpha, scalar or [B]. The paper uses 0.1 to 0.5 without training, depending on the model, and uniform
        values in [0, 1] in training. 0 is plain attention; below 0 the negative prompt attracts.
      mask: bool [B, Nk], False for the padding of the positive prompt.
      negative_mask: bool [B, Nn], the same for the negative prompt. A prompt that is all padding contributes zeros.

    Returns:
      [B, ..., Nq, Dv] in the precision of the values.

    Raises:
      ValueError: shapes do not fit, a prompt without tokens, masks not bool or of other shapes, `scale` not scalar or [B].

    References:
      Nguyen et al., SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance, arXiv:2412.02687.
    """
    if jnp.ndim(query) < 3:
        raise ValueError(f"query must be [batch, ..., tokens, width], got shape {jnp.shape(query)}")
    _check_tokens(query, key, value)
    _check_tokens(query, negative_key, negative_value, "negative_")
    _check_same_width(value, "negative_value", negative_value)
    _checks.scalar_or_per_example("scale", scale, jnp.shape(query)[0])
    towards = _attend(query, key, value, _key_mask("mask", mask, key))
    away = _attend(query, negative_key, negative_value, _key_mask("negative_mask", negative_mask, negative_key))
    return (towards - expand_like(as_float(scale), away) * away).astype(_result_dtype(value, negative_value))


def _check_same_width(value: ArrayLike, name: str, other: ArrayLike) -> None:
    if jnp.shape(value)[-1] != jnp.shape(other)[-1]:
        raise ValueError(f"{name} must have the width of value, {jnp.shape(value)[-1]}, got {jnp.shape(other)[-1]}")


def _merge_heads(x: Array) -> Array:
    """[B, H, N, D] -> [B, N, H * D]."""
    return jnp.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)


def _norm(x: Array) -> Array:
    """Norm [B, 1, ...] over all of an example, with gradient 0 at 0."""
    return safe_sqrt(jnp.sum(x**2, axis=per_example_axes(x), keepdims=True))


def _match_norm(x: Array, norm: Array, gain: Array, bias: Array) -> Array:
    """`x` with the given norm per example, then gain and bias; the bias alone where `x` is zero."""
    own = _norm(x)
    usable = ~(own <= EPS)  # written so that NaN stays on the branch that computes with it
    return gain * jnp.where(usable, norm * (x / jnp.where(usable, own, 1.0)), 0.0) + bias


def _per_channel(name: str, value: ArrayLike, channels: int) -> Array:
    if jnp.shape(value) not in ((), (channels,)):
        raise ValueError(f"{name} must be a scalar or have shape ({channels},), got {jnp.shape(value)}")
    return as_float(value)


def negative_offset_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    negative_key: ArrayLike,
    negative_value: ArrayLike,
    extra_key: ArrayLike | None = None,
    extra_value: ArrayLike | None = None,
    *,
    negative_gain: ArrayLike = 1.0,
    negative_bias: ArrayLike = 0.0,
    extra_gain: ArrayLike = 1.0,
    extra_bias: ArrayLike = 0.0,
    strength: ArrayLike = 1.0,
    mask: ArrayLike | None = None,
    negative_mask: ArrayLike | None = None,
) -> Array:
    r"""Cross-attention with an adapter's negative-positive offset (SpeedUpNet), heads merged.

    .. math:: O + s\,(E' - N'), \qquad
              N' = g_n \frac{\|O\|}{\|N\|} N + b_n, \qquad E' = g_e \frac{\|O\|}{\|E\|} E + b_e

    with O, N and E the attention to the prompt, to the negative prompt, and to the prompt through the adapter's own
    projections. Norms run over tokens and channels of an example; the official code takes them over the whole batch,
    which is the same for one example. Where both branches are equal, as at the start of training, this is the base layer.

    Args:
      query: [B, H, Nq, Dh] of image features.
      key: [B, H, Nk, Dh] of the prompt, through the frozen projections.
      value: [B, H, Nk, Dv].
      negative_key: [B, H, Nn, Dh] of the negative prompt, through the adapter's projections.
      negative_value: [B, H, Nn, Dv].
      extra_key: [B, H, Ne, Dh] of the prompt, through the adapter's projections; None: without E'.
      extra_value: [B, H, Ne, Dv]; None where `extra_key` is.
      negative_gain: g_n, scalar or [C] with C = H * Dv; starts at 1.
      negative_bias: b_n, likewise; starts at 0.
      extra_gain: g_e, likewise; starts at 1.
      extra_bias: b_e, likewise; starts at 0.
      strength: s, scalar or [B]; 0 is the base layer, 1 the trained adapter. The official code has no such factor.
      mask: bool [B, Nk], False for the padding of the prompt; `extra_key` has the same, so that Ne = Nk where it is given.
        The official code has no masks and attends to padding; None does too.
      negative_mask: bool [B, Nn], the same for the negative prompt. A prompt that is all padding contributes its bias.

    Returns:
      [B, Nq, C] in the precision of the values. A branch of norm at most 1e-12 contributes its bias alone.

    Raises:
      ValueError: arrays not [B, H, N, D] or that do not fit, a prompt without tokens, one of `extra_key` and `extra_value`
        without the other, gains or biases not scalar or [C], `strength` not scalar or [B], masks not bool or of
        other shapes.

    References:
      Chai et al., SpeedUpNet: A Plug-and-Play Adapter Network for Accelerating Text-to-Image Diffusion Models,
      arXiv:2312.08887.
    """
    _checks.rank("query", query, 4)
    _check_tokens(query, key, value)
    _check_tokens(query, negative_key, negative_value, "negative_")
    _check_same_width(value, "negative_value", negative_value)
    if (extra_key is None) != (extra_value is None):
        missing = "extra_key" if extra_key is None else "extra_value"
        raise ValueError(f"extra_key and extra_value must be given together, got no {missing}")
    batch, heads = jnp.shape(query)[:2]
    _checks.scalar_or_per_example("strength", strength, batch)
    channels = heads * jnp.shape(value)[-1]
    negative = (
        _per_channel("negative_gain", negative_gain, channels),
        _per_channel("negative_bias", negative_bias, channels),
    )
    extra = _per_channel("extra_gain", extra_gain, channels), _per_channel("extra_bias", extra_bias, channels)

    base = _merge_heads(_attend(query, key, value, _key_mask("mask", mask, key)))
    norm = _norm(base)
    away = _attend(query, negative_key, negative_value, _key_mask("negative_mask", negative_mask, negative_key))
    offset = -_match_norm(_merge_heads(away), norm, *negative)
    dtypes = [value, negative_value]
    if extra_key is not None and extra_value is not None:
        _check_tokens(query, extra_key, extra_value, "extra_")
        _check_same_width(value, "extra_value", extra_value)
        towards = _attend(query, extra_key, extra_value, _key_mask("mask", mask, extra_key))
        offset += _match_norm(_merge_heads(towards), norm, *extra)
        dtypes.append(extra_value)
    return (base + expand_like(as_float(strength), offset) * offset).astype(_result_dtype(*dtypes))


def _check_dense(params: dict[str, Any], name: str, inputs: int, outputs: int) -> tuple[Array, Array]:
    layer = params.get(name, {})
    if set(layer) != {"kernel", "bias"}:
        raise ValueError(f"params must hold {name!r} with a kernel and a bias, got {sorted(layer)}")
    if jnp.shape(layer["kernel"]) != (inputs, outputs) or jnp.shape(layer["bias"]) != (outputs,):
        raise ValueError(
            f"params[{name!r}] must be a kernel {(inputs, outputs)} and a bias {(outputs,)}, "
            f"got {jnp.shape(layer['kernel'])} and {jnp.shape(layer['bias'])}"
        )
    return as_float(layer["kernel"]), as_float(layer["bias"])


def feature_gate(params: dict[str, Any], features: ArrayLike, *, heads: int) -> Array:
    """A soft mask of features that they choose themselves, by self-attention between them.

    Each of the d features becomes a token of width h by one dense layer from all of them; tokens attend to one another and
    each gives the logit of its mask. Features of a frozen network times this mask, with the mask alone trained, make a
    teacher that speaks the student's language (a specialised teacher). The first layer holds d^2 h weights: for d up to
    about 128. For maps mask channels: pool them first.

    Args:
      params: {"embed": {"kernel" [d, d h], "bias" [d h]}, "query", "key", "value", "out": {"kernel" [h, h], "bias" [h]},
        "score": {"kernel" [h, 1], "bias" [1]}}. The paper has h = floor(d / (2 heads)) heads.
      features: f [B, d].
      heads: >= 1, divides h. The paper has 3.

    Returns:
      mask [B, d] in (0, 1), in the precision of `features`.

    Raises:
      ValueError: features not [B, d], a layer that is missing or does not fit, or heads that do not divide h.

    References:
      Li et al., MST-Distill: Mixture of Specialized Teachers for Cross-Modal Knowledge Distillation, arXiv:2507.07015.
    """
    _checks.rank("features", features, 2)
    _checks.count("heads", heads)
    batch, tokens = jnp.shape(features)
    width = jnp.shape(params["score"]["kernel"])[0] if "score" in params else 0
    if width == 0 or width % heads:
        raise ValueError(f"heads must divide the width of a token, params['score']'s {width} inputs, got {heads}")
    layers = {"embed": _check_dense(params, "embed", tokens, tokens * width)}
    layers |= {name: _check_dense(params, name, width, width) for name in ("query", "key", "value", "out")}
    layers["score"] = _check_dense(params, "score", width, 1)

    def dense(name: str, x: Array) -> Array:
        kernel, bias = layers[name]
        return x @ kernel + bias

    x = dense("embed", as_float(features)).reshape(batch, tokens, width)
    query, key, value = (
        jnp.moveaxis(dense(name, x).reshape(batch, tokens, heads, -1), 2, 1) for name in ("query", "key", "value")
    )
    scores = dense("score", dense("out", _merge_heads(_attend(query, key, value))))[..., 0]
    return jax.nn.sigmoid(scores).astype(_result_dtype(features))


def selective_scan(
    x: ArrayLike,
    delta: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    c: ArrayLike,
    *,
    skip: ArrayLike | None = None,
    gate: ArrayLike | None = None,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = True,
    initial_state: ArrayLike | None = None,
    return_state: bool = False,
) -> Array | tuple[Array, Array]:
    r"""The selective state space of Mamba: a linear recurrence whose step size, input and output depend on the token.

    .. math:: h_t = e^{\Delta_t A} \circ h_{t-1} + (\Delta_t x_t) \otimes B_t, \quad y_t = h_t C_t + D \circ x_t

    with :math:`\Delta_t = \mathrm{softplus}(\delta_t + \mathrm{bias})`, and y times silu(gate) at the end. A is discretised
    exactly, B by an Euler step, as in the official code. An associative scan in float32 inside chunks of 128 steps, one
    after the other and computed again in the backward pass: logarithmic depth inside a chunk, and of the states
    [B, L, D, N] only one chunk is held.

    Args:
      x: [B, L, D], L >= 1.
      delta: [B, L, D], before bias and softplus.
      a: A [D, N]. Mamba has -exp(A_log); entries above 0 make the state grow.
      b: [B, L, N].
      c: [B, L, N].
      skip: D [D]; None: without that term.
      gate: [B, L, D]; None: without.
      delta_bias: [D]; None: 0.
      delta_softplus: whether step sizes go through softplus.
      initial_state: [B, D, N]; None: zeros.
      return_state: whether the last state is returned too.

    Returns:
      y [B, L, D] in the precision of `x`, or (y, state [B, D, N] in at least float32).

    Raises:
      ValueError: shapes that do not fit.

    References:
      Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv:2312.00752.
    """
    _check_scan(x, delta, a, b, c, skip, gate, delta_bias, initial_state)
    steps = as_float(delta) if delta_bias is None else as_float(delta) + as_float(delta_bias)
    steps = jax.nn.softplus(steps) if delta_softplus else steps
    inputs = as_float(x)
    start = jnp.zeros((inputs.shape[0], *jnp.shape(a)), jnp.float32) if initial_state is None else initial_state
    # In one precision, that of the widest: a scan keeps the dtype of what it carries.
    values = [as_float(value) for value in (steps, steps * inputs, a, b, c, start)]
    dtype = jnp.result_type(*values)
    y, state = _chunked_scan(*(value.astype(dtype) for value in values))
    y = y if skip is None else y + as_float(skip) * inputs
    y = y if gate is None else y * jax.nn.silu(as_float(gate))
    y = y.astype(float_dtype(jnp.asarray(x)))
    return (y, state) if return_state else y


def _check_scan(
    x: ArrayLike,
    delta: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    c: ArrayLike,
    skip: ArrayLike | None,
    gate: ArrayLike | None,
    delta_bias: ArrayLike | None,
    initial_state: ArrayLike | None,
) -> None:
    _checks.rank("x", x, 3)
    _checks.rank("a", a, 2)
    (batch, length, width), size = jnp.shape(x), jnp.shape(a)[1]
    if length == 0:
        raise ValueError(f"x must hold at least one step, got shape {jnp.shape(x)}")
    expected = {
        "delta": (delta, (batch, length, width)),
        "a": (a, (width, size)),
        "b": (b, (batch, length, size)),
        "c": (c, (batch, length, size)),
        "skip": (skip, (width,)),
        "gate": (gate, (batch, length, width)),
        "delta_bias": (delta_bias, (width,)),
        "initial_state": (initial_state, (batch, width, size)),
    }
    for name, (value, shape) in expected.items():
        if value is not None and jnp.shape(value) != shape:
            raise ValueError(f"{name} must have shape {shape} for x {jnp.shape(x)}, got {jnp.shape(value)}")


def _chunked_scan(steps: Array, scaled: Array, rates: Array, b: Array, c: Array, start: Array) -> tuple[Array, Array]:
    """y [B, L, D] and the last state, chunk by chunk."""

    def joined(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return second[0] * first[0], second[0] * first[1] + second[1]

    @jax.checkpoint
    def chunk(state: Array, values: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        step, scaled_input, into, out = values
        decay = jnp.exp(step[..., None] * rates)
        added = scaled_input[..., None] * into[:, :, None, :]
        decays, states = jax.lax.associative_scan(joined, (decay, added), axis=1)
        states = states + decays * state[:, None]
        return states[:, -1], jnp.einsum("bldn,bln->bld", states, out, precision=jax.lax.Precision.HIGHEST)

    batch, length, width = steps.shape
    chunks = -(-length // CHUNK)
    rest = -length % chunks
    arrays = (steps, scaled, b, c)
    for array in (*arrays, rates):
        start = vary_with(start, array)  # the carry of a loop must vary over every mesh axis that its values do

    def split(array: Array) -> Array:
        # Steps of size 0 leave the state as it is.
        array = jnp.pad(array, ((0, 0), (0, rest), (0, 0)))
        return jnp.moveaxis(array.reshape(batch, chunks, -1, array.shape[-1]), 1, 0)

    state, y = jax.lax.scan(chunk, start, tuple(split(array) for array in arrays))
    return jnp.moveaxis(y, 0, 1).reshape(batch, -1, width)[:, :length], state
