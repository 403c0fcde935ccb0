"""Imports go one way, and the core runs without the packages that only some rooms need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hgrnx"

# What each room may import of the others. A room that is not named here may import nothing.
BASE = {"errors", "config", "paths", "console"}
ALLOWED = {
    "errors": set(),
    "paths": {"errors"},
    "console": set(),
    "options": set(),
    "config": {"errors"},
    "ops": BASE,
    "data": BASE,
    "tracking": BASE,
    "models": BASE | {"ops"},
    "objectives": BASE | {"ops", "models"},
    "evaluation": BASE | {"ops", "models", "data"},
    "training": BASE | {"ops", "models", "objectives", "data", "evaluation", "tracking"},
    "search": BASE,
    "report": BASE | {"search"},
    "bench": BASE
    | {"ops", "models", "objectives", "data", "evaluation", "training", "tracking", "report", "runs", "options"},
    "doctor": BASE | {"ops", "models", "objectives", "data", "training", "tracking", "report", "launch"},
    "runs": BASE | {"models", "data", "training"},
    "export": BASE | {"models", "data", "training", "report", "runs"},
    "launch": BASE
    | {"ops", "models", "objectives", "data", "evaluation", "tracking", "training", "search", "report", "runs"},
    "cli": BASE
    | {"models", "data", "evaluation", "tracking", "report", "runs", "export", "launch", "bench", "doctor", "options"},
}
# Single files that may import more than their room.
ALSO = {"evaluation/finetune.py": {"training"}, "launch/cluster_commands.py": {"options"}}
# Third-party packages with one owner.
OWNERS = {
    "ray": ("launch/",),
    "deepspeed": ("training/deepspeed_engine.py",),
    "mlflow": ("tracking/",),
    "fla": ("ops/", "models/hub.py", "bench/"),
    "transformers": ("models/hub.py", "bench/peers.py", "bench/data.py"),
    "lm_eval": ("bench/eval_peers.py",),
    "lm_pub_quiz": ("bench/eval_peers.py",),
    "triton": ("ops/",),
    "mamba_ssm": ("ops/",),
    "typer": ("cli.py", "options.py", "bench/commands.py", "launch/cluster_commands.py"),
    "matplotlib": ("report/",),
    "jinja2": ("report/",),
    "huggingface_hub": ("data/hub.py", "export.py"),
    "rensa": ("data/duplicates.py",),
    "optuna": ("search/",),
}
ABSENT = (
    "ray",
    "deepspeed",
    "mlflow",
    "triton",
    "fla",
    "datasets",
    "matplotlib",
    "transformers",
    "huggingface_hub",
    "rensa",
    "optuna",
)


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "hgrnx" else set()
    return names


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_hold(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = ALLOWED[room] | ALSO.get(str(path.relative_to(PACKAGE)), set())
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "hgrnx" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] == room or parts[1] in allowed, f"{room} must not import {name}"
        if parts[0] in OWNERS:
            where = str(path.relative_to(PACKAGE))
            assert where.startswith(OWNERS[parts[0]]), f"{where} must not import {name}"


def test_the_check_sees_a_wrong_arrow(tmp_path: Path) -> None:
    wrong = tmp_path / "x.py"
    wrong.write_text("import ray\nfrom hgrnx.launch import jobs\n")
    assert imported_modules(wrong) == {"ray", "hgrnx.launch"}


CORE_STEP = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in %(absent)r:
            raise ModuleNotFoundError(f"{name} is absent in this test", name=name)
sys.meta_path.insert(0, Refuse())

import torch
from hgrnx.config import HGRN2Config, LaunchConfig, TrainingConfig
import hgrnx.data.loader, hgrnx.data.prepare, hgrnx.evaluation.glue, hgrnx.evaluation.suite
import hgrnx.training.loop, hgrnx.training.run
from hgrnx.models import build_model
from hgrnx.objectives import NextToken, ObjectiveModule
from hgrnx.training.engine import build_engine

torch.set_num_threads(1)
model = build_model(HGRN2Config(hidden_size=32, num_hidden_layers=2, expand_ratio=16), 100, seed=0)
training = TrainingConfig(batch_size=2, seq_len=16, precision="fp32")
engine = build_engine(ObjectiveModule(model, NextToken()), training, LaunchConfig(engine="torch"))
tokens = torch.randint(0, 100, (2, 17), generator=torch.Generator().manual_seed(0))
losses = []
for _ in range(3):
    output = engine.forward(tokens[:, :-1], tokens[:, 1:])
    engine.backward(output.loss_sum, 32, last_micro=True)
    engine.step(1e-2)
    losses.append(float(output.loss_sum))
assert losses[2] < losses[0], losses
present = [name for name in %(absent)r if name in sys.modules]
assert not present, present
print("trained")
"""


def test_core_trains_without_optional_packages() -> None:
    script = CORE_STEP % {"absent": ABSENT}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "trained", done.stderr[-2000:]
