"""A job on a real cluster of several raylets, disturbed at seeded random moments, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import World, wait_until
from hgrnx.tracking.tracker import TIMINGS, repeatable
from hgrnx.training.checkpoint import latest_checkpoint, load_checkpoint
from hgrnx.training.events import EVENTS, read_events

pytestmark = pytest.mark.ray

BETWEEN = 60
"""Steps between two faults, on average: some seconds."""
RECIPE = """
name: chaos
data: {{track: demo, words: 6000, vocab_size: 400}}
model: {{hidden_size: 32, num_hidden_layers: 2, expand_ratio: 16}}
training:
  {{duration: {steps} steps, batch_size: {batch}, seq_len: 32, precision: fp32, checkpoint_every: 5 steps, log_every: 2,
   learning_rate: 5e-3}}
evaluation: {{every: 25 steps, pairs_per_file: 4, dev_documents: 4}}
launch: {{num_workers: 2, engine: {engine}, zero_stage: {stage}, max_failures: 1000, collective_timeout_s: 15{more}}}
"""


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(tmp_path, **getattr(request, "param", {}))
    try:
        yield made
    finally:
        made.close()


class Disturbed:
    """One job under ``faults``, given again as often as its driver ends without having finished."""

    def __init__(self, world: World, recipe: Path, home: Path, faults: list[str], generator: random.Random) -> None:
        self.world, self.home, self.generator = world, home, generator
        self.command = ("train", str(recipe))
        # Step and kind, the first due last.
        spread = [BETWEEN * (i + 1) + generator.randrange(-BETWEEN // 3, BETWEEN // 3) for i in range(len(faults))]
        self.plan = sorted(zip(spread, faults, strict=True), reverse=True)
        self.done: list[str] = []
        self.repairs: list[threading.Thread] = []
        self.given = 0
        self.head_lost = False

    @property
    def run_dir(self) -> Path:
        (found,) = [path for path in self.home.glob("runs/chaos-*") if "-job-" not in path.name]
        return found

    def step(self) -> int:
        """The last step in the metrics."""
        try:
            lines = (self.run_dir / "metrics.jsonl").read_bytes().splitlines()
            return int(json.loads(lines[-1])["step"])
        except (ValueError, IndexError, OSError, KeyError):
            return 0

    def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        job = self._give()
        while True:
            assert time.monotonic() < deadline, f"not finished: {self.done} {self.plan}\n{self.world.log()[-3000:]}"
            if job.poll() is not None:
                if job.returncode == 0:
                    break
                if self.head_lost:
                    self.world.replace_cluster()
                    self.head_lost = False
                job = self._give()
            elif self.plan and self.step() >= self.plan[-1][0] and len(self.world.workers()) >= 2:
                time.sleep(self.generator.uniform(0.0, 0.5))
                fault = self.plan.pop()[1]
                print(f"{time.strftime('%X')} step {self.step()}: {fault}", flush=True)
                getattr(self, f"_{fault}")(job)
                self.done.append(fault)
            time.sleep(0.05)
        self._wait_for_repairs()
        assert not self.plan, f"the job ended before {self.plan}"

    def _repair(self, what: Callable[[], None]) -> None:
        """Beside the job, which would be far ahead otherwise when the next fault can come."""
        self.repairs.append(threading.Thread(target=what, daemon=True))
        self.repairs[-1].start()

    def _wait_for_repairs(self) -> None:
        for repair in self.repairs:
            repair.join(320)
            assert not repair.is_alive(), f"a repair does not end\n{self.world.log()[-3000:]}"
        self.repairs.clear()

    def _give(self) -> subprocess.Popen[bytes]:
        self.given += 1
        self._wait_for_repairs()
        if self.world.server is not None and not self.world.server_answers():
            self.world.start_server()
        return self.world.job(*self.command, home=self.home)

    def _worker(self, job: subprocess.Popen[bytes]) -> None:
        self._victim().kill()

    def _hang(self, job: subprocess.Popen[bytes]) -> None:
        victim = self._victim()
        # One that hangs while it is being made is found by nobody: Ray Train waits for it without end.
        wait_until(lambda: "__init__" not in " ".join(victim.cmdline()), 60, "a worker to be made")
        victim.suspend()
        wait_until(lambda: not victim.is_running() or victim.status() == "zombie", 180, "a stopped worker to be found")

    def _sigterm_worker(self, job: subprocess.Popen[bytes]) -> None:
        self._victim().terminate()

    def _flip(self, job: subprocess.Popen[bytes]) -> None:
        folder = latest_checkpoint(self.run_dir / "checkpoints")
        if folder is not None:
            path = self.generator.choice(sorted(folder.glob("*")))
            try:
                content = bytearray(path.read_bytes())
                content[self.generator.randrange(len(content))] ^= 1 << self.generator.randrange(8)
                path.write_bytes(content)
            except FileNotFoundError:
                pass  # pruned meanwhile
        self._victim().kill()

    def _node(self, job: subprocess.Popen[bytes]) -> None:
        self._wait_for_repairs()
        self.world.kill_node(self.generator)
        self._repair(self.world.add_node)

    def _head(self, job: subprocess.Popen[bytes]) -> None:
        self._wait_for_repairs()
        self.world.kill_head()
        self.head_lost = True
        try:
            job.wait(60)
        except subprocess.TimeoutExpired:
            job.kill()
            job.wait()

    def _driver(self, job: subprocess.Popen[bytes]) -> None:
        job.kill()
        job.wait()
        wait_until(lambda: not self.world.workers(), 180, "the workers of a killed driver to end")

    def _sigterm_driver(self, job: subprocess.Popen[bytes]) -> None:
        job.terminate()
        assert job.wait(120) == 143, self.world.log()[-2000:]
        assert "stopped by SIGTERM" in self.world.log()

    def _server(self, job: subprocess.Popen[bytes]) -> None:
        self.world.kill_server()
        self._repair(self.world.start_server)

    def _server_away(self, job: subprocess.Popen[bytes]) -> None:
        """For a minute, in which the run goes on."""
        self.world.kill_server()
        before, back = self.step(), time.monotonic() + 60
        wait_until(lambda: self.step() >= before + 40, 60, "40 steps without MLflow")
        time.sleep(max(0.0, back - time.monotonic()))
        assert job.poll() is None, "the run ended before MLflow was back"
        self.world.start_server()

    def _fewer(self, job: subprocess.Popen[bytes]) -> None:
        """A node is lost for good."""
        self.world.kill_node(self.generator)
        wait_until(lambda: len(self.world.workers()) == 1, 120, "the run to go on with one worker")
        before = self.step()
        wait_until(lambda: self.step() >= before + 10, 120, "ten steps of one worker")

    def _victim(self) -> object:
        return self.generator.choice(self.world.workers()[-2:])


def write_recipe(
    folder: Path, steps: int, engine: str = "deepspeed", stage: int = 2, more: str = "", batch: int = 12
) -> Path:
    path = folder / f"{engine}{stage}-{steps}.yaml"
    path.write_text(RECIPE.format(steps=steps, engine=engine, stage=stage, more=more, batch=batch))
    return path


def steps_for(faults: list[str]) -> int:
    """So that the last fault, and what it takes to repair it, comes before the end."""
    return BETWEEN * (len(faults) + 3)


def records(run_dir: Path) -> list[dict[str, float]]:
    return repeatable(run_dir / "metrics.jsonl")


def assert_as_undisturbed(run_dir: Path, expected: Path) -> None:
    """Weights, moments, metrics and scores, bit for bit; every step once."""
    assert records(run_dir) == records(expected)
    steps = [record["step"] for record in records(run_dir) if "train/loss" in record]
    assert steps == sorted(set(steps))
    found, wanted = (latest_checkpoint(path / "checkpoints") for path in (run_dir, expected))
    assert found is not None and wanted is not None and found.name == wanted.name
    ours, theirs = load_checkpoint(found)[0], load_checkpoint(wanted)[0]
    assert ours.optimizer_step == theirs.optimizer_step
    for name, tensor in theirs.weights.items():
        assert (ours.weights[name] == tensor).all(), name
        for moment in theirs.optimizer:
            assert (ours.optimizer[moment][name] == theirs.optimizer[moment][name]).all(), name
    scores = [json.loads((path / "eval" / "final.json").read_text())["metrics"] for path in (run_dir, expected)]
    assert scores[0] == scores[1]


def assert_mlflow_is_complete(uri: str, run_dir: Path) -> None:
    """Every value of every metric in the file, once, and nothing else."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    run_id = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    values: dict[str, list[tuple[int, float]]] = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for key, value in record.items():
            if key not in ("step", "time", "words"):
                values.setdefault(key, []).append((record["step"], value))
    for key, expected in values.items():
        history = sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))
        # The speed of a step that is computed again is another one, and the first that was published stays.
        if key in TIMINGS:
            assert [step for step, _ in history] == [step for step, _ in expected]
        else:
            assert history == expected, key


