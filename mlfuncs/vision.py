"""Image operations."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import absolute, as_float, example_keys, expand_like, safe_sqrt, top_k, unit_vectors


def total_variation(images: ArrayLike) -> Array:
    r"""Anisotropic total variation, :math:`\overline{|x_{h,w+1} - x_{h,w}|} + \overline{|x_{h+1,w} - x_{h,w}|}`.

    Args:
      images: [B, H, W, C].

    Returns:
      [B], each mean over its own differences, channels included; 0 along a side of one pixel.

    Raises:
      ValueError: not four axes.

    References:
      Rudin, Osher and Fatemi (1992); in this form Scheliga et al., arXiv:2208.06163.
    """
    _checks.rank("images", images, 4)
    x = as_float(images)

    def along(axis: int) -> Array:
        if x.shape[axis] < 2:
            return jnp.zeros(x.shape[0], x.dtype)
        return jnp.mean(absolute(jnp.diff(x, axis=axis)), axis=(1, 2, 3))

    return along(2) + along(1)


def mixup(first: ArrayLike, second: ArrayLike, coefficients: ArrayLike) -> Array:
    r"""Mixed examples, :math:`\lambda_i\, x_i + (1 - \lambda_i)\, x'_i`: for inputs, and for one-hot labels alike.

    Args:
      first: [B, ...] floats.
      second: like `first`, the partners; for one batch a random permutation of it.
      coefficients: lambda [B], in [0, 1], such as `mixup_coefficients`.

    Returns:
      [B, ...], in the common dtype of the two.

    Raises:
      ValueError: shapes differ, integers (mixing would truncate them: convert first), or coefficients not [B] or, where
        concrete, outside [0, 1].

    References:
      Zhang et al., mixup: Beyond Empirical Risk Minimization, arXiv:1710.09412; in distillation arXiv:2211.03946.
    """
    _checks.batched("first", first)
    _checks.same_shape("first", first, "second", second)
    x, y = jnp.asarray(first), jnp.asarray(second)
    for name, value in (("first", x), ("second", y)):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{name} must be floats, got {value.dtype}: mixing would truncate them")
    _checks.per_example("coefficients", coefficients, x.shape[0])
    _checks.within("coefficients", coefficients, 0, 1)
    share = expand_like(as_float(coefficients), x)
    return (share * as_float(x) + (1 - share) * as_float(y)).astype(jnp.result_type(x, y))


def mixup_coefficients(key: Array, batch: int, *, concentration: ArrayLike = 1.0, mixed_fraction: float = 1.0) -> Array:
    r"""Coefficients of mixup, :math:`\lambda_i \sim \mathrm{Beta}(a, a)` for the mixed examples and 1 for the others.

    Args:
      key: a PRNG key.
      batch: B >= 0, of the global batch.
      concentration: a > 0, a scalar (may be traced). Default 1, uniform; the study has 0.2, 0.4 and 1.
      mixed_fraction: share in [0, 1] of the examples that are mixed, round(share * B) of them, drawn without replacement; a
        Python number. Default 1, full mixup; partial mixup is 0.1 in the paper. The official code draws with replacement,
        which mixes about 0.41.

    Returns:
      float32 [B]. The draw of example i depends on the key and on i alone; which ones are mixed, on the whole batch.

    Raises:
      ValueError: batch < 0, a <= 0, or a share outside [0, 1].

    References:
      Choi et al., arXiv:2211.03946; Zhang et al., arXiv:1710.09412.
    """
    _checks.count("batch", batch, 0)
    _checks.rank("concentration", concentration, 0)
    _checks.positive("concentration", concentration)
    if not _checks.is_concrete(mixed_fraction):
        raise ValueError("mixed_fraction decides a count and must be a Python number, got a traced value")
    if not 0 <= mixed_fraction <= 1:
        raise ValueError(f"mixed_fraction must be in [0, 1], got {mixed_fraction!r}")
    for_value, for_choice = jax.random.split(key)
    a = jnp.asarray(concentration, jnp.float32)
    values = jax.vmap(lambda own: jax.random.beta(own, a, a))(example_keys(for_value, batch))
    mixed = jnp.argsort(jax.vmap(jax.random.uniform)(example_keys(for_choice, batch)))[: round(mixed_fraction * batch)]
    return jnp.ones(batch, jnp.float32).at[mixed].set(values[mixed])


def _check_patch(patch: int, height: int, width: int) -> None:
    _checks.count("patch", patch)
    if height % patch or width % patch:
        raise ValueError(f"patch must divide height and width, got {patch} for {height} x {width}")


def patchify(x: ArrayLike, *, patch: int = 2, channels_last: bool = False) -> Array:
    """Square patches of images as tokens, row by row. The inverse is `unpatchify`.

    Args:
      x: [B, H, W, C].
      patch: p >= 1, side of a patch; divides H and W. Default 2, as in latent transformers.
      channels_last: order of the values of a token: False is channels, rows, columns (ACE++ and other transformers of
        latents), True is rows, columns, channels (masked autoencoders).

    Returns:
      [B, (H / p)(W / p), p * p * C], in the dtype of `x`.

    Raises:
      ValueError: not four axes, or `patch` does not divide both sides.

    References:
      Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv:2010.11929; Mao et al., ACE++, arXiv:2501.02487.
    """
    _checks.rank("x", x, 4)
    x = jnp.asarray(x)
    batch, height, width, channels = x.shape
    _check_patch(patch, height, width)
    grid = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    order = (0, 1, 3, 2, 4, 5) if channels_last else (0, 1, 3, 5, 2, 4)
    return grid.transpose(order).reshape(batch, (height // patch) * (width // patch), patch * patch * channels)


def unpatchify(tokens: ArrayLike, *, height: int, width: int, patch: int = 2, channels_last: bool = False) -> Array:
    """Images from tokens: the inverse of `patchify`.

    Args:
      tokens: [B, N, p * p * C], N = (height / p)(width / p).
      height: of the images.
      width: of the images.
      patch: p >= 1, side of a patch; divides both.
      channels_last: order of the values of a token, as in `patchify`.

    Returns:
      [B, height, width, C], in the dtype of `tokens`.

    Raises:
      ValueError: not three axes, `patch` does not divide both sides, or a number or width of tokens that does not fit.

    References:
      Dosovitskiy et al., arXiv:2010.11929; Mao et al., arXiv:2501.02487.
    """
    _checks.rank("tokens", tokens, 3)
    _checks.count("height", height)
    _checks.count("width", width)
    _check_patch(patch, height, width)
    x = jnp.asarray(tokens)
    rows, columns = height // patch, width // patch
    if x.shape[1] != rows * columns:
        raise ValueError(
            f"tokens must be {rows} x {columns} for {height} x {width} in patches of {patch}, got {x.shape[1]}"
        )
    if x.shape[2] % patch**2:
        raise ValueError(f"tokens must hold a multiple of {patch**2} values each, got {x.shape[2]}")
    channels = x.shape[2] // patch**2
    inside = (patch, patch, channels) if channels_last else (channels, patch, patch)
    order = (0, 1, 3, 2, 4, 5) if channels_last else (0, 1, 4, 2, 5, 3)
    return x.reshape(x.shape[0], rows, columns, *inside).transpose(order).reshape(x.shape[0], height, width, channels)


def transfer_anomaly_map(
    forward_prediction: ArrayLike,
    backward_prediction: ArrayLike,
    early: ArrayLike,
    late: ArrayLike,
    *,
    grid: tuple[int, int],
) -> Array:
    r"""Where an image is not as usual: both students of `distillation.layer_transfer` miss the layer that they predict.

    .. math:: \|u(G(l)) - u(e)\|_2 \cdot \|u(F(e)) - u(l)\|_2, \quad u(x) = x / \max(\|x\|_2, 10^{-12})

    The product is a logical and: one student's mistake alone does not count. For a map in pixels the paper enlarges it
    bilinearly (`jax.image.resize`) to a square of the longer side of the image, blurs it by `box_blur` and crops its centre
    to the image; exact for square images alone. The image's score is `top_fraction_mean`.

    Args:
      forward_prediction: F(e) [B, P, D].
      backward_prediction: G(l) [B, P, D].
      early: e [B, P, D].
      late: l [B, P, D].
      grid: (h, w), h * w = P patches, row by row.

    Returns:
      [B, h, w] in [0, 4], in at least float32, with finite gradients.

    Raises:
      ValueError: not three axes, shapes that differ, or a grid of another number of patches.

    References:
      Costanzino et al., Learning to Be a Transformer to Pinpoint Anomalies, arXiv:2407.04092.
    """
    _checks.rank("forward_prediction", forward_prediction, 3)
    for name, value in (("backward_prediction", backward_prediction), ("early", early), ("late", late)):
        _checks.same_shape("forward_prediction", forward_prediction, name, value)
    if len(grid) != 2:
        raise ValueError(f"grid must be (height, width), got {grid!r}")
    for size in grid:
        _checks.count("a side of grid", size)
    batch, patches = np.shape(early)[:2]
    if math.prod(grid) != patches:
        raise ValueError(f"grid must have {patches} places, one a patch, got {grid[0]} x {grid[1]}")

    def apart(first: ArrayLike, second: ArrayLike) -> Array:
        gap = unit_vectors(as_float(first)) - unit_vectors(as_float(second))
        return safe_sqrt(jnp.sum(gap**2, axis=-1))

    return (apart(backward_prediction, early) * apart(forward_prediction, late)).reshape(batch, *grid)


def box_blur(maps: ArrayLike, *, sizes: Sequence[int] = (5, 5, 5, 5, 5, 7, 7, 7)) -> Array:
    """Means over square windows, one after another: near a Gaussian of variance sum (k^2 - 1) / 12.

    Outside the map is 0, and a window at the border is divided by its whole area all the same: the rim darkens.

    Args:
      maps: [B, H, W].
      sizes: sides of the windows in their order, odd. Default five of 5 and three of 7, as in the authors' code. None: the
        maps as they are.

    Returns:
      [B, H, W], in at least float32.

    Raises:
      ValueError: not three axes, or a size that is even or below 1.

    References:
      Costanzino et al., arXiv:2407.04092.
    """
    _checks.rank("maps", maps, 3)
    x = as_float(maps)
    for size in sizes:
        _checks.count("a size in sizes", size)
        if size % 2 == 0:
            raise ValueError(f"sizes must be odd, got {size}")
        for window in ((1, size, 1), (1, 1, size)):
            x = jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, window, (1, 1, 1), "SAME") / size
    return x


def top_fraction_mean(maps: ArrayLike, *, fraction: float = 0.001) -> Array:
    r"""Mean of the largest pixels of each map, :math:`K = \max(1, \lfloor f H W \rfloor)` of them: a score for the image.

    Args:
      maps: [B, H, W], H W >= 1.
      fraction: f in (0, 1], a Python number. Default 0.001, the paper's. The official code has no maximum with 1 and gives
        NaN for maps below 1000 pixels.

    Returns:
      [B], in at least float32.

    Raises:
      ValueError: not three axes, no pixel, or a fraction outside (0, 1].

    References:
      Costanzino et al., arXiv:2407.04092.
    """
    _checks.rank("maps", maps, 3)
    x = as_float(maps)
    x = x.reshape(x.shape[0], x.shape[1] * x.shape[2])
    if x.shape[1] == 0:
        raise ValueError(f"maps must hold at least one pixel each, got shape {np.shape(maps)}")
    if not _checks.is_concrete(fraction):
        raise ValueError("fraction decides a count and must be a Python number, got a traced value")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction!r}")
    # A product that only rounding keeps below a whole number is that number.
    return jnp.mean(top_k(x, max(1, math.floor(fraction * x.shape[1] + 1e-6)))[0], axis=1)
