"""Image sets on disk as tensorflow-datasets prepares them (array_record files), written without TensorFlow."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

FEATURE = "tensorflow_datasets.core.features."


def write_image_set(
    folder: Path,
    name: str,
    images: Sequence[np.ndarray],
    labels: Sequence[int] | None,
    *,
    held_out: int = 0,
    num_classes: int = 10,
    splits: tuple[str, str] = ("train", "test"),
) -> Path:
    """Writes uint8 images [H, W, C] as set `name` under `folder` and returns the folder of its files.

    `name` is a set of tensorflow-datasets ("mnist", "imagenet_resized/64x64") or a new one. The last `held_out` images are
    the second split; with none there is the first alone. Images may differ in size, and labels may be left out.
    """
    base, _, config = name.partition("/")
    known = base in tfds.list_builders(with_community_datasets=False)
    # Of a set that it knows, the package reads one version alone.
    target = Path(tfds.builder(name, data_dir=folder).data_dir) if known else Path(folder, name, "1.0.0")
    target.mkdir(parents=True)
    cut = len(images) - held_out
    parts = {splits[0]: range(cut), **({splits[1]: range(cut, len(images))} if held_out else {})}
    sizes = {}
    for split, indices in parts.items():
        records = [_record(images[i], None if labels is None else labels[i]) for i in indices]
        writer = ArrayRecordWriter(str(target / f"{base}-{split}.array_record-00000-of-00001"), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        sizes[split] = sum(map(len, records))

    shapes = {image.shape for image in images}
    shape = shapes.pop() if len(shapes) == 1 else (-1, -1, images[0].shape[-1])
    features = {
        "image": {
            "pythonClassName": FEATURE + "image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": [str(side) for side in shape]}},
        }
    }
    if labels is not None:
        features["label"] = {
            "pythonClassName": FEATURE + "class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(num_classes)},
        }
    info = {
        "name": base,
        "version": target.name,
        "fileFormat": "array_record",
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(sizes[split]),
                "shardLengths": [str(len(indices))],
            }
            for split, indices in parts.items()
        ],
        **({"configName": config} if config else {}),
    }
    described = {"pythonClassName": FEATURE + "features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (target / "features.json").write_text(json.dumps(described))
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target


def _record(image: np.ndarray, label: int | None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="png")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(buffer.getvalue())
    if label is not None:
        example.features.feature["label"].int64_list.value.append(int(label))
    return example.SerializeToString()
