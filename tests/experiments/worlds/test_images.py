"""Image sets on disk: read back exactly, found where they lie, and every mistake named."""

import json
import shutil

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments import worlds
from experiments.engine.errors import UserError
from experiments.worlds import images
from tests.experiments.image_sets import write_image_set


def made(num, *shape, classes=10, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (num, *shape), dtype=np.uint8), generator.integers(0, classes, num)


GREY, GREY_LABELS = made(30, 28, 28, 1)
COLOUR, COLOUR_LABELS = made(8, 32, 32, 3)
LARGE, LARGE_LABELS = made(5, 64, 64, 3, classes=1000)
OBLONG = [made(1, 4, 6, 1)[0][0], made(1, 10, 5, 1)[0][0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_image_set(root, "mnist", GREY, GREY_LABELS, held_out=10)
    write_image_set(root, "cifar10", COLOUR, COLOUR_LABELS, held_out=3)
    write_image_set(
        root,
        "imagenet_resized/64x64",
        LARGE,
        LARGE_LABELS,
        held_out=2,
        num_classes=1000,
        splits=("train", "validation"),
    )
    write_image_set(root, "unlabelled", COLOUR[:2, :9, :11], None)
    write_image_set(root, "oblong", OBLONG, [1, 0], num_classes=2)
    return root


def build(name, folder, **fields):
    return worlds.build(ml_collections.ConfigDict({"name": name, "data_dir": str(folder), **fields}), None)


def same(split, pictures, labels):
    assert len(split) == len(pictures)
    read = split.read(np.arange(len(pictures)))
    assert read["image"].dtype == np.uint8
    np.testing.assert_array_equal(read["image"], pictures)
    np.testing.assert_array_equal(read["label"], labels)


@pytest.mark.parametrize("resident_bytes", [2**31, 0])
@pytest.mark.parametrize(
    ("name", "pictures", "labels", "cut", "classes"),
    [
        ("mnist", GREY, GREY_LABELS, 20, 10),
        ("cifar10", COLOUR, COLOUR_LABELS, 5, 10),
        ("imagenet_resized/64x64", LARGE, LARGE_LABELS, 3, 1000),
    ],
)
def test_images_come_back_exactly(folder, name, pictures, labels, cut, classes, resident_bytes):
    world = build(name, folder, resident_bytes=resident_bytes)
    assert (world.example_shape, world.num_classes, world.flip) == (pictures.shape[1:], classes, False)
    for split in (world.train, world.test):
        assert (split.examples is None) == (resident_bytes == 0)
    same(world.train, pictures[:cut], labels[:cut])
    same(world.test, pictures[cut:], labels[cut:])


def test_on_disk_and_in_memory_read_alike(folder):
    disk, memory = (build("mnist", folder, resident_bytes=size).train for size in (0, 2**31))
    assert type(disk) is images.FromDisk
    assert type(memory) is worlds.InMemory
    for indices in (np.array([19, 0, 7, 0]), np.arange(3, 4), np.arange(20)[::-1]):
        one, two = disk.read(indices), memory.read(indices)
        assert one.keys() == two.keys()
        for name in one:
            assert one[name].dtype == two[name].dtype
            np.testing.assert_array_equal(one[name], two[name])


def test_resident_bytes_is_the_largest_size_in_memory(folder):
    size = 20 * 28 * 28
    assert build("mnist", folder, resident_bytes=size).train.examples is not None
    world = build("mnist", folder, resident_bytes=size - 1)
    assert world.train.examples is None
    assert world.test.examples is not None  # half as large


def test_loading_in_blocks_keeps_the_order(folder, monkeypatch):
    monkeypatch.setattr(images, "BLOCK", 3)
    same(build("mnist", folder).train, GREY[:20], GREY_LABELS[:20])


def test_values_and_pixels(folder):
    world = build("mnist", folder)
    levels = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_allclose(world.to_model(levels), np.linspace(-1, 1, 256), atol=1e-6)
    np.testing.assert_array_equal(world.to_pixels(world.to_model(levels)), levels)
    np.testing.assert_array_equal(world.to_pixels(jnp.array([-2.0, 2.0])), [0, 255])
    assert world.to_pixels(world.to_model(levels)).dtype == jnp.uint8


def test_flip_is_passed_on(folder):
    assert build("mnist", folder, flip=True).flip


def test_chosen_splits(folder):
    world = build("mnist", folder, train_split="test", test_split="train")
    same(world.train, GREY[20:], GREY_LABELS[20:])
    same(world.test, GREY[:20], GREY_LABELS[:20])
    same(build("mnist", folder, train_split="train[:4]").train, GREY[:4], GREY_LABELS[:4])


def test_unlabelled_set_with_one_split(folder):
    world = build("unlabelled", folder)
    assert (world.example_shape, world.num_classes) == ((9, 11, 3), 0)
    assert world.train.examples.keys() == world.test.examples.keys() == {"image"}
    for split in (world.train, world.test):
        np.testing.assert_array_equal(split.examples["image"], COLOUR[:2, :9, :11])


@pytest.mark.parametrize("resident_bytes", [2**31, 0])
@pytest.mark.parametrize(("name", "pictures", "size"), [("mnist", GREY, 14), ("cifar10", COLOUR, 8)])
def test_image_size_averages_areas(folder, name, pictures, size, resident_bytes):
    world = build(name, folder, image_size=size, resident_bytes=resident_bytes)
    block, channels = pictures.shape[1] // size, pictures.shape[-1]
    assert world.example_shape == (size, size, channels)
    resized = world.train.read(np.arange(len(world.train)))["image"]
    means = pictures[: len(resized)].reshape(len(resized), size, block, size, block, channels).mean((2, 4))
    np.testing.assert_allclose(resized, means, atol=1.01)  # rounded in each direction


def test_image_size_takes_the_central_square(folder):
    world = build("oblong", folder, image_size=2)
    assert world.example_shape == (2, 2, 1)
    wide = OBLONG[0][:, 1:5]  # 4x6
    np.testing.assert_allclose(world.train.examples["image"][0], wide.reshape(2, 2, 2, 2, 1).mean((1, 3)), atol=1.01)
    full = build("oblong", folder, image_size=5).train.examples["image"][1]
    np.testing.assert_array_equal(full, OBLONG[1][2:7])  # 10x5


def test_image_size_of_the_set_changes_nothing(folder):
    same(build("mnist", folder, image_size=28).train, GREY[:20], GREY_LABELS[:20])


def test_images_of_many_sizes_need_image_size(folder):
    with pytest.raises(UserError, match=r"'oblong' differ in size: set config\.data\.image_size"):
        build("oblong", folder)


def test_where_sets_are_looked_for(folder, tmp_path, monkeypatch):
    (tmp_path / "home" / "tensorflow_datasets").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFUNCS_DATA", raising=False)
    with pytest.raises(UserError, match=r"'mnist' is not under .*home/tensorflow_datasets\."):
        build("mnist", "")

    shutil.copytree(folder / "mnist", tmp_path / "shared" / "tfds" / "mnist")
    for place in (folder, tmp_path / "shared", tmp_path / "shared" / "tfds"):
        monkeypatch.setenv("MLFUNCS_DATA", str(place))
        same(build("mnist", "").train, GREY[:20], GREY_LABELS[:20])
        monkeypatch.setenv("MLFUNCS_DATA", str(tmp_path))  # the config comes first
        same(build("mnist", place).train, GREY[:20], GREY_LABELS[:20])

    monkeypatch.delenv("MLFUNCS_DATA")
    shutil.move(tmp_path / "shared" / "tfds" / "mnist", tmp_path / "home" / "tensorflow_datasets")
    for place in ("", "~/tensorflow_datasets"):
        same(build("mnist", place).train, GREY[:20], GREY_LABELS[:20])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "imagenet_resized/64x64"])
