"""Things to do some at a time, each of which may have to wait for others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from hgrnx.errors import Terminated


def do_in_order(needs: Mapping[str, Collection[str]], at_once: int, do: Callable[[str], None]) -> None:
    """Do everything, each as soon as what it needs is done and one of ``at_once`` places is free.

    Args:
        needs: what each one needs, by name; those must stand before it.
        at_once: 1 does it all in the calling thread.

    Raises:
        Terminated: by ``do``; what has begun by then is waited for, what has not is left undone.
        Exception: any other of ``do``; nothing new is begun, and what has begun is not waited for.
    """
    if at_once == 1:
        for name in needs:
            do(name)
        return
    pool = ThreadPoolExecutor(at_once)
    left, going, done = list(needs), dict[Future[None], str](), set[str]()
    try:
        while left or going:
            ready = [name for name in left if done.issuperset(needs[name])]
            going |= {pool.submit(do, name): name for name in ready}
            left = [name for name in left if name not in ready]
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                future.result()
                done.add(going.pop(future))
    except Terminated:
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
