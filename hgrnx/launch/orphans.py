"""Processes of Ray end with their raylet. Ray runs this in each of them as it starts, so it imports next to nothing."""

from __future__ import annotations

import os
import threading
import time

HOOK = f"{__name__}.end_with_parent"
"""For ``worker_process_setup_hook`` of Ray's runtime environment."""
_LOOK_S, _ALONE_S = 1.0, 5.0


def end_with_parent() -> None:
    """From now on this process ends when its parent does, the raylet: some workers of a lost node stay for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        time.sleep(_ALONE_S)  # for Ray, which ends most by itself
        os._exit(1)

    threading.Thread(target=watch, name="hgrnx-parent", daemon=True).start()
