"""One student for many specialists, each the teacher of its own part of the classes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float
from mlfuncs.distillation._rows import check_classes, check_integers, check_pair, over_rows, weighted, with_gradients


def _check_verticals(class_vertical: ArrayLike, classes: int) -> Array:
    if np.shape(class_vertical) != (classes,):
        raise ValueError(f"class_vertical must have shape ({classes},), one a class, got {np.shape(class_vertical)}")
    return check_integers("class_vertical", class_vertical)


def _check_teachers(teacher_logits: ArrayLike, teacher_index: ArrayLike, top_k: int) -> Array:
    check_classes("teacher_logits", teacher_logits)
    _checks.count("top_k", top_k)
    if np.shape(teacher_index) != np.shape(teacher_logits)[:-1]:
        raise ValueError(
            f"teacher_index must have shape {np.shape(teacher_logits)[:-1]}, one an example, got {np.shape(teacher_index)}"
        )
    return check_integers("teacher_index", teacher_index)


def _largest_vertical(class_vertical: ArrayLike) -> int:
    """The number of classes that one vertical has at most; where it can't be known, all."""
    if not _checks.is_concrete(class_vertical):
        return np.size(class_vertical)
    return int(np.unique(np.asarray(class_vertical), return_counts=True)[1].max())


def _soft_targets(teacher: Array, index: Array, verticals: Array, top_k: int, largest: int) -> Array:
    own = verticals == index[..., None]
    scores = jnp.where(own, as_float(teacher), -jnp.inf)
    kept = own
    if top_k < largest:
        _, best = jax.lax.top_k(scores, top_k)  # of equal ones the lower class
        kept &= jnp.put_along_axis(jnp.zeros(scores.shape, bool), best, True, axis=-1, inplace=False)
    return jnp.where(kept, jax.nn.sigmoid(jnp.where(kept, scores, 0.0)), 0.0)


def vertical_soft_targets(
    teacher_logits: ArrayLike, teacher_index: ArrayLike, class_vertical: ArrayLike, *, top_k: int = 100
) -> Array:
    r"""Targets for all classes from the one specialist that knows an example's vertical.

    :math:`\sigma(t)` for the specialist's best `top_k` classes, 0 for its others and for the classes of every other
    vertical: these zeros are targets, which push other verticals down.

    Args:
      teacher_logits: [..., C], C >= 1. Only the classes of the example's vertical are looked at: what stands elsewhere,
        NaN included, does not matter.
      teacher_index: int [...], the vertical of each example.
      class_vertical: int [C], the vertical of each class.
      top_k: >= 1. Default 100 (paper); more than a vertical has keeps all. Of equal logits the lower class is kept.

    Returns:
      [..., C] in [0, 1], in at least float32. No gradient passes: teachers are frozen.

    Raises:
      ValueError: shapes that do not fit, indices not integers, or top_k < 1.

    References:
      Gao et al., Knowledge Concentration, arXiv:1711.07607.
    """
    index = _check_teachers(teacher_logits, teacher_index, top_k)
    teacher = jax.lax.stop_gradient(jnp.asarray(teacher_logits))
    verticals = _check_verticals(class_vertical, teacher.shape[-1])
    largest = _largest_vertical(class_vertical)
    return over_rows(lambda t, i: _soft_targets(t, i, verticals, top_k, largest), teacher, index)


