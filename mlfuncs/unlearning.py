"""Unlearning: making a trained model forget data, a class or a concept."""

from collections.abc import Callable

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks, score_distillation
from mlfuncs._arrays import as_float, example_keys, expand_like

ConditionalDenoiser = Callable[[Array, Array, Array], Array]  # (x [B, ...], sigma [B], labels [B]) -> clean estimate

__all__ = ["override_labels", "sample_override_labels", "score_forgetting_loss"]


def _check_labels(name: str, labels: ArrayLike) -> None:
    _checks.rank(name, labels, 1)
    _checks.integers(name, labels)


def _check_class(name: str, value: ArrayLike) -> None:
    _checks.rank(name, value, 0)
    _checks.integers(name, value)


def override_labels(labels: ArrayLike, forget_label: ArrayLike, *, override: ArrayLike) -> Array:
    """Labels with those of the forgotten class replaced: what the teacher is told of the samples to forget.

    Args:
      labels: [B] integers.
      forget_label: integer scalar, the class to forget.
      override: integer scalar or [B], the safe class instead, never `forget_label`; [B] for one an example, such as a
        classifier's best other class. The paper's configuration has 1 for forgetting 0.

    Returns:
      [B] labels, in the dtype of `labels`.

    Raises:
      ValueError: labels not [B] integers, forget_label not an integer scalar, override of another shape or dtype, or a
        concrete override equal to forget_label.

    References:
      Chen et al., Score Forgetting Distillation, arXiv:2409.11219.
    """
    _check_labels("labels", labels)
    _check_class("forget_label", forget_label)
    labels = jnp.asarray(labels)
    _checks.scalar_or_per_example("override", override, labels.shape[0])
    _checks.integers("override", override)
    if (
        _checks.is_concrete(override)
        and _checks.is_concrete(forget_label)
        and np.any(np.asarray(override) == np.asarray(forget_label))
    ):
        raise ValueError(f"override must differ from forget_label, got {override!r} and {forget_label!r}")
    return jnp.where(labels == forget_label, jnp.asarray(override).astype(labels.dtype), labels)


def sample_override_labels(
    key: Array, labels: ArrayLike, forget_label: ArrayLike, *, num_classes: int, axis_name: str | None = None
) -> Array:
    """Labels with those of the forgotten class replaced by one of the other classes, drawn uniformly for each example.

    Example i draws from (key, i) alone, so that the result does not depend on the size or the sharding of the batch.

    Args:
      key: a PRNG key.
      labels: [B] integers. Ones outside the classes, such as a null label, are kept.
      forget_label: integer scalar from 0 to num_classes - 1, the class to forget.
      num_classes: >= 2.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: examples are then counted over
        the global batch. None counts those that are here.

    Returns:
      [B] labels, in the dtype of `labels`, without `forget_label`.

    Raises:
      ValueError: labels not [B] integers, forget_label not an integer scalar or out of range, or num_classes < 2.

    References:
      Chen et al., Score Forgetting Distillation, arXiv:2409.11219.
    """
    _check_labels("labels", labels)
    _check_class("forget_label", forget_label)
    _checks.count("num_classes", num_classes, 2)
    _checks.within("forget_label", forget_label, 0, num_classes - 1)
    labels = jnp.asarray(labels)
    keys = example_keys(key, labels.shape[0], axis_name)
    others = jax.vmap(lambda k: jax.random.randint(k, (), 0, num_classes - 1))(keys)
    others = others + (others >= forget_label)
    return jnp.where(labels == forget_label, others.astype(labels.dtype), labels)


def _frozen(denoise: ConditionalDenoiser) -> ConditionalDenoiser:
    """`denoise` without gradient to what it is closed over; that to its inputs stays."""

    def call(x: Array, sigma: Array, labels: Array) -> Array:
        # Its closure becomes visible as the constants of its jaxpr. The lambda is new, so that no trace is looked up
        # that an object with other parameters has left behind.
        closed, shape = jax.make_jaxpr(lambda *arguments: denoise(*arguments), return_shape=True)(x, sigma, labels)
        constants = [jax.lax.stop_gradient(constant) for constant in closed.consts]
        function = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(closed.jaxpr, constants))
        return jax.tree.unflatten(jax.tree.structure(shape), function(x, sigma, labels))

    return call


