"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(ValueError):
    """Something the user can put right: says what was wrong, where, and what to do.

    The command line prints the message alone, without a stack trace, and exits with ``status``.
    """

    status = 2


class Terminated(UserError):
    """Ended by SIGTERM in an orderly way; the same command goes on."""

    status = 143


def joined(problems: Sequence[str]) -> str:
    """Several problems as one message, one a line; at most 20 of them."""
    if len(problems) == 1:
        return problems[0]
    more = [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
    return "\n  ".join([f"{len(problems)} problems:", *problems[:20], *more])
