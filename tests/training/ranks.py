"""Processes that train together, forked so that what is imported once serves all of them."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def fork_ranks(count: int, work: Callable[[int], None]) -> None:
    """Call ``work`` with its rank in each of ``count`` processes; ends this one with status 1 where one fails."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            failed = 1
            try:
                work(rank)
                failed = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(failed)
        children.append(child)
    if any([os.waitpid(child, 0)[1] for child in children]):
        sys.exit(1)
