"""Known vulnerabilities in the versions of constraints.txt, asked of OSV (https://osv.dev) in one request.

Exit 1 when there is one that pyproject.toml does not excuse (``[tool.audit] ignore``: id = "why it does not matter"),
but 0 with ``--warn``: a vulnerability that became known today must not break the tests of an old checkout.
Where the service can't be reached that is said, and nothing fails: a build must not depend on it.

    python .ci/audit.py [--warn] [URL]
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVICE = "https://api.osv.dev/v1/querybatch"
TIMEOUT_S = 10.0


def pinned(constraints: str) -> dict[str, str]:
    """Version of every package in ``constraints``, by normalised name."""
    pairs = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;+]+)", constraints, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def ask(versions: dict[str, str], service: str) -> dict[str, list[str]]:
    """Ids of the vulnerabilities of each package that has any. Raises OSError or ValueError when there is no answer."""
    queries = [
        {"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in versions.items()
    ]
    request = urllib.request.Request(
        service, data=json.dumps({"queries": queries}).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        results = json.load(answer)["results"]
    if len(results) != len(queries):
        raise ValueError(f"{len(results)} answers to {len(queries)} questions")
    found = {name: [one["id"] for one in result.get("vulns") or ()] for name, result in zip(versions, results)}
    return {name: ids for name, ids in found.items() if ids}


def main(service: str, warn: bool = False) -> int:
    versions = pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    excused = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")).get("tool", {}).get("audit", {})
    ignored: dict[str, str] = excused.get("ignore", {})
    try:
        found = ask(versions, service)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        print(f"audit: not done, {service} gave no answer ({reason}).")
        return 0
    bad = {name: [one for one in ids if one not in ignored] for name, ids in found.items()}
    bad = {name: ids for name, ids in bad.items() if ids}
    for name, ids in sorted(bad.items()):
        print(f"audit: {name} {versions[name]}: {', '.join(f'https://osv.dev/{one}' for one in ids)}")
    if bad:
        print("audit: take fixed versions into constraints.txt, or say in pyproject.toml why one does not matter:")
        print('audit:   [tool.audit] ignore = {"ID" = "why"}')
        return 0 if warn else 1
    print(f"audit: no known vulnerability in {len(versions)} packages.")
    return 0


if __name__ == "__main__":
    services = [argument for argument in sys.argv[1:] if argument != "--warn"]
    sys.exit(main(services[0] if services else SERVICE, "--warn" in sys.argv))
