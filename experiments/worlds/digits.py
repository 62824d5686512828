"""The 1,797 handwritten digits of scikit-learn, 8x8 pixels, embedded in that package (UCI optical recognition)."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.engine.errors import UserError
from experiments.worlds import InMemory, Trained, World


def _file() -> Path:
    """Where the package keeps them. Found without importing it, which takes longer than all else before the first step."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UserError("the digits are part of scikit-learn, which is not installed: pip install scikit-learn")
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


def build(config: ml_collections.ConfigDict, trained: Trained) -> World:
    """The last `config.held_out` digits (default 0) are the test set; with none, all are both training and test set."""
    del trained
    table = np.loadtxt(_file(), delimiter=",", dtype=np.float32)
    images = table[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1)  # 0..16
    labels = table[:, -1].astype(np.int32)
    held_out = int(config.get("held_out", 0))
    if not 0 <= held_out < len(images):
        raise UserError(f"config.data.held_out must be in [0, {len(images) - 1}], got {held_out}")
    cut = len(images) - held_out
    train = InMemory({"image": images[:cut], "label": labels[:cut]})
    test = InMemory({"image": images[cut:], "label": labels[cut:]}) if held_out else train
    return World(
        train=train,
        test=test,
        example_shape=(8, 8, 1),
        num_classes=10,
        to_model=lambda raw: raw.astype(jnp.float32) / 8 - 1,
        to_pixels=lambda x: jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8),
    )
