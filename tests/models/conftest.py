from __future__ import annotations

import os

import torch

# Some virtual machines announce AMX but hide its tile layout, and oneDNN's bfloat16 products die of SIGILL there.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# Tensors this small are slower on several threads, and much slower where other processes want the cores.
torch.set_num_threads(1)