def multi_teacher(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    teacher_index: ArrayLike,
    class_vertical: ArrayLike,
    *,
    top_k: int = 100,
) -> Array:
    r"""Many teachers, one student: sigmoid cross-entropy with `vertical_soft_targets`, summed over all classes.

    .. math:: \sum_c \max(x_c, 0) - x_c z_c + \log(1 + e^{-|x_c|})

    No softmax, no temperature and no labels. C log 2 at logits 0.

    Args:
      student_logits: x [..., C], C >= 1.
      teacher_logits: like `student_logits`: row i holds the logits of the specialist of example i, anything in other
        verticals. No gradient passes.
      teacher_index: int [...], the vertical of each example.
      class_vertical: int [C], the vertical of each class.
      top_k: >= 1. Default 100 (paper).

    Returns:
      [...] values >= 0, in at least float32. A sum over classes: the caller averages over the batch alone.

    Raises:
      ValueError: shapes that do not fit, indices not integers, or top_k < 1.

    References:
      Gao et al., arXiv:1711.07607.
    """
    student, teacher = check_pair(student_logits, teacher_logits)
    index = _check_teachers(teacher, teacher_index, top_k)
    verticals, largest = _check_verticals(class_vertical, student.shape[-1]), _largest_vertical(class_vertical)

    def rows(s: Array, t: Array, i: Array) -> Array:
        targets = _soft_targets(jax.lax.stop_gradient(t), i, verticals, top_k, largest)
        return _sigmoid_cross_entropy_rows(as_float(s), targets)

    return over_rows(rows, student, teacher, index)


def _sigmoid_cross_entropy(x: Array, targets: Array) -> Array:
    return jnp.sum(jax.nn.softplus(x) - weighted(targets, x), axis=-1)


_sigmoid_cross_entropy_rows = with_gradients(_sigmoid_cross_entropy, lambda x, targets: jax.nn.sigmoid(x) - targets)


def self_paced_logits(
    logits: ArrayLike,
    scale: ArrayLike,
    class_vertical: ArrayLike,
    *,
    level: str = "vertical",
    epsilon: ArrayLike = 1e-12,
) -> Array:
    r"""Logits of each vertical on a sphere whose radius is learned, :math:`y_v = \gamma_v x_v / \|x_v\|_2`.

    A larger pace gamma passes a larger gradient: a learning rate for each vertical. The paper starts it at the square root
    of the number of its classes; fixed there, the loss cannot fall below about 0.313 C. The result replaces the logits in
    the loss and at inference.

    Args:
      logits: [..., C], C >= 1. Classes masked by -inf stay masked and do not count.
      scale: gamma, [M] for level "vertical" and [C] for level "class". Any sign.
      class_vertical: int [C] >= 0, the vertical of each class.
      level: "vertical" (the better in the paper), or "class", a pace for each class.
      epsilon: > 0, the least squared norm. An all-zero vertical gives zeros.

    Returns:
      [..., C], in at least float32.

    Raises:
      ValueError: another level, `scale` of another length or too short for a concrete `class_vertical`, indices not integers
        or negative, or epsilon <= 0.

    References:
      Gao et al., arXiv:1711.07607.
    """
    check_classes("logits", logits)
    x = as_float(logits)
    classes = x.shape[-1]
    verticals = _check_verticals(class_vertical, classes)
    _checks.non_negative("class_vertical", class_vertical)
    _checks.one_of("level", level, ("vertical", "class"))
    _checks.rank("epsilon", epsilon, 0)
    _checks.positive("epsilon", epsilon)
    _checks.rank("scale", scale, 1)
    pace = as_float(scale)
    if level == "class" and pace.shape != (classes,):
        raise ValueError(f"scale must have shape ({classes},) for level 'class', got {pace.shape}")
    if level == "vertical":
        if _checks.is_concrete(class_vertical) and int(np.max(np.asarray(class_vertical))) >= pace.shape[0]:
            raise ValueError(
                f"scale must have one entry a vertical, at least {int(np.max(np.asarray(class_vertical))) + 1}, "
                f"got {pace.shape[0]}"
            )
        pace = pace[verticals]
    # Verticals numbered without gaps: there are at most C.
    _, segment = jnp.unique(verticals, return_inverse=True, size=classes)
    masked = jnp.isneginf(x)
    held = jnp.where(masked, 0.0, x)
    squares = jnp.zeros_like(held).at[..., segment].add(held**2)[..., segment]
    return jnp.where(masked, -jnp.inf, pace * held * jax.lax.rsqrt(jnp.maximum(squares, epsilon)))
