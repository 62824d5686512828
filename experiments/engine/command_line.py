"""Flags, configs from files, and errors as one clear line."""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from experiments.engine.errors import UserError

EXIT_USAGE = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def define_config() -> flags.FlagHolder:
    """The `--config=FILE` flag; `--config.field=value` overrides a field."""
    return config_flags.DEFINE_config_file("config", None, "file with get_config(), e.g. configs/consistency/digits.py")


def _parse(argv: Sequence[str], required: Sequence[str]) -> None:
    overrides = [a for a in argv[1:] if a.startswith(("--config.", "-config."))]
    if overrides and not any(a.lstrip("-").startswith("config=") or a in ("--config", "-config") for a in argv[1:]):
        raise UserError(f"{overrides[0]} needs --config=FILE beside it")
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise UserError(_first_line(error)) from None
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        # ml_collections raises these for an unknown field, a value of the wrong type, or a faulty config file.
        raise UserError(_first_line(error)) from None
    except (FileNotFoundError, OSError, SyntaxError, ImportError) as error:
        raise UserError(f"--config: {_first_line(error)}") from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    for name in required:
        if flags.FLAGS[name].value in (None, ""):
            raise UserError(f"--{name} is required; see --helpshort")


def _first_line(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def run(main: Callable[[], None], *, required: Sequence[str] = (), positional: bool = False) -> None:
    """Parses the flags and calls `main`; what the user can mend ends in one line and exit code 2.

    A `positional` program takes its arguments as they are and has no flags.
    """
    try:
        if any(argument in ("--help", "-help", "--helpshort", "--helpfull", "-h") for argument in sys.argv[1:]):
            print((sys.modules["__main__"].__doc__ or "").strip())
            return
        if not positional:
            _parse(sys.argv, required)
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): nothing is left to say.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