GROUPS = """
import ray
from ray.util import placement_group_table
ray.init(address="auto", log_to_driver=False)
print([group["state"] for group in placement_group_table().values()].count("CREATED"))
"""


def assert_nothing_left(world: World, home: Path) -> None:
    def left_of_the_job() -> list[str]:
        return [str(process) for process in [*world.workers(), *world.processes("hgrnx.cli")]]

    deadline = time.monotonic() + 60
    while left_of_the_job() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left_of_the_job()
    done = subprocess.run(
        [sys.executable, "-c", GROUPS], env=world.environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split()[-1] == "0", "placement groups are left"
    left = [path for path in (home / "runs").rglob("*") if ".tmp" in path.name or path.name == "ray"]
    assert not left
    world.close()
    wait_until(lambda: not world.processes(), 30, "the cluster's processes to end")


@pytest.mark.slow
@pytest.mark.long
def test_a_job_told_to_leave_and_robbed_of_its_checkpoint_ends_as_undisturbed(world: World, tmp_path: Path) -> None:
    """The short one."""
    faults = ["sigterm_worker", "flip", "sigterm_driver"]
    recipe = write_recipe(tmp_path, steps_for(faults), engine="torch")
    Disturbed(world, recipe, tmp_path / "quiet", [], random.Random(0)).run(900)
    disturbed = Disturbed(world, recipe, tmp_path / "home", faults, random.Random(0))
    disturbed.run(1200)
    assert disturbed.given == 2
    (quiet,) = [path for path in (tmp_path / "quiet" / "runs").iterdir() if "-job-" not in path.name]
    assert_as_undisturbed(disturbed.run_dir, quiet)
    assert_mlflow_is_complete(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}", disturbed.run_dir)
    counts = Counter(event["event"] for event in read_events(disturbed.run_dir / EVENTS))
    assert counts["resumed"] >= 3
    assert_nothing_left(world, tmp_path / "home")


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("world", [{"server": True}], indirect=True)
def test_a_minute_without_mlflow_loses_no_step_and_no_metric(world: World, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 700, engine="torch", batch=384)  # minutes
    disturbed = Disturbed(world, recipe, tmp_path / "home", ["server_away"], random.Random(0))
    disturbed.run(900)
    assert disturbed.given == 1
    steps = [record["step"] for record in records(disturbed.run_dir) if "train/loss" in record]
    assert steps == [step for step in range(1, 701) if step % 2 == 0 or step % 5 == 0]  # lines and checkpoints
    assert_mlflow_is_complete(world.environment["MLFLOW_TRACKING_URI"], disturbed.run_dir)
    assert_nothing_left(world, tmp_path / "home")


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("world", [{"nodes": 2}], indirect=True)
def test_a_run_goes_on_with_the_workers_that_are_left(world: World, tmp_path: Path) -> None:
    """``launch.min_workers``: the losses are those of two workers."""
    recipe = write_recipe(tmp_path, 800, engine="torch", more=", min_workers: 1")
    Disturbed(world, recipe, tmp_path / "quiet", [], random.Random(0)).run(600)
    disturbed = Disturbed(world, recipe, tmp_path / "home", ["fewer"], random.Random(0))
    disturbed.run(600)
    assert disturbed.given == 1
    (quiet,) = [path for path in (tmp_path / "quiet" / "runs").iterdir() if "-job-" not in path.name]
    for ours, theirs in zip(records(disturbed.run_dir), records(quiet), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours.get("train/loss", 0) == pytest.approx(theirs.get("train/loss", 0), rel=1e-5), ours["step"]
    assert_nothing_left(world, tmp_path / "home")


ROUNDS = {"torch": ("torch", 2), "zero2": ("deepspeed", 2), "zero3": ("deepspeed", 3)}
KINDS = ["worker", "node", "head", "driver", "server", "hang", "flip", "sigterm_worker", "sigterm_driver"]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("world", [{"server": True}], indirect=True)
@pytest.mark.parametrize("name", ROUNDS)
def test_every_kind_of_fault_at_random_moments(world: World, tmp_path: Path, name: str) -> None:
    """Two of every kind each, 54 in all. ``HGRNX_CHAOS_SEED`` chooses other moments."""
    generator = random.Random(f"{os.environ.get('HGRNX_CHAOS_SEED', '0')}-{name}")
    faults = 2 * KINDS
    generator.shuffle(faults)
    while faults[-1] == "server":  # it has to be back before the end
        generator.shuffle(faults)
    recipe = write_recipe(tmp_path, steps_for(faults), *ROUNDS[name])
    Disturbed(world, recipe, tmp_path / "quiet", [], generator).run(900)
    disturbed = Disturbed(world, recipe, tmp_path / "home", faults, generator)
    disturbed.run(1500)
    (quiet,) = [path for path in (tmp_path / "quiet" / "runs").iterdir() if "-job-" not in path.name]
    assert_as_undisturbed(disturbed.run_dir, quiet)
    assert_mlflow_is_complete(world.environment["MLFLOW_TRACKING_URI"], disturbed.run_dir)
    assert_nothing_left(world, tmp_path / "home")
    counts = Counter(event["event"] for event in read_events(disturbed.run_dir / EVENTS))
    print(f"{name}: {len(disturbed.done)} faults, {disturbed.given} commands, events {dict(counts)}")
