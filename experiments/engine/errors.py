"""The one exception that programs show as a single line."""

from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do. Exit code 2, one line."""


class Abandoned(UserError):
    """The same, while threads of a package are still at work: the program ends without waiting for what they would say."""


def first_line(error: BaseException) -> str:
    """What an error says, without what follows its first line; of one that says nothing, its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is in no table, with the names that are."""
    return UserError(f"unknown {what} {name!r}; known: {', '.join(sorted(known))}")
