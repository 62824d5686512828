"""A text file as rows of characters, its last part held out."""

import os
from pathlib import Path

import jax
import ml_collections
import numpy as np

from experiments.engine.errors import UserError
from experiments.engine.logs import CONSOLE
from experiments.worlds import InMemory, Split, Text, Trained, World, Zeros

EMBEDDED = Path(__file__).with_name("passages.txt")  # the Gettysburg Address and five of Shakespeare's sonnets
SHAKESPEARE = "tinyshakespeare.txt"
SHAKESPEARE_SIZE, SHAKESPEARE_CHARACTERS = 1_115_394, 65  # of the file that Karpathy's char-rnn made known
PAD = 0


def build(config: ml_collections.ConfigDict, trained: Trained) -> World:
    """Rows of `config.length` characters; `configs.common.text` has the fields.

    Where `config.file` is the complete "tinyshakespeare.txt" and this machine lacks it, the passages of this package take
    its place, and a line says so.
    """
    del trained
    path = _path(config)
    if path is None:
        path = EMBEDDED
        CONSOLE.print(f"{config.file} is not under {_folder(config)}: the passages in {EMBEDDED.name} are read instead")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config.data.file {path} can't be read as text: {error}") from None
    characters = tuple(sorted(set(content)))
    numbers = {character: number for number, character in enumerate(characters, start=1)}
    tokens = np.array([numbers[character] for character in content], np.int32)
    cut = _cut(config, len(tokens))
    train, test = _rows(config, tokens[:cut], config.stride), _rows(config, tokens[cut:], config.length - 1)
    return _world(config, characters, InMemory(train), InMemory(test))


def describe(config: ml_collections.ConfigDict, trained: Trained) -> World:
    """The same; zeros for a "tinyshakespeare.txt" that this machine lacks."""
    if _path(config) is not None:
        return build(config, trained)
    cut = _cut(config, SHAKESPEARE_SIZE)
    row = {name: jax.ShapeDtypeStruct(s, np.int32) for name, s in (("tokens", (config.length,)), ("row", ()))}
    counts = (cut - config.length) // config.stride + 1, (SHAKESPEARE_SIZE - cut - 1) // (config.length - 1)
    characters = tuple(chr(32 + number) for number in range(SHAKESPEARE_CHARACTERS))
    return _world(config, characters, *(Zeros(row, count) for count in counts))


def _folder(config: ml_collections.ConfigDict) -> Path:
    """Where a file is looked for: the config's folder, else that of the environment."""
    return Path(config.data_dir or os.environ.get("MLFUNCS_DATA", "") or ".").expanduser()


def _path(config: ml_collections.ConfigDict) -> Path | None:
    """The file of a config; None where it is the known one, which is not there."""
    if not config.file:
        return EMBEDDED
    folder = _folder(config)
    tried = [folder / config.file, folder / "text" / config.file]
    found = next((path for path in tried if path.is_file()), None)
    if found is None and config.file != SHAKESPEARE:
        raise UserError(
            f"config.data.file {config.file!r} is neither {tried[0]} nor {tried[1]}; name a text file, or the folder that "
            "has it in config.data.data_dir or MLFUNCS_DATA"
        )
    return found


def _cut(config: ml_collections.ConfigDict, size: int) -> int:
    """The first character of the test set."""
    for name, low in (("length", 2), ("stride", 1)):
        if config[name] < low:
            raise UserError(f"config.data.{name} must be at least {low}, got {config[name]}")
    if not 0 < config.test_fraction < 1:
        raise UserError(f"config.data.test_fraction must be in (0, 1), got {config.test_fraction}")
    cut = size - round(size * config.test_fraction)
    if min(cut, size - cut) < config.length:
        raise UserError(
            f"config.data.length {config.length} is more than the {cut} characters of the training set, or the "
            f"{size - cut} of the test set"
        )
    return cut


def _rows(config: ml_collections.ConfigDict, tokens: np.ndarray, stride: int) -> dict[str, np.ndarray]:
    """A row from every `stride`-th character on."""
    rows = np.lib.stride_tricks.sliding_window_view(tokens, config.length)[::stride].copy()
    return {"tokens": rows, "row": np.arange(len(rows), dtype=np.int32)}


def _world(config: ml_collections.ConfigDict, characters: tuple[str, ...], train: Split, test: Split) -> World:
    numbers = {character: number for number, character in enumerate(characters, start=1)}
    first = "\n" if "\n" in numbers else characters[0]

    def encode(text: str) -> np.ndarray:
        unknown = sorted({character for character in text if character not in numbers})
        if unknown:
            raise ValueError(f"the data has none of the characters {', '.join(map(repr, unknown))}")
        return np.array([numbers[character] for character in text or first], np.int32)

    def decode(tokens: np.ndarray) -> str:
        return "".join(words[token] for token in np.asarray(tokens).tolist())

    words = ("", *characters)
    return World(
        train=train,
        test=test,
        example_shape=(config.length,),
        num_classes=len(words),
        text=Text(words, encode, decode),
    )
