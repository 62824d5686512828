"""Masked image modelling: errors of patches, predictors of which are hard, and masks that prefer those.

A mask is True where a patch is hidden. Patches stand in their natural order, row by row.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, example_keys, floor_share
from mlfuncs.vision import patchify


def _standardised(x: Array, eps: ArrayLike) -> Array:
    """Over the last axis, by the unbiased variance + eps; zeros where there is one value."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / max(x.shape[-1] - 1, 1)
    return centred / jnp.sqrt(variance + eps)


def patch_error(
    prediction: ArrayLike,
    images: ArrayLike,
    mask: ArrayLike,
    *,
    patch_size: int,
    normalise_target: bool = False,
    eps: ArrayLike = 1e-6,
) -> Array:
    r"""Mean squared error of every hidden patch.

    Average over hidden patches for the reconstruction loss, `errors.sum() / mask.sum()`; keep them for
    `relative_difficulty`.

    Args:
      prediction: [B, L, p * p * C], L = (H / p)(W / p); within a patch rows first, then columns, then channels.
      images: [B, H, W, C].
      mask: bool [B, L], True where a patch was hidden.
      patch_size: p >= 1, divides H and W.
      normalise_target: whether each patch of the images is centred and divided by the root of its unbiased variance + eps
        first. Default False, as in the scripts of the paper's code.
      eps: > 0. Default 1e-6, as in the paper's code.

    Returns:
      [B, L] errors >= 0; 0 where a patch is visible, whatever was predicted there.

    Raises:
      ValueError: images without four axes, `patch_size` that does not divide them, shapes that do not fit, or `eps` not
        positive.

    References:
      Wang et al., Bootstrap Masked Visual Modeling via Hard Patches Mining, arXiv:2312.13714.
    """
    _checks.positive("eps", eps)
    _checks.rank("images", images, 4)
    _checks.count("patch_size", patch_size)
    if any(side % patch_size for side in np.shape(images)[1:3]):
        raise ValueError(f"patch_size must divide height and width, got {patch_size} for images of {np.shape(images)}")
    target = patchify(as_float(images), patch=patch_size, channels_last=True)
    if np.shape(prediction) != target.shape:
        raise ValueError(
            f"prediction must have shape {target.shape} for images of shape {np.shape(images)} in patches of "
            f"{patch_size}, got {np.shape(prediction)}"
        )
    if np.shape(mask) != target.shape[:2]:
        raise ValueError(f"mask must have shape {target.shape[:2]}, one value a patch, got {np.shape(mask)}")
    if normalise_target:
        target = _standardised(target, eps)
    # Chosen before it is squared, so that what was predicted for visible patches has no gradient, be it infinite.
    residual = jnp.where(jnp.asarray(mask, bool)[..., None], as_float(prediction) - target, 0.0)
    return jnp.mean(residual**2, axis=-1)


def _check_patches(first_name: str, first: ArrayLike, second_name: str, second: ArrayLike) -> None:
    _checks.rank(first_name, first, 2)
    _checks.same_shape(first_name, first, second_name, second)
    if np.shape(first)[1] == 0:
        raise ValueError(f"{first_name} must hold at least one patch, got shape {np.shape(first)}")


def relative_difficulty(
    predicted: ArrayLike, reconstruction_loss: ArrayLike, *, mask: ArrayLike | None = None, eps: ArrayLike = 1e-6
) -> Array:
    r"""Ranking loss of predicted difficulties: which of two patches has the larger error?

    .. math:: -\frac{1}{|\{e_j > e_i\}|} \sum_{e_j > e_i} \log\big(\sigma(d_j - d_i) + \epsilon\big)

    The mean over ordered pairs of the paper's code, in which every pair stands twice with one value. Ties are left out.
    epsilon bounds a pair's loss at about 13.8, with next to no gradient for pairs that are very wrong.

    Args:
      predicted: [B, L], d, of any scale.
      reconstruction_loss: [B, L], e, such as `patch_error`; no gradient passes.
      mask: bool [B, L]: only pairs of True patches count, such as the hidden ones, whose errors alone are known. None:
        all do.
      eps: epsilon > 0. Default 1e-6, as in the paper's code.

    Returns:
      [B], the mean over pairs of an image; 0 where there are none (one patch, or all errors equal). NaN where an error
      that counts is. The code averages over the pairs of the whole batch: the same mean where images have as many.

    Raises:
      ValueError: not [B, L] of one shape, no patches, or `eps` not positive.

    References:
      Wang et al., arXiv:2312.13714.
    """
    _check_patches("predicted", predicted, "reconstruction_loss", reconstruction_loss)
    _checks.positive("eps", eps)
    d, e = as_float(predicted), jax.lax.stop_gradient(as_float(reconstruction_loss))
    counted = jnp.ones(e.shape, bool) if mask is None else jnp.asarray(mask, bool)
    _checks.same_shape("predicted", predicted, "mask", counted)
    harder = (e[:, None, :] > e[:, :, None]) & counted[:, None, :] & counted[:, :, None]  # [B, i, j]: j than i
    gap = jnp.where(harder, d[:, None, :] - d[:, :, None], 0.0)
    losses = jnp.where(harder, -jnp.log(jax.nn.sigmoid(gap) + as_float(eps)), 0.0)
    mean = jnp.sum(losses, axis=(1, 2)) / jnp.maximum(jnp.sum(harder, axis=(1, 2)), 1)
    # Comparisons with NaN are false: without this a diverged error would pass as a tie.
    return jnp.where(jnp.any(counted & jnp.isnan(e), axis=1), jnp.nan, mean)


