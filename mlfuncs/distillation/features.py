"""Distillation losses on features inside a network, whose shapes student and teacher share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, per_example_axes, unit_vectors
from mlfuncs.robust import mean_squared


def normalized_feature(
    student_features: Any, teacher_features: Any, *, exponent: ArrayLike = 2.0, eps: float = 1e-12
) -> Array:
    r"""Squared distance of features, summed over stages, each relative to the size of the teacher's.

    .. math:: \sum_l \frac{\overline{(f^S_l - f^T_l)^2}}{\max(\overline{(f^T_l)^2}, \epsilon)^{q/2}}

    Without it the few stages with large activations make up the whole loss. With q = 2 rescaling a stage of both networks
    changes nothing, so all count equally; 1 divides by the norm, the letter of the paper's summary; 0 is plain feature
    distillation. The paper's own exponent was not to be found: the default is the one under which its claim of equal
    terms holds.

    Args:
      student_features: a tree (such as a list, one entry a stage) of [B, ...] floats.
      teacher_features: a tree of the same structure and shapes. A constant: no gradient passes.
      exponent: q >= 0, a scalar (may be traced). Default 2.
      eps: > 0, least mean square of the teacher's. Default 1e-12: a stage that is dead in the teacher weighs enormously.

    Returns:
      [B] sums over stages, in at least float32; means are over the elements of an example.

    Raises:
      ValueError: no stage, structures, shapes or batches that differ, stages without values, q < 0 or eps <= 0.

    References:
      Zhang et al., LAPTOP-Diff, arXiv:2404.11098.
    """
    _checks.same_trees("student_features", student_features, "teacher_features", teacher_features)
    stages = list(zip(jax.tree.leaves(student_features), jax.tree.leaves(teacher_features), strict=True))
    _check_stages([student for student, _ in stages])
    _checks.rank("exponent", exponent, 0)
    _checks.non_negative("exponent", exponent)
    _checks.positive("eps", eps)

    def term(student: ArrayLike, teacher: ArrayLike) -> Array:
        constant = jax.lax.stop_gradient(as_float(teacher))
        power = jnp.mean(constant**2, axis=per_example_axes(constant))
        return mean_squared(as_float(student), constant) / jnp.maximum(power, eps) ** (exponent / 2)

    return functools.reduce(jnp.add, (term(student, teacher) for student, teacher in stages))


def _check_stages(stages: list[ArrayLike]) -> None:
    if not stages:
        raise ValueError("student_features must hold at least one stage, got none")
    for stage in stages:
        _checks.batched("a stage of student_features", stage)
        if np.shape(stage)[0] != np.shape(stages[0])[0]:
            raise ValueError(
                "student_features must hold one batch, got stages of "
                f"{np.shape(stages[0])[0]} and {np.shape(stage)[0]} examples"
            )
        if 0 in np.shape(stage)[1:]:
            raise ValueError(f"a stage of student_features must hold values, got shape {np.shape(stage)}")


def feature_and_output(
    student_output: ArrayLike,
    teacher_output: ArrayLike,
    student_features: Any,
    teacher_features: Any,
    task_loss: ArrayLike,
    *,
    output_weight: ArrayLike = 1.0,
    feature_weight: ArrayLike = 1.0,
    exponent: ArrayLike = 2.0,
) -> Array:
    r"""The loss that retrains a pruned network on its task, on the outputs and on the features of the whole one.

    .. math:: L_{task} + \lambda_o \overline{(\epsilon_S - \epsilon_T)^2} + \lambda_f L_{feat}

    The last term is `normalized_feature`. Log the three apart (`normalized_feature` of the outputs with exponent 0 is the
    second): without normalisation the features are most of the sum, and a lower sum is no better network.

    Args:
      student_output: [B, ...], such as predicted noise.
      teacher_output: like `student_output`, of the network before pruning. A constant: no gradient passes.
      student_features: a tree of [B, ...], the outputs of stages.
      teacher_features: likewise. A constant.
      task_loss: [B].
      output_weight: lambda_o >= 0, a scalar. Default 1, as both others in the code of BK-SDM, whose loss this is with
        exponent 0.
      feature_weight: lambda_f >= 0, a scalar. Default 1.
      exponent: q of `normalized_feature`. Default 2.

    Returns:
      [B], in at least float32.

    Raises:
      ValueError: shapes or structures that differ, `task_loss` not [B], or a negative weight or exponent.

    References:
      Zhang et al., arXiv:2404.11098; Kim et al., BK-SDM, arXiv:2305.15798.
    """
    _checks.batched("student_output", student_output)
    _checks.same_shape("student_output", student_output, "teacher_output", teacher_output)
    batch = np.shape(student_output)[0]
    _checks.per_example("task_loss", task_loss, batch)
    for name, weight in (("output_weight", output_weight), ("feature_weight", feature_weight)):
        _checks.rank(name, weight, 0)
        _checks.non_negative(name, weight)
    features = normalized_feature(student_features, teacher_features, exponent=exponent)
    if features.shape[0] != batch:
        raise ValueError(f"student_features must hold {batch} examples as student_output, got {features.shape[0]}")
    outputs = normalized_feature([student_output], [teacher_output], exponent=0.0)
    return as_float(task_loss) + output_weight * outputs + feature_weight * features


def cosine_distance(prediction: ArrayLike, target: ArrayLike, *, eps: float = 1e-6) -> Array:
    r"""Cosine distance over the last axis, :math:`1 - \frac{p \cdot t}{\max(\|p\|, \epsilon) \max(\|t\|, \epsilon)}`.

    Args:
      prediction: [..., D], D >= 1.
      target: like `prediction`. A constant: no gradient passes.
      eps: > 0, least norm. Default 1e-6, as in the authors' code. A vector of zeros is at distance 1 from all.

    Returns:
      [...] in [0, 2], in at least float32.

    Raises:
      ValueError: shapes differ, no last axis or an empty one, or eps <= 0.

    References:
      Costanzino et al., Learning to Be a Transformer to Pinpoint Anomalies, arXiv:2407.04092.
    """
    _checks.same_shape("prediction", prediction, "target", target)
    if np.ndim(prediction) < 1 or np.shape(prediction)[-1] == 0:
        raise ValueError(f"prediction must have at least one value on its last axis, got shape {np.shape(prediction)}")
    _checks.positive("eps", eps)
    constant = unit_vectors(jax.lax.stop_gradient(as_float(target)), eps)
    return 1 - jnp.sum(unit_vectors(as_float(prediction), eps) * constant, axis=-1)


def layer_transfer(
    forward_prediction: ArrayLike, backward_prediction: ArrayLike, early: ArrayLike, late: ArrayLike
) -> Array:
    r"""The loss of two small students that learn to turn one layer of a frozen transformer into another, and back.

    .. math:: \overline{1 - \cos(F(e), l)} + \overline{1 - \cos(G(l), e)}

    Trained on faultless images alone, both fail where a patch is not as usual: `vision.transfer_anomaly_map`. The two
    share nothing and train in one step. The paper takes blocks 7 and 11 of a ViT-B/14, after the last LayerNorm, without
    class and register tokens.

    Args:
      forward_prediction: F(e) [B, P, D], the late layer from the early one.
      backward_prediction: G(l) [B, P, D], the early layer from the late one.
      early: e [B, P, D], P >= 1 patches. A constant: no gradient passes.
      late: l [B, P, D]. A constant.

    Returns:
      [B] in [0, 4], in at least float32; means are over patches.

    Raises:
      ValueError: not three axes, shapes that differ, or no patch.

    References:
      Costanzino et al., arXiv:2407.04092.
    """
    _checks.rank("forward_prediction", forward_prediction, 3)
    for name, value in (("backward_prediction", backward_prediction), ("early", early), ("late", late)):
        _checks.same_shape("forward_prediction", forward_prediction, name, value)
    if np.shape(early)[1] == 0:
        raise ValueError(f"early must hold at least one patch, got shape {np.shape(early)}")
    forward, backward = cosine_distance(forward_prediction, late), cosine_distance(backward_prediction, early)
    return jnp.mean(forward, axis=1) + jnp.mean(backward, axis=1)
