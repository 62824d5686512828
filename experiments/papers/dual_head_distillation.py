"""A second head for the teacher's logits: are they in conflict with cross-entropy where both meet in one head?"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments.papers import digits_noise
from experiments.papers.digits_noise import Batch, Loss, Setting
from experiments.tasks.distillation import objectives
from mlfuncs import distillation

VECTORISED = True

prepare = digits_noise.prepare


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """A student of `config.objective`, whose teacher's part reads its own head where there are two."""
    given = digits_noise.setting(config, key, shared)
    initial = digits_noise.first_params(given, key)
    if config.auxiliary_head:
        width, classes = config.widths[-1], config.shared.classes
        initial["auxiliary"] = second_head(jax.random.fold_in(key, 4), width, classes)
    label_loss, teacher_loss = losses(given, config.objective)
    loss = aligned(label_loss, teacher_loss) if config.align else both(label_loss, teacher_loss)
    probe = None
    if config.measure_conflict:
        rows = jnp.arange(config.examples)
        seen = digits_noise.batch(config, given, rows, jax.random.fold_in(key, 2))
        probe = lambda params: conflict(label_loss, teacher_loss, params, seen)  # noqa: E731
    params, probed = digits_noise.distil(config, key, given, loss, initial=initial, probe=probe)
    cosines = summaries(probed) if probe else {}
    student, _ = split(params)
    return digits_noise.measured(given, lambda x: given.student.apply(student, x)["logits"]) | cosines


def second_head(key: Array, width: int, classes: int) -> dict[str, Array]:
    """First parameters of a linear head."""
    kernel = jax.nn.initializers.lecun_normal()(key, (width, classes))
    return {"kernel": kernel, "bias": jnp.zeros(classes)}


def losses(given: Setting, objective: str) -> tuple[Loss, Loss]:
    """The part of an objective that the labels give, of the main head, and the teacher's, of the auxiliary one if any."""
    terms = objectives.parse(objective)
    of_labels = tuple(term for term in terms if term.name == "cross_entropy")
    of_teacher = tuple(term for term in terms if term.name != "cross_entropy")

    def label_loss(params: Any, batch: Batch, key: Array) -> Array:
        del key
        logits = given.student.apply(split(params)[0], batch.x)["logits"]
        return objectives.value(of_labels, logits, batch.teacher["logits"], batch.y)

    def teacher_loss(params: Any, batch: Batch, key: Array) -> Array:
        del key
        student, head = split(params)
        seen = given.student.apply(student, batch.x)
        logits = seen["features"] @ head["kernel"] + head["bias"] if head else seen["logits"]
        return objectives.value(of_teacher, logits, batch.teacher["logits"], batch.y)

    return label_loss, teacher_loss


def both(label_loss: Loss, teacher_loss: Loss) -> Loss:
    """Their sum."""
    return lambda params, batch, key: label_loss(params, batch, key) + teacher_loss(params, batch, key)


def aligned(label_loss: Loss, teacher_loss: Loss) -> Loss:
    """Their sum, whose gradient has what the teacher's would undo of the labels' taken out."""

    def loss(params: Any, batch: Batch, key: Array) -> Array:
        fixed = jax.lax.stop_gradient(params)
        value, reference = jax.value_and_grad(label_loss)(fixed, batch, key)
        more, gradients = jax.value_and_grad(teacher_loss)(fixed, batch, key)
        total = jax.tree.map(jnp.add, reference, distillation.align_gradients(gradients, reference))
        # 0, and the gradient is `total`.
        carrier = optax.tree.vdot(total, jax.tree.map(jnp.subtract, params, fixed))
        return value + more + carrier

    return loss


def conflict(label_loss: Loss, teacher_loss: Loss, params: Any, batch: Batch) -> dict[str, Array]:
    """Cosines between the two gradients: of the main head, of what is below it, and of all before and after alignment."""
    key = jax.random.key(0)  # which neither loss reads
    reference = jax.grad(label_loss)(params, batch, key)
    gradients = jax.grad(teacher_loss)(params, batch, key)
    heads = {"last", "auxiliary"}
    below = [{name: tree[name] for name in tree if name not in heads} for tree in (gradients, reference)]
    after = distillation.align_gradients(gradients, reference)
    return {
        "head": _cosine(gradients["last"], reference["last"]),
        "below": _cosine(*below),
        "all": _cosine(gradients, reference),
        "aligned": _cosine(after, reference),
    }


def _cosine(first: Any, second: Any) -> Array:
    size = optax.tree.norm(first) * optax.tree.norm(second)
    return optax.tree.vdot(first, second) / jnp.where(size > 0, size, 1.0)


def summaries(probed: dict[str, Array]) -> dict[str, Array]:
    """Of the cosines after every step, what is told."""
    return {
        "head_cosine": jnp.mean(probed["head"]),
        "backbone_cosine": jnp.mean(probed["below"]),
        "conflicting_steps": jnp.mean(probed["all"] < 0),
        "lowest_aligned_cosine": jnp.min(probed["aligned"]),
    }


def split(params: Any) -> tuple[Any, Any]:
    """Parameters of the student, and of the auxiliary head or None."""
    return {name: leaf for name, leaf in params.items() if name != "auxiliary"}, params.get("auxiliary")
