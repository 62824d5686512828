"""Gradient leakage: what shared gradients tell of the examples they were computed from."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks, dropout, vision
from mlfuncs._arrays import as_float, safe_sqrt

if TYPE_CHECKING:
    import optax

Apply = Callable[[Any, Array, Any], Array]  # (params, inputs, masks) -> logits
Loss = Callable[[Array, Array], Array]  # (logits, labels) -> scalar


def gradient_cosine_distance(gradients: Any, target_gradients: Any, *, eps: float = 1e-8) -> Array:
    r"""One minus the cosine between two gradients, :math:`1 - \langle g, g^* \rangle / (\|g\| \|g^*\| + \epsilon)`.

    One cosine over all leaves together, not a mean of those of layers.

    Args:
      gradients: pytree.
      target_gradients: pytree of the same structure and shapes.
      eps: > 0.

    Returns:
      scalar in [0, 2]; 1 where a gradient is zero.

    Raises:
      ValueError: structures or shapes that differ.

    References:
      Geiping et al., Inverting Gradients, arXiv:2003.14053; Scheliga et al., arXiv:2208.06163.
    """
    _checks.same_trees("gradients", gradients, "target_gradients", target_gradients)
    _checks.positive("eps", eps)
    pairs = list(zip(jax.tree.leaves(gradients), jax.tree.leaves(target_gradients), strict=True))
    sums = [
        (jnp.sum(as_float(a) * as_float(b)), jnp.sum(as_float(a) ** 2), jnp.sum(as_float(b) ** 2)) for a, b in pairs
    ]
    inner, ours, theirs = (sum((s[i] for s in sums), jnp.float32(0)) for i in range(3))
    return 1 - inner / (safe_sqrt(ours) * safe_sqrt(theirs) + eps)


def _mean_cross_entropy(logits: Array, labels: Array) -> Array:
    import optax  # here, so that `import mlfuncs` costs no more than `import jax`

    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def dropout_inversion_objective(
    apply: Apply,
    params: Any,
    target_gradients: Any,
    inputs: ArrayLike,
    masks: Any,
    labels: ArrayLike,
    *,
    rate: ArrayLike,
    tv_weight: float = 1e-5,
    mask_weight: float = 1e-4,
    loss_fn: Loss | None = None,
) -> Array:
    r"""What an attacker minimises who knows gradients, labels and dropout rate, but neither images nor masks.

    .. math:: D(\nabla_\theta L, g^*) + w_{tv} \overline{\operatorname{TV}(x)} +
              w_m \sum_l |1 - \overline{m_l} - r|

    Args:
      apply: `apply(params, inputs, masks) -> logits [B, C]`; it multiplies activations by m / (1 - r) itself.
      params: pytree of the model.
      target_gradients: like `params`, what the client shared.
      inputs: [B, H, W, C] guessed images.
      masks: pytree of relaxed masks in [0, 1], one for each layer and example; empty: a plain inversion.
      labels: int [B].
      rate: r in [0, 1).
      tv_weight: >= 0.
      mask_weight: >= 0.
      loss_fn: `loss_fn(logits, labels) -> scalar`; None: mean cross-entropy.

    Returns:
      scalar. Gradients with respect to inputs and masks pass through that of the model: it must be twice differentiable
      (GELU, not ReLU).

    Raises:
      ValueError: trees that differ, `rate` outside [0, 1), negative weights, inputs not [B, H, W, C] or labels not [B].

    References:
      Scheliga, Mäder and Seeland, Dropout is NOT All You Need to Prevent Gradient Leakage, arXiv:2208.06163.
    """
    _checks.rank("inputs", inputs, 4)
    _checks.per_example("labels", labels, np.shape(inputs)[0])
    _checks.non_negative("tv_weight", tv_weight)
    _checks.non_negative("mask_weight", mask_weight)
    _checks.same_trees("params", params, "target_gradients", target_gradients)
    inputs, labels, loss = jnp.asarray(inputs), jnp.asarray(labels), loss_fn or _mean_cross_entropy
    penalty = dropout.mask_rate_penalty(masks, rate)
    gradients = jax.grad(lambda params: loss(apply(params, inputs, masks), labels))(params)
    distance = gradient_cosine_distance(gradients, target_gradients)
    return distance + tv_weight * jnp.mean(vision.total_variation(inputs)) + mask_weight * penalty


def _is_shape(node: Any) -> bool:
    return isinstance(node, (tuple, list)) and bool(node) and all(isinstance(n, (int, np.integer)) for n in node)


def invert_gradients(
    key: Array,
    apply: Apply,
    params: Any,
    target_gradients: Any,
    labels: ArrayLike,
    *,
    input_shape: Sequence[int],
    mask_shapes: Any = (),
    rate: ArrayLike = 0.0,
    num_steps: int = 20_000,
    learning_rate: "float | optax.Schedule" = 0.1,
    patience: int = 800,
    bounds: tuple[ArrayLike, ArrayLike] = (0.0, 1.0),
    signed: bool = True,
    optimize_masks: bool = True,
    masks: Any = None,
    tv_weight: float = 1e-5,
    mask_weight: float = 1e-4,
    loss_fn: Loss | None = None,
    history: int = 100,
) -> dict[str, Any]:
    """Reconstructs images, and the dropout masks with them, from a shared gradient: the dropout inversion attack.

    Adam on both; of the image gradient only the sign is used; after each step images are clipped to `bounds` and masks to
    [0, 1]. The best iterate is returned. `jax.vmap` over keys makes several trials.

    Args:
      key: a PRNG key of the start: images normal, masks as the client would draw them.
      apply: as in `dropout_inversion_objective`.
      params: pytree of the model.
      target_gradients: like `params`.
      labels: int [B], known to the attacker.
      input_shape: (B, H, W, C).
      mask_shapes: pytree of shapes (tuples of ints) of the masks, batch included; (): no masks, a plain inversion.
      rate: in [0, 1), a number or a traced scalar. At the number 0 masks stay 1.
      num_steps: >= 1. Default 20,000, as in the paper.
      learning_rate: of Adam, a number or an `optax` schedule. Default 0.1.
      patience: steps without a lower objective after which the rate is cut to a tenth, again and again. Default 800.
      bounds: least and greatest pixel; arrays [C] where channels were normalised.
      signed: whether only signs of the image gradient are used.
      optimize_masks: whether masks are found too. False with `masks` given: the attacker knows them. False without: dropout
        is ignored, the baseline (masks of 1 - rate, which the 1 / (1 - rate) of `apply` makes 1).
      masks: pytree to start from, in place of random ones.
      tv_weight: >= 0.
      mask_weight: >= 0.
      loss_fn: as in `dropout_inversion_objective`.
      history: how many objectives, evenly spaced, are returned.

    Returns:
      {"inputs" [B, H, W, C], "masks", "objective" scalar, "history" [history or num_steps, the lesser]}.

    Raises:
      ValueError: as `dropout_inversion_objective`; `num_steps`, `patience` or `history` below 1, or bounds out of order.

    References:
      Scheliga et al., arXiv:2208.06163.
    """
    _checks.count("num_steps", num_steps)
    _checks.count("history", history)
    _checks.count("patience", patience)
    _checks.ordered("bounds[0]", bounds[0], "bounds[1]", bounds[1])
    if len(input_shape) != 4:
        raise ValueError(f"input_shape must be (B, H, W, C), got {tuple(input_shape)}")
    _checks.per_example("labels", labels, input_shape[0])
    _checks.rate("rate", rate, below_one=True)
    if _checks.is_concrete(rate) and np.asarray(rate) == 0:
        optimize_masks = False  # all masks are 1: a plain inversion
    input_key, mask_key = jax.random.split(key)
    if masks is None:
        shapes, tree = jax.tree.flatten(mask_shapes, is_leaf=_is_shape)
        keys = jax.random.split(mask_key, max(1, len(shapes)))
        drawn = [
            dropout.bernoulli_mask(k, shape, rate=rate, dtype=jnp.float32)
            if optimize_masks
            else jnp.full(shape, 1 - as_float(rate))
            for k, shape in zip(keys, shapes, strict=False)
        ]
        masks = jax.tree.unflatten(tree, drawn)
    masks = jax.tree.map(as_float, masks)

    def objective(variables: dict[str, Any]) -> Array:
        return dropout_inversion_objective(
            apply,
            params,
            target_gradients,
            variables["inputs"],
            variables["masks"] if optimize_masks else masks,
            labels,
            rate=rate,
            tv_weight=tv_weight,
            mask_weight=mask_weight,
            loss_fn=loss_fn,
        )

    import optax
    import optax.contrib

    optimizer = optax.chain(
        optax.adam(learning_rate), optax.contrib.reduce_on_plateau(factor=0.1, patience=patience, rtol=0.0, atol=1e-12)
    )

    def step(carry: tuple[Any, Any, Any, Array], _: None) -> tuple[tuple[Any, Any, Any, Array], Array]:
        variables, moments, best, least = carry
        value, gradients = jax.value_and_grad(objective)(variables)
        better = value < least
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), variables, best)
        if signed:
            gradients = {**gradients, "inputs": jnp.sign(gradients["inputs"])}
        updates, moments = optimizer.update(gradients, moments, value=value)
        moved = optax.apply_updates(variables, updates)
        moved = {"inputs": jnp.clip(moved["inputs"], *bounds), "masks": dropout.project_mask(moved["masks"])}
        return (moved, moments, best, jnp.where(better, value, least)), value

    start = {"inputs": jax.random.normal(input_key, tuple(input_shape)), "masks": masks if optimize_masks else ()}
    carry = (start, optimizer.init(start), start, jnp.float32(jnp.inf))
    (last, _, best, least), values = jax.lax.scan(step, carry, None, length=num_steps)
    final = objective(last)
    better = final < least
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), last, best)
    shown = np.linspace(0, num_steps - 1, min(history, num_steps)).round().astype(int)
    return {
        "inputs": best["inputs"],
        "masks": best["masks"] if optimize_masks else masks,
        "objective": jnp.minimum(final, least),
        "history": values[shown],
    }
