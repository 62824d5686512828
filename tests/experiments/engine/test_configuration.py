"""Configs as data: dotted paths, the fingerprint, the file in a workdir, the fields that two configs don't share."""

import json

import ml_collections
import pytest

from experiments.engine import configuration
from experiments.engine.errors import UserError


def example():
    classifier = {"log_every": 10, "width": 4, "data": {"name": "digits", "data_dir": "/a"}, "mesh": {"data": -1}}
    return ml_collections.ConfigDict(
        {
            "task": "consistency",
            "seed": 0,
            "steps": 10,
            "log_every": 5,
            "evaluate_every": 5,
            "checkpoint": {"every": 5, "keep": 3},
            "mesh": {"data": -1},
            "parallel": "jit",
            "cache_dir": "cache",
            "data": {"name": "mnist", "data_dir": "", "resident_bytes": 100},
            "model": {"channel_multipliers": (1, 2), "dropout": None},
            "teacher": {
                "steps": 10,
                "model": {"width": 4},
                "checkpoint": {"every": 1},
                "optimizer": {"learning_rate": 0.1},
            },
            "evaluation": {"samples": 16, "features": classifier},
        }
    )


def changed(path, value):
    config = example()
    *parents, name = path.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    with node.ignore_type(), node.unlocked():
        node[name] = value
    return config


COMPUTING = [
    ("task", "diffusion"),
    ("seed", 1),
    ("steps", 11),
    ("data.name", "digits"),
    ("model.channel_multipliers", (1, 3)),
    ("model.dropout", 0.1),
    ("model.width", 8),
    ("teacher.optimizer.learning_rate", 0.2),
    ("teacher.steps", 11),
    ("evaluation.samples", 17),
    ("evaluation.features", {}),
    ("evaluation.features.width", 5),
    ("evaluation.features.data.name", "mnist"),
    ("data.unsaid", 0.1),
    ("data.only", {"style": ["plain"]}),
]
INCIDENTAL = [
    ("log_every", 1),
    ("evaluate_every", 0),
    ("checkpoint.every", 1),
    ("checkpoint.keep", 1),
    ("mesh.data", 2),
    ("model.remat", True),
    ("teacher.model.remat", True),
    ("parallel", "another"),
    ("cache_dir", "elsewhere"),
    ("data.data_dir", "/b"),
    ("data.resident_bytes", 0),
    ("data.unsaid", 0.0),
    ("data.jitter", 1.0),
    ("data.only", {}),
    ("teacher.checkpoint.every", 2),
    ("evaluation.features.log_every", 1),
    ("evaluation.features.data.data_dir", "/b"),
    ("evaluation.features.mesh.data", 1),
]


def test_flatten():
    tree = {"a": 1, "b": {"c": [2, {"d": 3}], "e": {"f": None}}, "g": {}}
    assert list(configuration.flatten(tree)) == [("a", 1), ("b.c", [2, {"d": 3}]), ("b.e.f", None), ("g", {})]


@pytest.mark.parametrize(("path", "value"), INCIDENTAL)
def test_incidental_fields_keep_the_fingerprint(path, value, tmp_path):
    config = changed(path, value)
    assert configuration.plain(config) != configuration.plain(example())
    assert configuration.fingerprint(config) == configuration.fingerprint(example())
    configuration.save(example(), tmp_path)
    configuration.check_same(config, tmp_path)


@pytest.mark.parametrize(("path", "value"), COMPUTING)
def test_computing_fields_change_the_fingerprint(path, value, tmp_path):
    config = changed(path, value)
    assert configuration.fingerprint(config) != configuration.fingerprint(example())
    configuration.save(example(), tmp_path)
    with pytest.raises(UserError, match=path.replace(".", r"\.")):
        configuration.check_same(config, tmp_path)


def test_the_fingerprint_ignores_the_order_of_fields():
    reverse = ml_collections.ConfigDict(dict(reversed(configuration.plain(example()).items())))
    assert configuration.fingerprint(reverse) == configuration.fingerprint(example())
    assert len(configuration.fingerprint(reverse)) == 12


def test_round_trip_through_a_workdir(tmp_path):
    config = example()
    configuration.save(config, tmp_path)
    loaded = configuration.load(tmp_path)
    assert configuration.plain(loaded) == configuration.plain(config)
    assert configuration.fingerprint(loaded) == configuration.fingerprint(config)
    assert loaded.evaluation.features.data.name == "digits"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_saving_again_replaces_the_file(tmp_path):
    configuration.save(example(), tmp_path)
    configuration.save(changed("log_every", 7), tmp_path)
    assert configuration.load(tmp_path).log_every == 7


def test_check_same_names_each_differing_field_with_both_values(tmp_path):
    configuration.save(example(), tmp_path)
    config = changed("seed", 1)
    config.log_every = 1
    config.model.channel_multipliers = (1, 3)
    config.model.width = 8
    del config.teacher.steps
    with pytest.raises(UserError) as refusal:
        configuration.check_same(config, tmp_path)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path} was made by another config; choose another --workdir.")
    assert message.endswith(
        "Differing fields: model.channel_multipliers: [1, 2] there, [1, 3] here; model.width: 'absent' there, 8 here; "
        "seed: 0 there, 1 here; teacher.steps: 10 there, 'absent' here"
    )


def test_a_folder_without_config_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is no run: it has no config\.json"):
        configuration.load(tmp_path)
    with pytest.raises(UserError, match="is no run"):
        configuration.load(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b'{"seed": ', b"\xff\xfe", b"[1, 2]", b"3", b"null"])
def test_a_corrupt_file_is_named_and_left_alone(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    for refused in (lambda: configuration.load(tmp_path), lambda: configuration.check_same(example(), tmp_path)):
        with pytest.raises(UserError, match=r"config\.json is corrupt \(.+\); restore it, or choose another workdir"):
            refused()
    assert path.read_bytes() == content


def test_the_file_is_readable_json(tmp_path):
    configuration.save(example(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model"] == {
        "channel_multipliers": [1, 2],
        "dropout": None,
    }
