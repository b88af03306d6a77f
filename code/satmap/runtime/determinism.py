"""Trainings that end with the same weights to the last bit, on GPUs too.

Source: https://pytorch.org/docs/stable/notes/randomness.html. On a CPU they do so anyway, with as
many threads; on GPUs convolutions and cuBLAS have to be asked, and what torch can only add up in
any order is computed otherwise (``satmap.models.resizing``).
"""

import os

import torch

# Two workspaces of fixed sizes; read by cuBLAS when it starts.
_CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def be_deterministic() -> None:
    """Let this process compute the same every time; call it before anything runs on a GPU.

    From then on torch raises RuntimeError where it cannot.
    """
    os.environ.setdefault(*_CUBLAS)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
