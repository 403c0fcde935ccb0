"""What every node of the connected cluster has, and whether it sees the same storage: for ``hgrnx doctor``."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.table import Table

from hgrnx.errors import UserError
from hgrnx.launch.cluster import connected
from hgrnx.paths import Places
from hgrnx.tracking.environment import describe_environment

_MARK = ".hgrnx-doctor-"
_SAME = ("python", "hgrnx", "torch", "ray", "deepspeed", "mlflow", "tokenizers", "numpy")


@dataclass(frozen=True)
class NodeReport:
    """One node, as a task on it found it."""

    id: str
    address: str
    head: bool
    resources: dict[str, float]
    facts: dict[str, Any] | None = None
    """``versions``, ``cpu``, ``cpu_cores``, ``memory_gb``, ``gpus``, ``clock`` (seconds ahead of the driver's, at most
    the time that the task took), ``storage`` (a problem by folder, None where there is none); None: no answer."""
    problems: list[str] = field(default_factory=list)


def look_at_nodes(places: Places, timeout: float = 60.0) -> list[NodeReport]:
    """A report of every living node, the head first; one task a node, which takes no CPU.

    In the folders of runs and data the driver leaves a file that each node must read, and each node one that the
    driver must see: both ways, because a folder of the same name on a disk of its own would pass either.
    """
    word = secrets.token_hex(8)
    folders = [places.runs, places.data]
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: not _is_head(node))
    try:
        for folder in folders:
            _leave(folder, word, "driver")
        look = ray.remote(num_cpus=0, max_retries=0)(_look)
        tasks = {}
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            arguments = ([str(folder) for folder in folders], word, node["NodeID"], time.time())
            tasks[node["NodeID"]] = look.options(scheduling_strategy=here).remote(*arguments)
        ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=timeout)
        return _compared([_report(node, tasks[node["NodeID"]], folders, word, timeout) for node in nodes])
    finally:
        for folder in folders:
            for left in folder.glob(f"{_MARK}{word}-*"):
                left.unlink(missing_ok=True)


def print_cluster(places: Places, console: Console) -> None:
    """Connect, say what the nodes have, and name what is wrong.

    Raises:
        UserError: a node does not answer, has other versions than the rest, or does not share the storage.
    """
    with connected(places):
        reports = look_at_nodes(places)
    table = Table(title="\nRay cluster", title_justify="left")
    for column in ("node", "CPUs", "GPUs", "memory", "Python, torch, Ray", "storage"):
        table.add_column(column)
    for report in reports:
        facts = report.facts
        told = ["?", "?", "no answer"]
        if facts is not None:
            versions = facts["versions"]
            stored = all(problem is None for problem in facts["storage"].values())
            told = [
                f"{facts['memory_gb']:g} GB",
                f"{versions['python']}, {versions['torch']}, {versions['ray']}",
                "shared" if stored else "NOT SHARED",
            ]
        cpus, gpus = (f"{report.resources.get(kind, 0):g}" for kind in ("CPU", "GPU"))
        table.add_row(f"{report.address} {report.id[:6]}{' (head)' if report.head else ''}", cpus, gpus, *told)
    console.print(table)
    problems = [f"{report.address} {report.id[:6]}: {problem}" for report in reports for problem in report.problems]
    if problems:
        raise UserError("The cluster is not fit for a run:\n" + "\n".join(f"  - {problem}" for problem in problems))


def _look(folders: list[str], word: str, node: str, sent: float) -> dict[str, Any]:
    arrived = time.time()
    facts = describe_environment()
    storage: dict[str, str | None] = {}
    for folder in folders:
        try:
            seen = (Path(folder) / f"{_MARK}{word}-driver").read_text(encoding="utf-8") == word
            storage[folder] = None if seen else "holds another file than the driver wrote"
            _leave(Path(folder), word, node)
        except FileNotFoundError:
            storage[folder] = "does not show the driver's file: it is not the same storage"
        except OSError as error:
            storage[folder] = f"cannot be used: {error.strerror}"
    return {
        "versions": {"python": facts["python"], **facts["versions"]},
        **{key: facts[key] for key in ("cpu", "cpu_cores", "memory_gb", "gpus")},
        "clock": arrived - sent,
        "storage": storage,
    }


def _report(node: dict[str, Any], task: Any, folders: list[Path], word: str, timeout: float) -> NodeReport:
    report = NodeReport(node["NodeID"], node["NodeManagerAddress"], _is_head(node), node["Resources"])
    try:
        facts: dict[str, Any] = ray.get(task, timeout=0)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        report.problems.append(f"no answer in {timeout:g} seconds")
        return report
    except ray.exceptions.RayError as error:
        report.problems.append(f"its task failed: {str(error).strip().splitlines()[-1][:160]}")
        return report
    for folder in folders:
        problem = facts["storage"][str(folder)]
        if problem is None and not (folder / f"{_MARK}{word}-{report.id}").exists():
            problem = facts["storage"][str(folder)] = "does not hand its files over to the driver"
        if problem is not None:
            report.problems.append(f"{folder} {problem}")
    if not -5 < facts["clock"] < timeout:
        report.problems.append(f"its clock is {facts['clock']:+.0f} seconds off the driver's")
    return NodeReport(report.id, report.address, report.head, report.resources, facts, report.problems)


def _compared(reports: list[NodeReport]) -> list[NodeReport]:
    """Each version that is not the driver's is a problem of that node: code would be pickled here and read there."""
    own = describe_environment()
    expected = {"python": own["python"], **own["versions"]}
    for report in reports:
        for name in _SAME if report.facts is not None else ():
            found = report.facts["versions"].get(name)  # type: ignore[index]
            if found != expected[name]:
                report.problems.append(f"{name} is {found or 'missing'}, the driver has {expected[name]}")
    return reports


def _leave(folder: Path, word: str, who: str) -> None:
    with suppress(FileExistsError):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_MARK}{word}-{who}"
    with path.open("w", encoding="utf-8") as file:
        file.write(word)
        file.flush()
        os.fsync(file.fileno())


def _is_head(node: dict[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]
