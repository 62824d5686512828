"""Makes `.venv` with all that the project needs, once. Runs under any Python >= 3.11, with nothing installed.

A stamp inside `.venv` says what was installed; it is written last, so that a broken or interrupted install is never
taken for a whole one: the next call starts over. Two calls at once wait for each other.
"""

import fcntl
import hashlib
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed"
MINIMUM = (3, 11)
INPUTS = ("pyproject.toml", "constraints.txt")


def fingerprint() -> str:
    """What an installation depends on: the files that name packages, the interpreter, and where the checkout lies."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def fail(message: str) -> None:
    print(f"set-up failed: {message}", file=sys.stderr)
    sys.exit(1)


def call(*command: str) -> None:
    try:
        code = subprocess.call(command, cwd=ROOT)
    except OSError as error:
        code, command = 1, (*command, f"({error})")
    if code:
        fail(f"`{' '.join(command)}` ended with status {code}; see above, mend it, and run make again")


def main() -> None:
    if sys.version_info < MINIMUM:
        fail(f"Python {'.'.join(map(str, MINIMUM))} or newer is needed, this is {sys.version.split()[0]}")
    with open(ROOT / ".setup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = fingerprint()
        if STAMP.exists() and STAMP.read_text() == wanted:
            return
        if VENV.exists():
            shutil.rmtree(VENV)
        print("setting up .venv (once, a few minutes) ...", flush=True)
        # Not this interpreter itself: it may belong to a virtual environment.
        base = getattr(sys, "_base_executable", None) or sys.executable
        call(base, "-m", "venv", str(VENV))
        python = str(VENV / "bin" / "python")
        call(
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--constraint",
            "constraints.txt",
            "--editable",
            ".[experiments,test]",
        )
        call(python, "-c", "import jax, flax, orbax.checkpoint, mlfuncs")
        STAMP.write_text(wanted)
        print("set-up done", flush=True)


if __name__ == "__main__":
    main()
