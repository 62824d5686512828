"""Makes the catalogue of the README and docs/papers.md from configs/papers and docs/results.

usage: python -m experiments.catalogue [--keep=DIR] [--check]

  --keep    first takes the finished results in DIR (what `reproduce` calls --workdir), or in its folders, into docs/results
  --check   changes nothing; says what is stale and exits with 1 if something is
"""

from pathlib import Path

from absl import flags

from experiments.engine import command_line
from experiments.engine.errors import UserError

_KEEP = flags.DEFINE_string("keep", "", "folder of finished results")
_CHECK = flags.DEFINE_boolean("check", False, "only say what is stale")


def main() -> None:
    from experiments.reproducing import listing, results

    if _CHECK.value:
        found = listing.stale()
        print("\n".join(found) or "the catalogue is as configs/papers and docs/results are")
        if found:
            raise SystemExit(command_line.EXIT_FAILED)
        return
    if _KEEP.value:
        folder = Path(_KEEP.value)
        paths = sorted([*folder.glob(results.FILE), *folder.glob(f"*/{results.FILE}")])
        if not paths:
            raise UserError(f"--keep {folder} holds no {results.FILE}, nor do its folders")
        print(f"kept in {listing.KEPT}: {', '.join(listing.keep(path) for path in paths)}")
    listing.README.write_text(listing.readme(listing.README.read_text()))
    listing.PAPERS.write_text(listing.papers())
    print(f"written: {listing.README}, {listing.PAPERS}")


if __name__ == "__main__":
    command_line.run(main)