def score_forgetting_loss(
    sample: ArrayLike,
    noise: ArrayLike,
    sigma: ArrayLike,
    labels: ArrayLike,
    teacher_labels: ArrayLike,
    forget: ArrayLike,
    *,
    teacher: ConditionalDenoiser,
    critic: ConditionalDenoiser,
    alpha: ArrayLike = 1.2,
    remain_coefficient: ArrayLike = 1.0,
    forget_coefficient: ArrayLike = 0.01,
) -> Array:
    r"""Loss of the generator in score forgetting distillation (SFD), which needs no data.

    .. math:: \lambda\; L_{SiD}\big(x,\; D_T(x_t, \sigma, c_T),\; D_C(x_t, \sigma, c);\; \alpha\big), \qquad
              x_t = x + \sigma n

    with `score_distillation.score_identity_loss`. On classes to keep, teacher and critic are told the same label; on
    samples G(z, c) of the class to forget the teacher is told a safe one (`override_labels`), so that the generator
    learns to answer the forgotten label with that class. One batch holds both kinds.

    Alternate with a step of the critic: `score_distillation.denoising_score_loss` under `labels`, with the same two
    coefficients. As in every SiD loss the value may be negative and says little. Gradients also reach the sample
    through the inputs of both networks, but never what the two are closed over. For that they are traced, outside
    `jit` too, and must not look at values. To save memory wrap them in `jax.checkpoint`.

    Args:
      sample: [B, ...] clean samples x of the generator, drawn under `labels`.
      noise: unit normal n, like `sample`.
      sigma: [B] levels, > 0.
      labels: [B] integers c, what generator and critic are told.
      teacher_labels: [B] integers c_T, what the teacher is told: `labels` where nothing is to be forgotten.
      forget: bool [B], True on samples to forget: it chooses the coefficient. All or none may be True.
      teacher: D_T(x [B, ...], sigma [B], labels [B]) -> clean estimate, frozen.
      critic: D_C, alike.
      alpha: of the identity loss, scalar or [B], 0 to 2. 1.2 is the paper's for CIFAR-10, 1.0 for Stable Diffusion.
      remain_coefficient: scalar >= 0, of samples to keep. The authors' default.
      forget_coefficient: scalar >= 0, of samples to forget. The authors' default.

    Returns:
      [B] losses, in at least float32.

    Raises:
      ValueError: shapes do not fit, labels that are not integers, forget not bool, or a concrete sigma <= 0 or
        coefficient < 0.

    References:
      Chen et al., Score Forgetting Distillation, arXiv:2409.11219; Zhou et al., Score identity Distillation,
      arXiv:2404.04057.
    """
    _checks.batched("sample", sample)
    _checks.same_shape("sample", sample, "noise", noise)
    x, n, level = as_float(sample), as_float(noise), as_float(sigma)
    _checks.per_example("sigma", sigma, x.shape[0])
    _checks.positive("sigma", sigma)
    for name, value in (("labels", labels), ("teacher_labels", teacher_labels), ("forget", forget)):
        _checks.per_example(name, value, x.shape[0])
    _checks.integers("labels", labels)
    _checks.integers("teacher_labels", teacher_labels)
    if jnp.result_type(forget) != jnp.bool_:
        raise ValueError(f"forget must be bool, got {jnp.result_type(forget)}")
    for name, value in (("remain_coefficient", remain_coefficient), ("forget_coefficient", forget_coefficient)):
        _checks.rank(name, value, 0)
        _checks.non_negative(name, value)

    noised = x + expand_like(level, x) * n
    real = _frozen(teacher)(noised, level, jnp.asarray(teacher_labels))
    fake = _frozen(critic)(noised, level, jnp.asarray(labels))
    _checks.same_shape("sample", sample, "the result of teacher", real)
    _checks.same_shape("sample", sample, "the result of critic", fake)
    coefficient = jnp.where(jnp.asarray(forget), as_float(forget_coefficient), as_float(remain_coefficient))
    return coefficient * score_distillation.score_identity_loss(x, real, fake, alpha=alpha)
