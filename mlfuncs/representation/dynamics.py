"""Forces between embeddings as loss terms: views attract each other, images diffuse apart, all spread evenly."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from mlfuncs import _checks
from mlfuncs._arrays import as_float, example_noise, gram, sum_of_slices, sum_over, unit_vectors


def _check_views(name: str, value: ArrayLike) -> None:
    _checks.rank(name, value, 3)
    if np.size(value) == 0:
        raise ValueError(f"{name} must hold at least one view, image and feature, got shape {np.shape(value)}")


def _check_directions(directions: ArrayLike, embeddings: ArrayLike) -> None:
    if np.shape(directions) != np.shape(embeddings)[1:]:
        raise ValueError(
            f"directions must have shape {np.shape(embeddings)[1:]}, one an image, got {np.shape(directions)}"
        )


def _mean_of_views(x: Array) -> Array:
    return sum_of_slices(lambda view: view, x) / x.shape[0]


def _attraction(mean: Array, target: ArrayLike) -> Array:
    """[B]: of the mean [B, D] of an image's views to the direction of its target views."""
    views = unit_vectors(jax.lax.stop_gradient(as_float(target)))
    return 2 - 2 * jnp.sum(mean * unit_vectors(_mean_of_views(views)), axis=-1)


def _drift(mean: Array, directions: ArrayLike) -> Array:
    return jnp.sum(mean * unit_vectors(jax.lax.stop_gradient(as_float(directions))), axis=-1)


def _dispersion(z: Array, axis_name: str | None) -> Array:
    """Of unit rows [N, D]."""
    rows, features = z.shape
    if axis_name is None and rows < features:
        # The smaller Gram matrix has the same singular values, but for features - rows zeros.
        return jnp.sum((gram(z.T) / rows - jnp.eye(rows) / features) ** 2) + (features - rows) / features**2
    moment = sum_over(gram(z), axis_name) / sum_over(rows, axis_name)
    return jnp.sum((moment - jnp.eye(features) / features) ** 2)


def centroid_attraction(online: ArrayLike, target: ArrayLike, *, normalise_online_centroid: bool = False) -> Array:
    r"""Pulls every view of an image to the direction of the mean of its target views.

    .. math:: \frac{1}{V} \sum_v \big(2 - 2 \langle z_v, c \rangle\big), \qquad
              c = \frac{\sum_v z'_v}{\|\sum_v z'_v\|}

    Args:
      online: [V, B, D] embeddings z of V views of B images; need not be normalised.
      target: [V, B, D] of the averaged network, z'; no gradient passes. The centroid holds every view, the same too.
      normalise_online_centroid: compares directions of centroids, :math:`2 - 2 \langle \bar z / \|\bar z\|, c \rangle`, as
        the paper's figure words it; False (default) is its abstract.

    Returns:
      [B] in [0, 4]. One view: BYOL's distance to its own target. Where views cancel out, or are 0, the distance is 2.

    Raises:
      ValueError: not three axes of one shape, or empty.

    References:
      Moon et al., An Embedding-Dynamic Approach to Self-supervised Learning, arXiv:2207.03552.
    """
    _check_views("online", online)
    _checks.same_shape("online", online, "target", target)
    mean = _mean_of_views(unit_vectors(as_float(online)))
    if normalise_online_centroid:
        mean = unit_vectors(mean)
    return _attraction(mean, target)


def random_directions(key: Array, num: int, dim: int, *, axis_name: str | None = None) -> Array:
    """Directions uniform on the sphere, for `brownian_drift`: a fresh one for every image and step.

    Args:
      key: a PRNG key, a new one every step.
      num: >= 1, of images.
      dim: D >= 1.
      axis_name: inside `shard_map` or `pmap`, the axis over which images are split, `num` to each device: they are then
        counted over the global batch.

    Returns:
      [num, D] float32 unit vectors; number i depends on the key and on i, not on `num`.

    Raises:
      ValueError: a size below 1.

    References:
      Moon et al., arXiv:2207.03552.
    """
    _checks.count("num", num)
    _checks.count("dim", dim)
    return unit_vectors(example_noise(key, (num, dim), axis_name))


