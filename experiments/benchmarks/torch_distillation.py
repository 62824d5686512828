"""Distillation objectives in plain PyTorch, as one writes them from their equations: (student, teacher, labels) -> mean."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from experiments.benchmarks.torch_device import device, wait

Tensor: TypeAlias = torch.Tensor


def _logs(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def kullback_leibler(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = _logs(student, teacher, 4.0)
    return 16 * _kl(log_p, log_q).mean()


def reverse_kullback_leibler(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = _logs(student, teacher, 2.0)
    return 4 * _kl(log_q, log_p).mean()


def jensen_shannon(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = _logs(student, teacher, 2.0)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 4 * (_kl(log_p, log_m) + _kl(log_q, log_m)).mean() / 2


def total_variation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return (F.softmax(student / 2, -1) - F.softmax(teacher / 2, -1)).abs().sum(-1).mean() / 2


def soft_cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(student, F.softmax(teacher, -1))


def knowledge_distillation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return 0.1 * F.cross_entropy(student, labels) + 0.9 * kullback_leibler(student, teacher, labels)


def sinkhorn(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    q, p = F.softmax(student / 2, -1), F.softmax(teacher / 2, -1)
    cost = torch.cdist(q, p, p=1)
    plan = torch.exp(-cost / 0.1)
    for _ in range(20):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum(1).mean()


def correlation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    def apart(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
        return 1 - ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-8)).mean()

    q, p = F.softmax(student, -1), F.softmax(teacher, -1)
    return apart(q, p) + apart(q.T, p.T)


def plackett_luce(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    first = torch.zeros_like(teacher, dtype=torch.bool).scatter_(1, labels[:, None], True)
    ranking = teacher.masked_fill(first, math.inf).sort(dim=-1, descending=True, stable=True).indices
    scores = student.gather(1, ranking)
    tails = scores.flip(-1).logcumsumexp(-1).flip(-1)
    return (F.softmax(teacher, -1).gather(1, ranking) * (tails - scores)).sum(-1).mean()


def binary_kullback_leibler(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    s, t = student / 2, teacher / 2
    p = torch.sigmoid(t)
    yes, no = F.logsigmoid(t) - F.logsigmoid(s), F.logsigmoid(-t) - F.logsigmoid(-s)
    return 4 * (p * yes + (1 - p) * no).sum(-1).mean()


def binary_kullback_leibler_difference(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    x = (student - teacher) / 4
    return 4 * (x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - math.log(2)).sum(-1).mean()


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    first = torch.zeros_like(teacher, dtype=torch.bool).scatter_(1, labels[:, None], True)

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        others = (logits / 4).masked_fill(first, -1000.0)
        of_label = logits.gather(1, labels[:, None]) / 4
        rest = torch.logsumexp(others, -1, keepdim=True)
        pair = F.log_softmax(torch.cat([of_label, rest], -1), -1)
        return pair, F.log_softmax(others, -1)

    (pair_q, others_q), (pair_p, others_p) = parts(student), parts(teacher)
    return 16 * (_kl(pair_p, pair_q) + 8 * _kl(others_p, others_q)).mean()


def _scaled(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return _logs(student / student.std(-1, keepdim=True), teacher / teacher.std(-1, keepdim=True), 1.0)


def scaled_by_deviation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = _scaled(student, teacher)
    return _kl(log_p, log_q).mean()


def mixup_objective(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = _scaled(student, teacher)
    targets = F.one_hot(labels, student.shape[-1]).to(student.dtype)
    return 0.1 * -(targets * log_q).sum(-1).mean() + 0.9 * _kl(log_p, log_q).mean()


def enhanced_target_cross_entropy(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    p = F.softmax(teacher, -1)
    mask = F.one_hot(labels, student.shape[-1]).to(student.dtype)
    return -(((p + mask) ** 1.5 - mask) * F.log_softmax(student, -1)).sum(-1).mean()


def multi_teacher(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    verticals = torch.arange(student.shape[-1], device=student.device) // 50
    own = verticals == (labels // 50)[:, None]
    scores = teacher.masked_fill(~own, -math.inf)
    best = scores.topk(min(100, scores.shape[-1]), -1).indices
    kept = torch.zeros_like(own).scatter_(1, best, True) & own
    targets = torch.where(kept, torch.sigmoid(teacher), 0.0)
    return F.binary_cross_entropy_with_logits(student, targets, reduction="none").sum(-1).mean()


def sequence_divergence(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = _logs(student, teacher, 1.0)
    return _kl(log_p, log_q).sum() / 16  # the mean over 16 sequences


def call(name: str, student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> Callable[[], tuple[Any, Any]]:
    """The mean of an objective and its gradient in the student's logits; the teacher asks for none."""
    leaf, fixed, of = (torch.from_numpy(x.copy()).to(device()) for x in (student, teacher, labels))
    leaf.requires_grad_()
    objective = globals()[name]

    def once() -> tuple[Any, Any]:
        leaf.grad = None
        value = objective(leaf, fixed, of)
        value.backward()
        wait()
        return value.detach(), leaf.grad

    return once
