"""Objectives inside networks in plain PyTorch, as one writes them from their equations: (moving, fixed) -> mean."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from experiments.benchmarks.torch_device import device, wait

Tensor: TypeAlias = torch.Tensor


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def normalized_feature(*stages: Tensor) -> Tensor:
    total = torch.zeros(stages[0].shape[0], device=stages[0].device)
    for student, teacher in zip(stages[:3], stages[3:], strict=True):
        axes = (1, 2, 3)
        total = total + ((student - teacher) ** 2).mean(axes) / (teacher**2).mean(axes)
    return total.mean()


def layer_transfer(forward: Tensor, backward: Tensor, early: Tensor, late: Tensor) -> Tensor:
    apart = lambda a, b: (1 - F.cosine_similarity(a, b, dim=-1)).mean()  # noqa: E731
    return apart(forward, late) + apart(backward, early)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    first, second = (F.normalize(x @ x.T, dim=1) for x in (teacher, student))
    return ((first - second) ** 2).mean()


def channel_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    def correlations(x: Tensor) -> Tensor:
        flat = x.flatten(1, 2)
        return F.normalize(torch.bmm(flat.transpose(1, 2), flat), dim=2)

    gap = correlations(student) - correlations(teacher)
    return (gap**2).sum((1, 2)).mean() / student.shape[-1]


def self_attention_relation(*projections: Tensor) -> Tensor:
    def scores(x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = x.reshape(batch, length, 12, width // 12).transpose(1, 2)
        return heads @ heads.transpose(2, 3) / (width // 12) ** 0.5

    pairs = zip(projections[:3], projections[3:], strict=True)
    return torch.stack([_kl(scores(teacher), scores(student)).mean() for student, teacher in pairs]).sum()


def mutual(logits: Tensor) -> Tensor:
    models = range(len(logits))
    pairs = [_kl(logits[j] / 4, logits[i] / 4) for i in models for j in models if i != j]
    return 16 * torch.stack(pairs).sum(0).mean()


def hard_soft(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return 0.5 * F.cross_entropy(student, labels) + 0.5 * _kl(teacher, student).mean()


def routed_teachers(student: Tensor, teachers: Tensor, gate: Tensor) -> Tensor:
    best = gate.argmax(1)
    return 16 * _kl(teachers[best, torch.arange(len(best), device=best.device)] / 4, student / 4).mean()


def blended_teachers(student: Tensor, gate: Tensor, teachers: Tensor) -> Tensor:
    return 16 * _kl((gate.T[:, :, None] * teachers).sum(0) / 4, student / 4).mean()


def patch_error(prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    batch, side = images.shape[0], images.shape[1] // 16
    target = images.reshape(batch, side, 16, side, 16, 3).permute(0, 1, 3, 2, 4, 5).reshape(batch, side * side, 768)
    errors = ((prediction - target) ** 2).mean(-1) * mask
    return (errors.sum(1) / mask.sum(1)).mean()


def relative_difficulty(predicted: Tensor, errors: Tensor) -> Tensor:
    harder = (errors[:, None, :] > errors[:, :, None]).float()
    gap = predicted[:, None, :] - predicted[:, :, None]
    losses = -torch.log(torch.sigmoid(gap) + 1e-6) * harder
    return (losses.sum((1, 2)) / harder.sum((1, 2))).mean()


def pondering(losses: Tensor, halting: Tensor) -> Tensor:
    rates = torch.sigmoid(halting)
    reached = torch.cat([torch.ones_like(rates[:, :1]), torch.cumprod(1 - rates[:, :-1], 1)], 1)
    exits = torch.where(reached < 0.05, 0.05 / rates.shape[1], rates * reached)
    prior = 0.1 * 0.9 ** torch.arange(rates.shape[1], device=rates.device)
    prior[-1] = 1 - prior[:-1].sum()
    divergence = (prior * (prior.log() - exits.clamp(min=1e-12).log())).sum(1)
    return ((exits * losses).sum(1) + 0.5 * divergence).mean()


def leave_one_out_neighbours(queries: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Tensor:
    scores = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T / 0.07
    same = labels[:, None] == bank_labels
    near, index = scores.topk(20, dim=1)
    mine = same.gather(1, index)
    closest = scores.masked_fill(~same, -torch.inf).max(1, keepdim=True).values
    lacking = ~mine.any(1, keepdim=True)
    near = torch.cat([near, closest.masked_fill(~lacking, -torch.inf)], 1)
    mine = torch.cat([mine, lacking], 1)
    return (near.logsumexp(1) - near.masked_fill(~mine, -torch.inf).logsumexp(1)).mean()


def embedding_dynamics(online: Tensor, target: Tensor, directions: Tensor) -> Tensor:
    z = F.normalize(online, dim=-1)
    centre = F.normalize(F.normalize(target, dim=-1).mean(0), dim=-1)
    mean = z.mean(0)
    attraction = 2 - 2 * (mean * centre).sum(-1)
    drift = (mean * F.normalize(directions, dim=-1)).sum(-1)
    rows = z.reshape(-1, z.shape[-1])
    gap = rows.T @ rows / len(rows) - torch.eye(z.shape[-1], device=z.device) / z.shape[-1]
    return (attraction + 0.1 * drift).mean() + (gap**2).sum()


def selective_scan(x: Tensor, delta: Tensor, b: Tensor, c: Tensor, gate: Tensor, a: Tensor) -> Tensor:
    steps = F.softplus(delta)
    state = torch.zeros(x.shape[0], *a.shape, device=x.device)
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(steps[:, t, :, None] * a)
        state = decay * state + (steps[:, t] * x[:, t])[..., None] * b[:, t, None, :]
        outputs.append((state * c[:, t, None, :]).sum(-1))
    return (torch.stack(outputs, 1) * F.silu(gate)).mean()


def call(name: str, moving: tuple[np.ndarray, ...], fixed: tuple[np.ndarray, ...]) -> Callable[[], tuple[Any, Any]]:
    """The mean of an objective and its gradients in all that moves."""
    leaves = [torch.from_numpy(x.copy()).to(device()).requires_grad_() for x in moving]
    rest = [torch.from_numpy(x.astype(np.int64) if x.dtype == np.int32 else x).to(device()) for x in fixed]
    objective = globals()[name]

    def once() -> tuple[Any, Any]:
        for leaf in leaves:
            leaf.grad = None
        value = objective(*leaves, *rest)
        value.backward()
        wait()
        return value.detach(), [leaf.grad for leaf in leaves]

    return once