def brownian_drift(embeddings: ArrayLike, directions: ArrayLike) -> Array:
    r"""Moves the views of an image together in a random direction, :math:`\frac{1}{V} \sum_v \langle z_v, n \rangle`.

    Its expectation over directions is 0; what counts is its gradient, a kick that views share and images do not. One
    direction a view would undo the attraction of views, one for the whole batch moves all alike: neither disperses.

    Args:
      embeddings: [V, B, D]; need not be normalised.
      directions: [B, D], `random_directions`; no gradient passes.

    Returns:
      [B] in [-1, 1].

    Raises:
      ValueError: embeddings without three axes or empty, or directions that are not [B, D].

    References:
      Moon et al., arXiv:2207.03552.
    """
    _check_views("embeddings", embeddings)
    _check_directions(directions, embeddings)
    return _drift(_mean_of_views(unit_vectors(as_float(embeddings))), directions)


def singular_value_dispersion(embeddings: ArrayLike, *, axis_name: str | None = None) -> Array:
    r"""How far embeddings are from spreading evenly over all directions.

    .. math:: \Big\|\frac{Z^\top Z}{N} - \frac{I}{D}\Big\|_F^2 = \sum_i \Big(\frac{\sigma_i^2}{N} - \frac{1}{D}\Big)^2

    The paper names the purpose, equal singular values; this form of it is inferred.

    Args:
      embeddings: [N, D], one row an embedding (views of all images in any order); need not be normalised.
      axis_name: inside `shard_map` or `pmap`, the axis over which rows are split: the second moment is that of all.

    Returns:
      Scalar: 0 where all D singular values are equal, 1 - 1/D where all rows are one direction, and at least 1/N - 1/D for
      fewer rows than features. Invariant to rotations, to scales and to the order of rows.

    Raises:
      ValueError: not two axes, or empty.

    References:
      Moon et al., arXiv:2207.03552.
    """
    _checks.rank("embeddings", embeddings, 2)
    if np.size(embeddings) == 0:
        raise ValueError(f"embeddings must hold at least one row and feature, got shape {np.shape(embeddings)}")
    return _dispersion(unit_vectors(as_float(embeddings)), axis_name)


def embedding_dynamics(
    online: ArrayLike,
    target: ArrayLike,
    directions: ArrayLike,
    *,
    singular_weight: ArrayLike = 1.0,
    brownian_weight: ArrayLike = 0.1,
    axis_name: str | None = None,
) -> Array:
    r"""MSBReg: attraction of views, Brownian diffusion and dispersion of singular values in one loss.

    .. math:: M_b + \lambda_B B_b + \lambda_S S

    Args:
      online: [V, B, D] embeddings.
      target: [V, B, D] of the averaged network; no gradient passes.
      directions: [B, D], `random_directions`.
      singular_weight: lambda_S >= 0. Default 1 (inferred, not the paper's number).
      brownian_weight: lambda_B >= 0. Default 0.1, of a public implementation.
      axis_name: inside `shard_map` or `pmap`, the axis over which images are split: S is that of the global batch.

    Returns:
      [B]: `centroid_attraction` + weighted `brownian_drift` + weighted `singular_value_dispersion` of all V B online
      embeddings, which is added to every image. Negative values are normal.

    Raises:
      ValueError: shapes that do not fit, or a concrete weight that is negative or not finite.

    References:
      Moon et al., arXiv:2207.03552.
    """
    for name, weight in (("singular_weight", singular_weight), ("brownian_weight", brownian_weight)):
        _checks.rank(name, weight, 0)
        if _checks.is_concrete(weight) and not 0 <= float(np.asarray(weight, np.float64)) < np.inf:
            raise ValueError(f"{name} must be a finite number >= 0, got {weight!r}")
    _check_views("online", online)
    _checks.same_shape("online", online, "target", target)
    _check_directions(directions, online)
    # The three terms share unit vectors and their mean.
    z = unit_vectors(as_float(online))
    mean = _mean_of_views(z)
    attraction, drift = _attraction(mean, target), _drift(mean, directions)
    dispersion = _dispersion(z.reshape(-1, z.shape[-1]), axis_name)
    return attraction + as_float(brownian_weight) * drift + as_float(singular_weight) * dispersion
