"""The compiled kernel: how it is built and kept, what serves where it cannot be, and what only it can get wrong."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from recurrence_cases import GATES, make_inputs, run, skip_without, worst

import hgrnx.ops.compiled as compiled
import hgrnx.ops.library as library
from hgrnx.ops import gated_linear_recurrence
from hgrnx.ops.build import BuildError, built_library
from hgrnx.ops.library import compiled_status

FORK = multiprocessing.get_context("fork")


class StandIn:
    """A compiler that copies an existing library, writes down that it did, and takes as long as `slow` is there."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.version, self.runs, self.slow = folder / "version", folder / "runs", folder / "slow"
        self.version.write_text("stand-in 1\n")
        self.runs.write_text("")
        self.path = folder / "compiler"
        self.path.write_text(
            f"""#!/bin/sh
[ "$1" = --version ] && exec cat {self.version}
echo run >> {self.runs}
while [ -e {self.slow} ]; do sleep 0.05; done
sleep 0.2
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""
        )
        self.path.chmod(0o755)

    @property
    def count(self) -> int:
        return len(self.runs.read_text().splitlines())


@pytest.fixture
def fresh() -> Iterator[None]:
    """As a process that has not looked for the kernel yet; afterwards again."""

    def forget() -> None:
        for cached in (library._load, library.kernel, library._available_or_said_why_not):
            cached.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    skip_without("compiled")
    stand_in = StandIn(tmp_path, built_library())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(stand_in.path))
    return stand_in


def test_the_status_names_the_instructions_and_the_file() -> None:
    skip_without("compiled")
    assert torch.backends.cpu.get_cpu_capability() in compiled_status().reason
    assert str(built_library()) in compiled_status().reason


def test_it_is_built_once(stand_in: StandIn) -> None:
    library = built_library()
    assert built_library() == library and stand_in.count == 1
    assert ctypes.CDLL(str(library)).hgrnx_forward
    assert sorted(path.suffix for path in library.parent.iterdir()) == [".lock", ".so"]


def test_another_compiler_builds_anew(stand_in: StandIn) -> None:
    first = built_library()
    stand_in.version.write_text("stand-in 2\n")
    assert built_library() != first and stand_in.count == 2


@pytest.mark.parametrize("damage", [lambda x: x[: len(x) // 2], lambda x: x[:-1] + bytes([x[-1] ^ 1]), lambda x: b""])
def test_a_broken_library_is_built_anew(damage: Callable[[bytes], bytes], stand_in: StandIn) -> None:
    library = built_library()
    whole = library.read_bytes()
    library.write_bytes(damage(whole))
    assert built_library() == library and library.read_bytes() == whole and stand_in.count == 2


def test_processes_that_come_at_once_build_once(stand_in: StandIn) -> None:
    with FORK.Pool(4) as pool:
        libraries = [pool.apply_async(built_library) for _ in range(4)]
        assert len({library.get(timeout=60) for library in libraries}) == 1
    assert stand_in.count == 1


def test_a_killed_build_stops_no_one(stand_in: StandIn) -> None:
    stand_in.slow.touch()
    builder = FORK.Process(target=built_library)
    builder.start()
    while stand_in.count == 0:
        time.sleep(0.01)
    builder.kill()
    builder.join()
    stand_in.slow.unlink()
    assert built_library().exists() and stand_in.count == 2


def failing_compiler(folder: Path) -> str:
    compiler = folder / "failing"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "x.h:1: error: no such thing" >&2; exit 1; }\n')
    compiler.chmod(0o755)
    return str(compiler)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CXX", lambda folder: "/nonexistent/c++ -m64", "'/nonexistent/c[+][+] -m64' does not run"),
        ("CXX", failing_compiler, "failed: x.h:1: error: no such thing"),
        ("PATH", str, "no C[+][+] compiler"),
        ("XDG_CACHE_HOME", lambda folder: "/dev/null", "cache folder /dev/null.* cannot be used"),
    ],
)
def test_what_is_in_the_way_is_said(
    variable: str, value: Callable[[Path], str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(variable, value(tmp_path))
    with pytest.raises(BuildError, match=message):
        built_library()


def test_without_a_compiler_the_portable_one_serves(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    inputs = [x.float() for x in make_inputs((2, 20, 2, 8, 8))]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            o, final = gated_linear_recurrence(*inputs)
    assert len(caplog.messages) == 1 and "'/nonexistent/c++' does not run" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    expected = gated_linear_recurrence(*inputs, impl="chunked")
    assert torch.equal(o, expected[0]) and torch.equal(final, expected[1])
    with pytest.raises(ValueError, match="impl='compiled' cannot be used: .*does not run"):
        gated_linear_recurrence(*inputs, impl="compiled")


def test_it_can_be_forbidden(fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("HGRNX_COMPILED", "0")
    inputs = [x.float() for x in make_inputs((2, 20, 2, 8, 8))]
    o, _ = gated_linear_recurrence(*inputs)
    assert torch.equal(o, gated_linear_recurrence(*inputs, impl="chunked")[0])
    assert not caplog.messages  # who forbids it knows it
    assert compiled_status() == (False, "HGRNX_COMPILED=0 forbids it")


def test_it_is_the_choice_on_a_cpu() -> None:
    skip_without("compiled")
    inputs = [x.float() for x in make_inputs((2, 20, 2, 8, 8))]
    chosen = gated_linear_recurrence(*inputs)
    assert all(map(torch.equal, chosen, gated_linear_recurrence(*inputs, impl="compiled")))
    assert not all(map(torch.equal, chosen, gated_linear_recurrence(*inputs, impl="chunked")))


def test_other_devices_are_refused() -> None:
    inputs = [x.to("meta") for x in make_inputs((2, 20, 2, 8, 8))]
    with pytest.raises(ValueError, match="impl='compiled' needs tensors on the CPU, and q is on meta"):
        gated_linear_recurrence(*inputs, impl="compiled")


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_other_instructions(capability: str) -> None:
    """Each has its own library, in this processor's cache folder too."""
    skip_without("compiled")
    code = """
import torch
from recurrence_cases import *
for gates in GATES:
    inputs = make_inputs((2, 70, 2, 33, 40), gates)
    truth = run(inputs, torch.float64, "reference")
    assert worst(run(inputs, torch.float64, "compiled"), truth) < 1e-12, gates
    assert worst(run(inputs, torch.float32, "compiled"), truth) < 2e-6, gates
print(compiled_status().reason)
"""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": f"{Path(__file__).parent}"}
    environment["PYTHONPATH"] += os.pathsep + str(Path(compiled.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith(capability)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("packed", [False, True])
def test_threads_share_the_columns_of_few_heads(threads: int, packed: bool) -> None:
    B = 1 if packed else 2
    inputs = make_inputs((B, 300, 1, 70, 100), "mixed", states=2)
    options = {"cu_seqlens": torch.tensor([0, 33, 300])} if packed else {}
    truth = run(inputs, torch.float64, "reference", **options)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert worst(run(inputs, torch.float32, "compiled", **options), truth) < 1e-6
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("gates", GATES)
def test_bf16_throughout(gates: str) -> None:
    inputs = [x.bfloat16().double() for x in make_inputs((2, 130, 2, 32, 32), gates)]
    truth = run(inputs, torch.float64, "reference")
    assert worst(run(inputs, torch.bfloat16, "compiled"), truth) < 1e-2


def test_strides_of_all_kinds() -> None:
    skip_without("compiled")
    contiguous = make_inputs((2, 37, 3, 8, 8))
    # Heads before time, the last dimension strided, one row for all, every other head.
    q, k, v, log_f, state = (x.clone() for x in contiguous)
    strided = [
        q.transpose(1, 2).contiguous().transpose(1, 2),
        k.mT.contiguous().mT,
        v[:1].expand(2, -1, -1, -1),
        log_f.repeat_interleave(2, 2)[:, :, ::2],
        state.mT.contiguous().mT,
    ]
    assert not any(x.is_contiguous() for x in strided)
    results = []
    for inputs in (strided, [x.contiguous() for x in strided]):
        leaves = [x.detach().requires_grad_() for x in inputs]
        o, final = gated_linear_recurrence(*leaves, impl="compiled")
        # The gradients of sums have strides of 0.
        results.append([o, final, *torch.autograd.grad([o.sum(), final.sum()], leaves)])
    for ours, expected in zip(*results):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_it_keeps_the_rules_of_the_dispatcher(with_state: bool, packed: bool) -> None:
    skip_without("compiled")
    *sequence, state = make_inputs((1, 9, 2, 3, 4), states=2 if packed else 1)
    leaves = [x.requires_grad_() for x in (*sequence, state)]
    arguments = (*leaves[:4], leaves[4] if with_state else None, torch.tensor([0, 4, 9]) if packed else None)
    torch.library.opcheck(compiled._forward, arguments)


@pytest.mark.parametrize("impl", [None, "compiled"])
def test_torch_compile_keeps_its_graph_whole(impl: str | None, fresh: None) -> None:
    skip_without("compiled")

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        o, final = gated_linear_recurrence(*inputs, impl=impl)
        return (o.sin() * 2).sum() + final.sum()

    leaves = [x.float().requires_grad_() for x in make_inputs((2, 20, 2, 8, 6))]
    whole = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(
        torch.autograd.grad(whole(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_wrong_offsets_never_reach_the_kernel() -> None:
    """Where nobody has looked at their values, as in a compiled graph."""
    skip_without("compiled")
    *sequence, _ = make_inputs((1, 9, 2, 3, 4))
    with pytest.raises(ValueError, match="cu_seqlens must increase strictly from 0 to 9"):
        compiled._forward(*sequence, None, torch.tensor([0, 12]))
