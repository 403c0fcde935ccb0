"""Keeps bf16 on CPUs from killing the process.

Some virtual machines advertise the matrix unit AMX, and an instruction of it then ends the process with
SIGILL in the first bf16 product. No exception can be caught, so a throw-away process tries it first.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import torch

_VARIABLE = "ONEDNN_MAX_CPU_ISA"
_WITHOUT_AMX = "AVX512_CORE_FP16"
_TRIAL = "import torch; a = torch.ones(64, 64, dtype=torch.bfloat16); assert float((a @ a)[0, 0]) == 64"
_log = logging.getLogger(__name__)


def make_cpu_bf16_safe() -> None:
    """Tell oneDNN to leave AMX alone where it does not work.

    Call it before the process's first matrix product, in float32 too: oneDNN makes up its mind there. It costs
    nothing on CPUs without AMX, elsewhere one start of Python with torch (2 s). What was found is kept in
    ``$ONEDNN_MAX_CPU_ISA``, so processes started from this one do not try again; set by the user, it stays.
    """
    if _VARIABLE in os.environ or not torch.cpu._is_amx_tile_supported():
        return
    trial = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, check=False)
    if trial.returncode < 0:  # ended by a signal
        _log.info("AMX is advertised but does not work here; bf16 runs on AVX-512 instead.")
        os.environ[_VARIABLE] = _WITHOUT_AMX
    else:
        os.environ[_VARIABLE] = "DEFAULT"
