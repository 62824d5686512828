"""Flags, configs from files, and errors as one clear line."""

import contextlib
import errno
import glob
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from experiments.engine.errors import Abandoned, UserError
from experiments.engine.stopping import Stopped

EXIT_USAGE = 2
EXIT_FAILED = 1
EXIT_SIGNAL = 128  # plus the number of the signal, as shells count
EXIT_INTERRUPTED = 130
UNWRITABLE = (errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS)
OWN_FAULTS = ("INVALID_ARGUMENT", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED")  # of JAX, in one process alone
GOOGLE = "0x1ae0"  # as a maker of PCI devices


def define_config() -> flags.FlagHolder:
    """The `--config=FILE` flag; `--config.field=value` overrides a field."""
    return config_flags.DEFINE_config_file("config", None, "file with get_config(), e.g. configs/consistency/digits.py")


def given_config(holder: flags.FlagHolder) -> ml_collections.ConfigDict:
    """The config of the command line, its overrides applied."""
    config = holder.value
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"--config: get_config() must return an ml_collections.ConfigDict, got {type(config).__name__}")
    return config


def _parse(argv: Sequence[str], required: Sequence[str]) -> None:
    overrides = [a for a in argv[1:] if a.startswith(("--config.", "-config."))]
    files = [a.partition("=")[2] for a in argv[1:] if a.startswith(("--config=", "-config="))]
    if overrides and not files and "--config" not in argv:
        raise UserError(f"{overrides[0]} needs --config=FILE beside it")
    for name in files:
        if name and not Path(name.partition(":")[0]).is_file():
            raise UserError(f"--config: there is no file {name.partition(':')[0]}")
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise UserError(_first_line(error)) from None
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(error, overrides)) from None
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(_first_line(error)) from None
    except (OSError, SyntaxError, ImportError) as error:
        raise UserError(f"--config: {_first_line(error)}") from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    for name in required:
        if flags.FLAGS[name].value in (None, ""):
            raise UserError(f"--{name} is required; see --help")


def _unknown_field(error: Exception, overrides: Sequence[str]) -> str:
    """ml_collections names the last part of a path that a config lacks, and sometimes one that is alike."""
    text = _text(error)
    quoted = re.match(r"\W*(\w+)", text)
    at_fault = [a for a in overrides if quoted and quoted[1] in re.split(r"[.\[\]]", a.partition("=")[0])]
    if not at_fault:
        return _first_line(error)
    alike = re.search(r'Did you mean "(\w+)"', text)
    return f"unknown config field {at_fault[0].partition('=')[0]}" + (f"; did you mean {alike[1]}?" if alike else "")


def _text(error: BaseException) -> str:
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()


def _first_line(error: BaseException) -> str:
    return (_text(error) or type(error).__name__).splitlines()[0]


def _underscored(argument: str) -> str:
    """--num-processes as well as --num_processes; paths of config fields and values stay."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name.startswith("--config"):
        return argument
    return "--" + name[2:].replace("-", "_") + equals + value


def _leave_the_tpu_library() -> None:
    """Without a TPU here, JAX must not load an installed libtpu: it would print errors and leave a lock and logs in /tmp."""
    vendors = glob.glob("/sys/bus/pci/devices/*/vendor")
    present = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if not present and all(Path(vendor).read_text().strip() != GOOGLE for vendor in vendors):
        os.environ.setdefault("TPU_LOAD_LIBRARY", "0")


def run(main: Callable[[], None], *, required: Sequence[str] = (), positional: bool = False) -> None:
    """Parses the flags and calls `main`; what the user can mend ends in one line and exit code 2.

    A `positional` program takes its arguments as they are and has no flags.
    """
    try:
        if any(argument in ("--help", "-help", "--helpshort", "--helpfull", "-h") for argument in sys.argv[1:]):
            print((sys.modules["__main__"].__doc__ or "").strip())
            return
        if not positional:
            _parse([sys.argv[0], *map(_underscored, sys.argv[1:])], required)
        _leave_the_tpu_library()
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _exit(EXIT_USAGE, at_once=isinstance(error, Abandoned))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_SIGNAL + stopped.number)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _exit(EXIT_INTERRUPTED, at_once=True)  # not waiting for what threads still write
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): nothing is left to say.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(EXIT_FAILED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            where = error.filename or "a file"
            print(f"error: {where} can't be written: {error.strerror}; checkpoints stay as they are", file=sys.stderr)
            _exit(EXIT_USAGE)
        if not _is_one_of_several():
            raise
        # Not raised: while Python ends, JAX would wait for the other processes, and they for this one.
        if _lost_others(error):
            from experiments.engine import hosts

            print(hosts.GONE.format(what=_first_line(error)[:200]), file=sys.stderr)
        else:
            traceback.print_exc()
        _exit(EXIT_FAILED)


def _is_one_of_several() -> bool:
    if "jax" not in sys.modules:
        return False
    import jax

    from experiments.engine import hosts

    return jax.distributed.is_initialized() and hosts.several()


def _lost_others(error: Exception) -> bool:
    """Whether an error of one of several processes is what JAX raises when another has gone."""
    import jax

    causes: list[BaseException | None] = [error, error.__cause__, error.__context__]
    told = [str(cause) for cause in causes if isinstance(cause, jax.errors.JaxRuntimeError)]
    return bool(told) and not any(fault in text for text in told for fault in OWN_FAULTS)


def _exit(code: int, *, at_once: bool = False) -> None:
    if "jax" in sys.modules:
        from experiments.engine import hosts

        hosts.leave(code)
    if at_once:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