def test_missing_set_names_the_command(name, tmp_path):
    command = rf"`pip install tensorflow && tfds build {name} --data_dir={tmp_path} --file_format=array_record`"
    with pytest.raises(UserError, match=rf"'{name}' is not under {tmp_path}\. Get it with {command}.*MLFUNCS_DATA"):
        build(name, tmp_path)


def test_unknown_set_lists_the_known(folder):
    with pytest.raises(
        UserError, match=r"'mnits'; known: .any other image set .*cifar10, digits, facts, latents, mnist"
    ):
        build("mnits", folder)


def test_unknown_split(folder):
    for part in ("train", "test"):
        with pytest.raises(UserError, match=rf"unknown config\.data\.{part}_split 'trian'; known: test, train$"):
            build("mnist", folder, **{f"{part}_split": "trian"})


def test_negative_size(folder):
    with pytest.raises(UserError, match=r"config\.data\.image_size must be >= 0"):
        build("mnist", folder, image_size=-3)


def damaged(file, change):
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("dataset_info.json", lambda info: info.update(fileFormat="tfrecord"), "file format"),
        ("dataset_info.json", lambda info: info.update(splits=[]), "no prepared version"),
        ("features.json", lambda features: features["featuresDict"].update(features={}), "image"),
    ],
)
def test_damaged_set_is_named_with_the_command(tmp_path, file, change, match):
    target = write_image_set(tmp_path, "tiny", COLOUR, COLOUR_LABELS)
    damaged(target / file, change)
    with pytest.raises(UserError, match=rf"'tiny' under {tmp_path} can't be read .*{match}.*`tfds build tiny"):
        build("tiny", tmp_path)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda target: (target / "dataset_info.json").write_text("{"), "json"),
        (lambda target: (target / "dataset_info.json").unlink(), ""),
        (lambda target: target.rename(target.with_name("9.9.9")), "no prepared version"),
        (lambda target: next(target.glob("*train*")).unlink(), ""),
        (lambda target: next(target.glob("*train*")).write_bytes(b"no records"), ""),
    ],
    ids=["info cut short", "info lost", "other version", "records lost", "records damaged"],
)
def test_lost_and_damaged_files_are_one_error(tmp_path, harm, match):
    harm(write_image_set(tmp_path, "mnist", GREY, GREY_LABELS, held_out=10))
    with pytest.raises(UserError, match=rf"'mnist' under {tmp_path} can't be read .*(?i:{match}).*`tfds build mnist"):
        build("mnist", tmp_path)


def test_another_size_of_a_prepared_set_is_one_error(folder):
    with pytest.raises(UserError, match=r"'imagenet_resized/32x32' under .* can't be read"):
        build("imagenet_resized/32x32", folder)