def absolute_difficulty(predicted: ArrayLike, reconstruction_loss: ArrayLike, *, eps: ArrayLike = 1e-6) -> Array:
    r"""Squared distance of predicted difficulties from the errors of an image, standardised. The paper's ablation.

    Args:
      predicted: [B, L].
      reconstruction_loss: [B, L] of the patches that count; no gradient passes. Each image's are centred and divided by
        the root of their unbiased variance + eps.
      eps: > 0. Default 1e-6, as in the paper's code.

    Returns:
      [B] means over patches. Errors that are all equal, and that of one patch, are 0 when standardised.

    Raises:
      ValueError: not [B, L] of one shape, no patches, or `eps` not positive.

    References:
      Wang et al., arXiv:2312.13714.
    """
    _check_patches("predicted", predicted, "reconstruction_loss", reconstruction_loss)
    _checks.positive("eps", eps)
    target = jax.lax.stop_gradient(_standardised(as_float(reconstruction_loss), as_float(eps)))
    return jnp.mean((as_float(predicted) - target) ** 2, axis=1)


def hard_fraction(epoch: ArrayLike, total_epochs: ArrayLike, *, final: ArrayLike = 0.5) -> Array:
    r"""Share of a mask that is chosen by difficulty, from easy to hard: :math:`\alpha_e = \alpha (e + 1) / E`.

    Args:
      epoch: e >= 0, counted from 0, any shape, may be traced.
      total_epochs: E >= 1.
      final: alpha in [0, 1], the share in the last epoch and after it. Default 0.5, as in the paper: half of a mask
        stays random.

    Returns:
      shares in [0, 1], like `epoch`.

    Raises:
      ValueError: concrete `epoch` < 0, `total_epochs` < 1 or `final` outside [0, 1].

    References:
      Wang et al., arXiv:2312.13714.
    """
    _checks.non_negative("epoch", epoch)
    _checks.at_least("total_epochs", total_epochs, 1)
    _checks.rate("final", final)
    return as_float(final) * jnp.minimum((as_float(epoch) + 1) / as_float(total_epochs), 1.0)


def _hidden_count(patches: int, mask_ratio: float) -> int:
    if not _checks.is_concrete(mask_ratio):
        raise ValueError("mask_ratio decides a count and must be a Python number, got a traced value")
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio!r}")
    visible = int(patches * (1 - mask_ratio))  # in double precision, as the paper's code truncates it
    if visible == 0:
        raise ValueError(f"mask_ratio must leave a patch visible, got {mask_ratio!r} of {patches} patches")
    return patches - visible


def _ranks(*keys: Array) -> Array:
    """int32 [B, L]: 0 for the smallest in an image, by the last key first; of equal ones the lower index comes first."""
    return jnp.argsort(jnp.lexsort(keys, axis=-1), axis=-1)


def hard_patch_mask(
    predicted: ArrayLike, noise: ArrayLike, *, mask_ratio: float = 0.75, hard_fraction: ArrayLike = 0.0
) -> Array:
    r"""Hides the patches predicted to be the hardest, and random others up to the mask's size.

    Of :math:`n = L - \lfloor L (1 - \gamma) \rfloor` hidden patches, :math:`\lfloor \alpha n \rfloor` have the largest
    predictions and the rest the largest noise among the others.

    Args:
      predicted: [B, L] difficulties of all patches, from a frozen (averaged) model that sees the whole image.
      noise: [B, L], independent and of one distribution, for a mask that is random.
      mask_ratio: gamma in [0, 1), a Python number. Default 0.75, as in the paper. 0 hides nothing.
      hard_fraction: alpha in [0, 1], scalar, may be traced. 0 (default) is a random mask.

    Returns:
      bool [B, L], True where hidden: n in every image. Ties go to the lower index, NaN comes last. No gradient passes.

    Raises:
      ValueError: not [B, L] of one shape, no patches, `mask_ratio` outside [0, 1) or without a visible patch, or a
        concrete `hard_fraction` outside [0, 1].

    References:
      Wang et al., arXiv:2312.13714.
    """
    _check_patches("predicted", predicted, "noise", noise)
    _checks.rank("hard_fraction", hard_fraction, 0)
    _checks.rate("hard_fraction", hard_fraction)
    hidden = _hidden_count(np.shape(predicted)[1], mask_ratio)
    by_difficulty = _ranks(-as_float(predicted)) < floor_share(hard_fraction, hidden)
    return _ranks(-as_float(noise), ~by_difficulty) < hidden


def sample_hard_patch_mask(
    key: Array,
    predicted: ArrayLike,
    *,
    mask_ratio: float = 0.75,
    hard_fraction: ArrayLike = 0.0,
    axis_name: str | None = None,
) -> Array:
    """`hard_patch_mask` with uniform noise.

    Image i draws from (key, i) alone, so that the result does not depend on the size or the sharding of the batch.

    Args:
      key: a PRNG key.
      predicted: [B, L].
      mask_ratio: in [0, 1), a Python number.
      hard_fraction: in [0, 1], scalar, may be traced.
      axis_name: inside `shard_map` or `pmap`, the axis over which the batch is split: images are then counted over the
        global batch.

    Returns:
      bool [B, L], True where hidden.

    Raises:
      ValueError: as `hard_patch_mask`.

    References:
      Wang et al., arXiv:2312.13714.
    """
    _checks.rank("predicted", predicted, 2)
    batch, patches = np.shape(predicted)
    draw = lambda k: jax.random.uniform(k, (patches,))  # noqa: E731
    noise = jax.vmap(draw)(example_keys(key, batch, axis_name))
    return hard_patch_mask(predicted, noise, mask_ratio=mask_ratio, hard_fraction=hard_fraction)
