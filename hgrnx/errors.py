"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right: says what was wrong, where, and what to do.

    The command line prints the message alone, without a stack trace, and exits with status 2.
    """
