"""What steers a sampler: guidance by a condition, and search for the latent whose sample meets a target."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, expand_like, per_example_axes, safe_sqrt, vary_with

if TYPE_CHECKING:
    import optax

__all__ = ["classifier_free_guidance", "masked_reconstruction_loss", "optimize_latent", "sample_guidance_scale"]


def classifier_free_guidance(unconditional: ArrayLike, conditional: ArrayLike, *, scale: ArrayLike) -> Array:
    r"""Guided prediction, :math:`u + w (c - u)`.

    For noise predictions and clean estimates alike. Scale 0 is the unconditional prediction, 1 the conditional one,
    more than 1 extrapolates; other code bases write 1 + w for our w. A negative prompt's prediction takes the place of
    `unconditional`.

    Args:
      unconditional: u, [B, ...].
      conditional: c, like `unconditional`.
      scale: w, scalar or [B]; any sign.

    Returns:
      Like `unconditional`, in at least float32.

    Raises:
      ValueError: shapes do not fit.

    References:
      Ho and Salimans, Classifier-Free Diffusion Guidance, arXiv:2207.12598.
    """
    _checks.same_shape("unconditional", unconditional, "conditional", conditional)
    _checks.batched("unconditional", unconditional)
    _checks.scalar_or_per_example("scale", scale, np.shape(unconditional)[0])
    unconditional = as_float(unconditional)
    return unconditional + expand_like(as_float(scale), unconditional) * (as_float(conditional) - unconditional)


def sample_guidance_scale(key: Array, shape: tuple[int, ...], *, low: ArrayLike = 0.5, high: ArrayLike = 4.0) -> Array:
    r"""Draws guidance scales :math:`w \sim U[low, high)`, for score distillation that one fixed scale makes unstable.

    Teacher and critic of an example must share its scale. `jax.vmap` over keys gives draws that depend on the example
    alone.

    Args:
      key: a PRNG key.
      shape: static shape of the result, () for a scalar.
      low: least scale, a scalar. Below 1 guidance interpolates, on purpose. The paper's default.
      high: greatest scale, a scalar, >= low. The paper's default for Stable Diffusion; 3 for PixArt-alpha.

    Returns:
      float32 scales of the given shape.

    Raises:
      ValueError: low > high, or one is not a scalar.

    References:
      Nguyen et al., SNOOPI: Supercharged One-step Diffusion Distillation with Proper Guidance, arXiv:2412.02687.
    """
    for name, value in (("low", low), ("high", high)):
        _checks.rank(name, value, 0)
    _checks.ordered("low", low, "high", high, strict=False)
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def masked_reconstruction_loss(x: ArrayLike, target: ArrayLike, mask: ArrayLike) -> Array:
    r"""Mean squared error over the known part of an example, :math:`\sum m (x - y)^2 / \max(\sum m, 1)`.

    The control loss of inpainting and outpainting.

    Args:
      x: [B, ...] samples.
      target: y, like `x`; where the mask is 0 its values do not count, NaN included.
      mask: m >= 0, bool or float, broadcasts against `x` by its last axes; 1 where the target is known.

    Returns:
      [B] losses, 0 where the mask is empty, with gradients that vanish outside the mask.

    Raises:
      ValueError: shapes do not fit, or a concrete mask has a negative value.

    References:
      Novack et al., DITTO: Diffusion Inference-Time T-Optimization for Music Generation, arXiv:2401.12179.
    """
    _checks.same_shape("x", x, "target", target)
    _checks.batched("x", x)
    _checks.broadcasts("mask", mask, "x", np.shape(x))
    _checks.non_negative("mask", mask)
    x, target = as_float(x), as_float(target)
    mask = jnp.broadcast_to(as_float(mask), x.shape)
    residual = jnp.where(mask != 0, x - target, 0.0)
    axes = per_example_axes(x)
    return jnp.sum(mask * residual**2, axis=axes) / jnp.maximum(jnp.sum(mask, axis=axes), 1.0)


def _norms(x: Array) -> Array:
    return expand_like(safe_sqrt(jnp.sum(x**2, axis=per_example_axes(x))), x)


def optimize_latent(
    sample_fn: Callable[[Array], Array],
    loss_fn: Callable[[Array], Array],
    latent: ArrayLike,
    *,
    num_steps: int = 70,
    learning_rate: "float | Array | optax.Schedule" = 5e-3,
    optimizer: "optax.GradientTransformation | None" = None,
    renormalize: bool = False,
) -> dict[str, Array]:
    r"""Searches the latent whose sample meets a control, :math:`\arg\min_z L(\mathrm{sample}(z))`.

    With a sampler of many steps this is DITTO; with the one-step sampler of a distilled model, DITTO-2, whose result is
    then decoded in several steps (`consistency.trajectory_sample`). The losses of a batch are summed, so that a latent's
    path does not depend on its neighbours. Every step is taken; nothing stops early.

    Args:
      sample_fn: latent [B, ...] -> samples, differentiable. Wrap its steps in `jax.checkpoint` where it has several.
      loss_fn: samples -> [B], the control loss of each example.
      latent: [B, ...] where to start: unit normal, or scaled noise, as `sample_fn` takes it.
      num_steps: K >= 1. DITTO's default; it takes 150 for melody and structure.
      learning_rate: of Adam, > 0, or a schedule; not used where an optimizer is given. DITTO's default.
      optimizer: an optax transformation; None: Adam. One that mixes entries, such as clipping by global norm, makes
        examples depend on each other.
      renormalize: whether each latent is rescaled after every update to the norm that it began with: a latent that drifts
        from it is no likely noise any more. Off, as in the paper. Under Adam a control that no latent of that norm meets
        then draws the latent to the sign pattern of its gradient, away from the best one of that norm; SGD finds it.

    Returns:
      {"latent": like `latent`, in at least float32, "losses": [num_steps, B], before each update}.

    Raises:
      ValueError: num_steps < 1, learning_rate <= 0, latent without batch axis, or loss_fn that does not give [B].

    References:
      Novack et al., arXiv:2401.12179; DITTO-2: Distilled Diffusion Inference-Time T-Optimization for Music Generation,
      arXiv:2405.20289.
    """
    _checks.batched("latent", latent)
    _checks.count("num_steps", num_steps)
    if not callable(learning_rate):
        _checks.positive("learning_rate", learning_rate)
    if optimizer is None:
        import optax  # here, so that `import mlfuncs` costs no more than `import jax`

        optimizer = optax.adam(learning_rate)
    update = optimizer.update
    start = as_float(latent)

    def total(latent: Array) -> tuple[Array, Array]:
        losses = loss_fn(sample_fn(latent))
        _checks.per_example("the result of loss_fn", losses, latent.shape[0])
        return jnp.sum(losses), as_float(losses)

    def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], Array]:
        latent, state = carry
        gradient, losses = jax.grad(total, has_aux=True)(latent)
        change, state = update(gradient, state, latent)
        latent = latent + jnp.asarray(change)
        if renormalize:
            norms = _norms(latent)
            latent = latent * jnp.where(norms > 0, _norms(start) / jnp.where(norms > 0, norms, 1.0), 1.0)
        return (latent, state), losses

    # Inside shard_map moments vary over the mesh as the latent does.
    state = jax.tree.map(
        lambda leaf: vary_with(leaf, start) if jnp.shape(leaf) == start.shape else leaf, optimizer.init(start)
    )
    carry: tuple[Array, Any] = (start, state)
    (found, _), losses = jax.lax.scan(step, carry, None, length=num_steps)
    return {"latent": found, "losses": losses}
