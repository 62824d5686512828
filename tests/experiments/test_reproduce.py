"""`reproduce` and `catalogue` as a user calls them."""

import os

import pytest

from experiments.reproducing import listing
from tests.experiments.helpers import only_line, program

CONFIG = "--config=configs/papers/multi_sample_dropout.py"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of --config=configs/papers/NAME.py, --all, --list and --table"),
        ((CONFIG, "--all"), "give one of"),
        ((CONFIG, "--only=dropout"), "--only narrows --all, --list or --table"),
        (("--table", "--smoke"), "--table shows full results; a --smoke run has none"),
        (("--table", "--only=multi_sample_dropout"), "none of the papers multi_sample_dropout has entries in a table"),
        (("--all", "--workers=2"), "--workers=2 is for --smoke: full runs measure time"),
        (("--all", "--smoke", "--workers=0"), "--workers must be >= 1, got 0"),
        ((CONFIG, "--smoke", "--workers=2"), "--workers=2 shares out the papers of --all"),
        (("--list", "--only=nothing"), "unknown --only 'nothing'; known: "),
        ((CONFIG, "--config.seeds=0"), "config.seeds must be >= 1, got 0"),
        ((CONFIG, "--config.study=nothing"), "unknown config.study 'nothing'; known: "),
        (("--config=configs/consistency/digits.py",), "config.title is missing: this is no config of a paper"),
    ],
)
def test_what_can_not_be_run_is_refused(arguments, words):
    assert words in only_line(program("experiments.reproduce", *arguments))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_can_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    line = only_line(program("experiments.reproduce", CONFIG, f"--workdir={tmp_path / 'run'}"))
    assert f"--workdir {tmp_path / 'run'} can't be written" in line


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    line = only_line(program("experiments.reproduce", CONFIG, f"--workdir={tmp_path / 'run'}"))
    assert f"--workdir {tmp_path / 'run'} can't be written" in line


def test_smoke_and_another_config_in_its_folder(tmp_path):
    given = (CONFIG, f"--workdir={tmp_path / 'run'}", f"--config.cache_dir={tmp_path / 'cache'}", "--smoke")
    result = program("experiments.reproduce", *given)
    assert result.returncode == 0, result.stderr
    assert "multi_sample_dropout  arm 1/3  rate 0.5, 1 mask" in result.stdout
    assert f"picture {tmp_path / 'run' / 'figure.png'}" in result.stdout
    again = only_line(program("experiments.reproduce", *given, "--config.settings.learning_rate=0.1"))
    assert "holds results of another config" in again


def test_the_catalogue_is_listed():
    result = program("experiments.reproduce", "--list", "--only=dropout", COLUMNS="200")
    assert result.returncode == 0, result.stderr
    assert "multi_sample_dropout" in result.stdout
    assert "improved_consistency" not in result.stdout


def test_a_folder_without_results_is_not_kept(tmp_path):
    before = listing.README.read_text()
    line = only_line(program("experiments.catalogue", f"--keep={tmp_path}"))
    assert f"--keep {tmp_path} holds no results.json" in line
    assert listing.README.read_text() == before


def test_nothing_is_stale():
    result = program("experiments.catalogue", "--check")
    assert result.returncode == 0, result.stdout
