"""Image sets of tensorflow-datasets, read through `tfds.data_source` (array_record files, no TensorFlow needed)."""

import logging
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.engine.errors import UserError, first_line, unknown
from experiments.worlds import InMemory, Split, World, Zeros

BLOCK = 500  # records read in one call while loading a whole set
SIZES = {"cifar10": 50_000, "imagenet_resized": 1_281_167, "mnist": 60_000}  # training examples of sets in configs/

# The package warns about an optional decoder at import, which a user can do nothing about.
logging.getLogger("absl").addFilter(lambda record: "OpenCV is not installed" not in record.getMessage())


class FromDisk:
    """A split too large for memory: records are decoded when they are read."""

    examples: Mapping[str, np.ndarray] | None = None

    def __init__(self, source: Any, keys: Mapping[str, str], size: int):
        self.source, self.keys, self.size = source, keys, size

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        records = self.source.__getitems__([int(i) for i in indices])
        stacked = {ours: [record[theirs] for record in records] for ours, theirs in self.keys.items()}
        stacked["image"] = [_square(image, self.size) for image in stacked["image"]]
        return {name: np.stack(values) for name, values in stacked.items()}


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """The central square, resized by area averaging to `size` pixels; 0 leaves the image as it is."""
    if not size or image.shape[:2] == (size, size):
        return image
    from PIL import Image

    short = min(image.shape[:2])
    top, left = (image.shape[0] - short) // 2, (image.shape[1] - short) // 2
    crop = Image.fromarray(image[top : top + short, left : left + short].squeeze())
    resized = np.asarray(crop.resize((size, size), Image.Resampling.BOX))
    return resized.reshape(size, size, image.shape[2])


def _folders(config: ml_collections.ConfigDict) -> list[Path]:
    """Where a set may lie: the config's folder, else the environment's, else the package's default."""
    given = config.get("data_dir", "") or os.environ.get("MLFUNCS_DATA", "")
    if given:
        return [Path(given).expanduser(), Path(given).expanduser() / "tfds"]
    return [Path("~/tensorflow_datasets").expanduser()]


def known_names() -> list[str]:
    """What an error names as examples; any image set of tensorflow-datasets will do."""
    return ["mnist", "cifar10", "(any other image set of tensorflow-datasets)"]


def build(config: ml_collections.ConfigDict) -> World | None:
    """The prepared set that `config.name` names, or None where tensorflow-datasets knows no such set."""
    import tensorflow_datasets as tfds

    name = config.name
    folders = _folders(config)
    folder = next((folder for folder in folders if (folder / name.split("/")[0].split(":")[0]).is_dir()), None)
    if folder is None:
        if name.split("/")[0].split(":")[0] not in tfds.list_builders(with_community_datasets=False):
            return None
        raise UserError(
            f"data set {name!r} is not under {folders[0]}. Get it with "
            f"`pip install tensorflow && tfds build {name} --data_dir={folders[0]} --file_format=array_record`, "
            "or name the folder that has it in config.data.data_dir or MLFUNCS_DATA"
        )
    try:
        return _read(config, name, folder)
    except UserError:
        raise
    except Exception as error:  # a damaged set fails in as many ways as there are packages that read it
        raise UserError(
            f"data set {name!r} under {folder} can't be read as images ({first_line(error)[:200]}); "
            f"prepare it with `tfds build {name} --data_dir={folder} --file_format=array_record`"
        ) from error


def describe(config: ml_collections.ConfigDict) -> World | None:
    """The world of `config.name` with zeros for images, or None where tensorflow-datasets knows no such set.

    The set need not be on this machine. Where its size is known neither from there nor from SIZES, it is the largest that
    stays in memory.
    """
    import tensorflow_datasets as tfds

    name = config.name
    base = name.split("/")[0].split(":")[0]
    folder = next((folder for folder in _folders(config) if (folder / base).is_dir()), None)
    if folder is None and base not in tfds.list_builders(with_community_datasets=False):
        return None
    with tempfile.TemporaryDirectory() as nothing:
        info = tfds.builder(name, data_dir=folder or nothing).info
    keys, shape = _form(config, name, info.features)
    train_split, resident = config.get("train_split", "train"), _resident_bytes(config)
    splits = info.splits if train_split.partition("[")[0] in info.splits else {}
    size = splits[train_split].num_examples if splits else SIZES.get(base, resident // int(np.prod(shape)))
    shapes = {"image": jax.ShapeDtypeStruct(shape, np.uint8), "label": jax.ShapeDtypeStruct((), np.int32)}
    zeros = Zeros({ours: shapes[ours] for ours in keys}, size, resident=size * int(np.prod(shape)) <= resident)
    return _world(config, info.features, keys, shape, train=zeros, test=zeros)


def _form(config: ml_collections.ConfigDict, name: str, features: Any) -> tuple[dict[str, str], tuple[int, ...]]:
    """What is read of each record, and the shape of an image."""
    height, width, channels = features["image"].shape
    size = int(config.get("image_size", 0))
    if size < 0:
        raise UserError(f"config.data.image_size must be >= 0 (0: as stored), got {size}")
    if not size and (height is None or width is None):
        raise UserError(f"images of {name!r} differ in size: set config.data.image_size")
    return {key: key for key in ("image", "label") if key in features}, (size or height, size or width, channels)


def _resident_bytes(config: ml_collections.ConfigDict) -> int:
    return int(config.get("resident_bytes", 2**31))


def _read(config: ml_collections.ConfigDict, name: str, folder: Path) -> World:
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=folder)
    if not builder.info.splits:
        raise FileNotFoundError("it holds no prepared version of the set")
    train_split, known = config.get("train_split", "train"), builder.info.splits
    open_to = (split for split in ("test", "validation", train_split) if split in known)
    splits = {"train": train_split, "test": config.get("test_split", "") or next(open_to, train_split)}
    for part, split in splits.items():
        if split.partition("[")[0] not in known:
            raise unknown(f"config.data.{part}_split", split, known)
    features = builder.info.features
    keys, shape = _form(config, name, features)
    size, resident = int(config.get("image_size", 0)), _resident_bytes(config)
    read = {
        split: _load(FromDisk(builder.as_data_source(split), keys, size), shape, resident)
        for split in set(splits.values())
    }
    return _world(config, features, keys, shape, train=read[splits["train"]], test=read[splits["test"]])


def _world(
    config: ml_collections.ConfigDict,
    features: Any,
    keys: Mapping[str, str],
    shape: tuple[int, ...],
    *,
    train: Split,
    test: Split,
) -> World:
    return World(
        train=train,
        test=test,
        example_shape=shape,
        num_classes=features["label"].num_classes if "label" in keys else 0,
        to_model=lambda raw: raw.astype(jnp.float32) / 127.5 - 1,
        to_pixels=lambda x: jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8),
        flip=bool(config.get("flip", False)),
    )


def _load(split: FromDisk, shape: tuple[int, ...], resident_bytes: int) -> Split:
    """Reads the whole split into memory where it fits, in threads (decoding releases the interpreter lock)."""
    if len(split) * int(np.prod(shape)) > resident_bytes:
        return split
    blocks = np.array_split(np.arange(len(split)), max(1, len(split) // BLOCK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(split.read, blocks))
    return InMemory({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
