"""The networks of `experiments.models` and one training step written in PyTorch, on the same parameters.

Kernels are turned once into PyTorch's own layouts, so that neither side pays for the other's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import torch
import torch.nn.functional as F

from experiments.models import layers

Params = Mapping[str, Any]
Network = Callable[..., torch.Tensor]  # (params, x, c_noise) -> like x
EPSILON = 1e-6  # of the normalisations in flax


def parameters(tree: Any, *, channels_last: bool = False, device: str = "cpu") -> Any:
    """A tree of JAX parameters as tensors: dense kernels [out, in], convolution kernels [out, in, height, width]."""

    def convert(path: Any, leaf: Any) -> torch.Tensor:
        value = torch.from_numpy(np.array(leaf)).to(device)
        if path[-1].key == "embedding":  # [classes, width] on both sides
            return value
        if value.ndim == 2:
            return value.T.contiguous()
        if value.ndim == 4:
            kernel = value.permute(3, 2, 0, 1)
            return kernel.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        return value

    return jax.tree_util.tree_map_with_path(convert, tree)


def _linear(p: Params, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, p["kernel"], p["bias"])


def _embedding(
    p: Params, frequencies: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor | None = None
) -> torch.Tensor:
    angles = c_noise[:, None] * frequencies.to(c_noise.device)
    features = torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)
    embedding = _linear(p["second"], F.silu(_linear(p["first"], features)))
    if labels is not None:  # -1 is no class
        embedding = embedding + (labels >= 0)[:, None] * F.embedding(labels.clamp(min=0), p["classes"]["embedding"])
    return F.silu(embedding)


def _frequencies(features: int, scale: float) -> torch.Tensor:
    return torch.tensor(layers.FourierFeatures(features, scale).frequencies)


def mlp(config: ml_collections.ConfigDict) -> Network:
    """`experiments.models.mlp.ResidualMLP` with norm "scaling" and additive time conditioning; labels [B] or none."""
    frequencies = _frequencies(config.fourier_features, config.fourier_scale)

    def norm(p: Params, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], p["norm"]["scale"], p["norm"]["bias"], EPSILON)

    def apply(p: Params, x: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        embedding = _embedding(p["embed"], frequencies, c_noise, labels)
        h = _linear(p["first"], x.reshape(x.shape[0], -1))
        for index in range(config.depth):
            block = p[f"block_{index}"]
            inner = norm(block["norm"], h) + _linear(block["modulation"]["dense"], embedding)
            h = h + _linear(block["second"], F.silu(_linear(block["first"], inner)))
        return _linear(p["last"], F.silu(norm(p["norm"], h))).reshape(x.shape)

    return apply


def unet(config: ml_collections.ConfigDict, dropout: float = 0.0) -> Network:
    """`experiments.models.unet.UNet` with norm "scaling" and scale-shift time conditioning; images [B, C, H, W].

    Every pass draws dropout masks of its own, unless the rate is 0.
    """
    frequencies = _frequencies(2 * config.channels, config.fourier_scale)
    num_levels, blocks = len(config.channel_multipliers), config.blocks_per_level

    def convolution(p: Params, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        size = p["kernel"].shape[-1]
        # The padding of the JAX network, which is uneven under a stride.
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] == pads[2] == pads[3]:
            return F.conv2d(x, p["kernel"], p["bias"], stride=stride, padding=pads[0])
        return F.conv2d(F.pad(x, pads), p["kernel"], p["bias"], stride=stride)

    def norm(p: Params, x: torch.Tensor) -> torch.Tensor:
        channels = p["scale"].shape[0]
        groups = next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)
        return F.group_norm(x, groups, p["scale"], p["bias"], EPSILON)

    def block(p: Params, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = convolution(p["first"], F.silu(norm(p["norm_in"], x)))
        scale, shift = _linear(p["modulation"]["dense"], embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(norm(p["norm_out"], h) * (1 + scale) + shift)
        h = convolution(p["second"], F.dropout(h, dropout) if dropout else h)
        h = h + (convolution(p["shortcut"], x) if "shortcut" in p else x)
        if "attend" not in p:
            return h
        tokens = norm(p["norm_attention"], h).flatten(2).transpose(1, 2)
        heads = tokens.shape[2] // config.head_channels if config.head_channels else 1
        by_head = _linear(p["attend"], tokens).unflatten(2, (heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(*by_head.chunk(3, 3)).transpose(1, 2).flatten(2)
        return h + _linear(p["project"], mixed).transpose(1, 2).reshape(h.shape)

    def apply(p: Params, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        embedding = _embedding(p["embed"], frequencies, c_noise)
        h = convolution(p["first"], x)
        skips = [h]
        for level in range(num_levels):
            for index in range(blocks):
                h = block(p[f"down_{level}_{index}"], h, embedding)
                skips.append(h)
            if level + 1 < num_levels:
                h = convolution(p[f"shrink_{level}"], h, stride=2)
                skips.append(h)
        h = block(p["middle"], h, embedding)
        for level in reversed(range(num_levels)):
            for index in range(blocks + 1):
                h = block(p[f"up_{level}_{index}"], torch.cat([h, skips.pop()], dim=1), embedding)
            if level:
                height, width = skips[-1].shape[2:]
                doubled = F.interpolate(h, scale_factor=2, mode="nearest")
                h = convolution(p[f"grow_{level}"], doubled[:, :, :height, :width])
        return convolution(p["last"], F.silu(norm(p["norm"], h)))

    return apply


NETWORKS = {"mlp": mlp, "unet": unet}


def consistency_loss(
    network: Network,
    params: Params,
    data: torch.Tensor,
    noise: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    *,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
) -> torch.Tensor:
    """Mean loss of improved consistency training: pseudo-Huber over the gap, the student as its own teacher."""

    def consistency(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        per_example = sigma.reshape(-1, *[1] * (x.ndim - 1))
        scale = torch.sqrt(per_example**2 + sigma_data**2)
        skip = sigma_data**2 / ((per_example - sigma_min) ** 2 + sigma_data**2)
        raw = network(params, x / scale, torch.log(sigma) / 4)
        return skip * x + sigma_data * (per_example - sigma_min) / scale * raw

    at = lambda sigma: data + sigma.reshape(-1, *[1] * (data.ndim - 1)) * noise  # noqa: E731
    student = consistency(at(high), high)
    with torch.no_grad():
        teacher = consistency(at(low), low)
    squared = ((student - teacher) ** 2).flatten(1).sum(1)
    c = 0.00054 * data[0].numel() ** 0.5
    return ((torch.sqrt(squared + c**2) - c) / (high - low)).mean()


OPTIMIZERS: Mapping[str, Any] = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam}


class Trainer:
    """Draws levels and noise, then one step of the optimiser and of the parameters' moving average.

    `loss` is `consistency_loss` or a compiled one; parameters lie on the device where the data will.
    """

    def __init__(
        self,
        network: Network,
        params: Params,
        grid: np.ndarray,
        probabilities: np.ndarray,
        decay: float,
        *,
        optimizer: str = "adam",
        loss: Callable[..., torch.Tensor] = consistency_loss,
    ):
        self.network, self.decay, self.loss = network, decay, loss
        self.params = params
        self.leaves = jax.tree.leaves(params)
        for leaf in self.leaves:
            leaf.requires_grad_()
        self.average = [leaf.detach().clone() for leaf in self.leaves]
        self.optimizer = OPTIMIZERS[optimizer](self.leaves, lr=1e-3)
        device = self.leaves[0].device
        self.grid, self.probabilities = (torch.tensor(x, device=device) for x in (grid, probabilities))

    def step(self, data: torch.Tensor) -> torch.Tensor:
        level = torch.multinomial(self.probabilities, data.shape[0], replacement=True)
        low, high = self.grid[level], self.grid[level + 1]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.network, self.params, data, torch.randn_like(data), low, high)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.leaves, 1 - self.decay)
        return loss.detach()
