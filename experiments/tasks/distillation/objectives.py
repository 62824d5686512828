"""Distillation objectives by name: a sum of weighted losses, written as one reads it in a paper.

0.1 * cross_entropy + 0.9 * kullback_leibler(temperature=4) + 0.8 * sinkhorn
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from experiments.engine.errors import UserError, unknown
from mlfuncs import distillation

Loss = Callable[..., Array]  # (student_logits [B, C], teacher_logits [B, C], labels, **options) -> [B] or scalar


class Term(NamedTuple):
    """One loss of an objective."""

    weight: float
    name: str
    options: Mapping[str, float]


def cross_entropy(student_logits: Array, labels: Array) -> Array:
    """[B], of integer labels [B] or of the shares of the classes, floats [B, C]."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return optax.losses.softmax_cross_entropy_with_integer_labels(student_logits, labels)
    return optax.losses.softmax_cross_entropy(student_logits, labels)


# What losses read beside the student's logits decides how they are called.
LABELS_ALONE: dict[str, Loss] = {"cross_entropy": cross_entropy}
TEACHER_ALONE: dict[str, Loss] = {
    name: getattr(distillation, name)
    for name in (
        "binary_kullback_leibler",
        "binary_kullback_leibler_difference",
        "correlation",
        "jensen_shannon",
        "kullback_leibler",
        "reverse_kullback_leibler",
        "scaled_by_deviation",
        "sinkhorn",
        "soft_cross_entropy",
        "total_variation",
    )
}
TEACHER_AND_LABELS: dict[str, Loss] = {
    "decoupled": distillation.decoupled,
    "knowledge_distillation": distillation.knowledge_distillation,
    "plackett_luce": distillation.plackett_luce,
}
TEACHER_AND_SHARES: dict[str, Loss] = {"mixup_objective": distillation.mixup_objective}  # labels as floats [B, C]
LOSSES = {**LABELS_ALONE, **TEACHER_ALONE, **TEACHER_AND_LABELS, **TEACHER_AND_SHARES}
WHOLE_BATCH = frozenset(name for name, loss in LOSSES.items() if "axis_name" in inspect.signature(loss).parameters)


def parse(text: str, field: str = "config.objective") -> tuple[Term, ...]:
    """The terms of an objective.

    Raises:
      UserError: no sum of `weight * loss(option=number, ...)`, or a loss or an option that does not exist.
    """
    try:
        return tuple(_terms(ast.parse(text.strip(), mode="eval").body, field))
    except SyntaxError:
        raise UserError(
            f"{field} must be a sum such as '0.1 * cross_entropy + 0.9 * kullback_leibler(temperature=4)', got {text!r}"
        ) from None


def value(
    terms: tuple[Term, ...], student: Array, teacher: Array, labels: Array, axis_name: str | None = None
) -> Array:
    """The objective, a scalar: each loss' mean over the batch times its weight.

    Args:
      terms: of `parse`.
      student: logits [B, C].
      teacher: logits [B, C], constants.
      labels: int [B], or floats [B, C] where they are mixed.
      axis_name: an axis of `pmap` over which the batch is split: losses that mix examples are those of the whole batch.
        The value is then this part's, and the mean of all parts the objective.
    """
    total = jnp.zeros((), jnp.float32)
    for weight, name, options in terms:
        split = {"axis_name": axis_name} if name in WHOLE_BATCH else {}
        total += weight * jnp.mean(_one(name, student, teacher, labels)(**options, **split))
    return total


def _one(name: str, student: Array, teacher: Array, labels: Array) -> Callable[..., Array]:
    if name in LABELS_ALONE:
        return lambda **options: LOSSES[name](student, labels, **options)
    if name in TEACHER_ALONE:
        return lambda **options: LOSSES[name](student, teacher, **options)
    if name in TEACHER_AND_SHARES and jnp.issubdtype(labels.dtype, jnp.integer):
        labels = jnp.eye(student.shape[-1], dtype=jnp.float32)[labels]
    return lambda **options: LOSSES[name](student, teacher, labels, **options)


def _terms(node: ast.expr, field: str) -> list[Term]:
    """The terms of a parsed expression.

    Raises:
      SyntaxError: it is no sum of weighted losses.
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _terms(node.left, field) + _terms(node.right, field)
    weight = 1.0
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        weight, node = _number(node.left), node.right
    options: dict[str, float] = {}
    if isinstance(node, ast.Call) and not node.args:
        options = {str(keyword.arg): _number(keyword.value) for keyword in node.keywords}
        node = node.func
    if not isinstance(node, ast.Name):
        raise SyntaxError
    if node.id not in LOSSES:
        raise unknown(f"loss in {field}", node.id, LOSSES)
    known = _options(LOSSES[node.id])
    for option in options:
        if option not in known:
            raise UserError(f"{field}: {node.id} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return [Term(weight, node.id, options)]


def _number(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    raise SyntaxError


def _options(loss: Loss) -> list[str]:
    parameters = inspect.signature(loss).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name != "axis_name"]
