"""The spectral radius of one loop's Jacobian at the paper's width: from same-position blocks against the whole matrix.

Ten positions, d_model 512, float64. The dense way writes out J, 5,120 x 5,120, by `jacrev` and takes all its eigenvalues; ours
takes 512 forward products, and the radius of ten blocks by Arnoldi's method. Both give the same radius.
"""

import time

import torch

from looped_lib.config import ModelConfig
from looped_lib.dynamics.jacobian import dense_jacobian
from looped_lib.dynamics.spectrum import exact_radius
from looped_lib.models.looped import LoopedTransformer
from looped_lib.training.memory import keeping_freed_memory

_REPEATS = 5


@keeping_freed_memory()
def measure(config: ModelConfig | None = None, seq: int = 10, n_loops: int = 4) -> dict[str, tuple[float, str]]:
    """{name: (ratio, what was compared)}. RuntimeError if the radii differ by more than 1e-8."""
    torch.manual_seed(0)
    model = LoopedTransformer(config or ModelConfig()).double().eval()
    with torch.no_grad():
        h = model.embed(torch.randint(0, 10, (1, seq)))
        for _ in range(n_loops):
            h = model.step(h)
    exact_radius(model.step, h)  # the first call pays for state that is built once
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        ours = exact_radius(model.step, h).item()
        times.append(time.perf_counter() - start)
    our_s = sorted(times)[_REPEATS // 2]
    start = time.perf_counter()
    dense = torch.linalg.eigvals(dense_jacobian(model.step, h[0])).abs().max().item()
    dense_s = time.perf_counter() - start
    if abs(ours - dense) > 1e-8 * dense:
        raise RuntimeError(f"the radii disagree: {ours} from the blocks, {dense} from the whole matrix")
    return {"spectrum_vs_dense": (dense_s / our_s, f"dense {dense_s:.1f} s, ours {our_s:.2f} s for one state")}
