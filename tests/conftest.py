"""Every test starts from the same random state, on one thread: results must not depend on the machine.

And the annotations of the tensor code, shapes included, are checked at every call. (Configs check their own values.)
"""

import os

import pytest
import torch
from jaxtyping import install_import_hook

TENSOR_CODE = (
    "model blocks dropout linear cache jacobian regularizers carry objective batches training prefixes depth addition "
    "lengths state injection initial_state trajectory pca spectrum fixed_points anderson exits ouro.cache ouro.gate ouro.modeling"
)
install_import_hook([f"looped_lib.{name}" for name in TENSOR_CODE.split()], "typecheck.check")
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in kernels and commands too: two threads on small tensors mostly wait for each other


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
