"""Unit tests run on one thread: their models are tiny, and a machine that also trains stays usable."""

from __future__ import annotations

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start
torch.set_num_threads(1)
