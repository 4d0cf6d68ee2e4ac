"""Every test starts from the same random state, on one thread: results must not depend on the machine.

And the annotations of the tensor code, shapes included, are checked at every call. (Configs check their own values.)
"""

import os
import signal

import pytest
import torch
from jaxtyping import install_import_hook

TENSOR_CODE = {
    "looped_lib.models": "looped blocks dropout linear cache lengths state injection initial_state",
    "looped_lib.tasks": "problems",
    "looped_lib.dynamics": "jacobian prefixes depth trajectory pca spectrum fixed_points anderson exits",
    "looped_lib.training": "carry objective batches jacobian_penalty trainer",
    "looped_lib.ouro.model": "cache gate modeling",
}
install_import_hook([f"{room}.{name}" for room, names in TENSOR_CODE.items() for name in names.split()], "typecheck.check")
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background job it is ignored, and would stay so
os.environ["OMP_NUM_THREADS"] = "1"  # in kernels and commands too: two threads on small tensors mostly wait for each other


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
