"""y = x W^T + b by the fastest kernel PyTorch has for it.

On a CPU `F.linear` calls MKL in float32, and MKL does not use the AVX-512 units of processors of other makers: on a two-core
EPYC it reached 215 GFLOP/s where oneDNN reached 490. PyTorch gives a float32 product to oneDNN when it is written as a
convolution, so many rows go through one whose kernel is a single point. It is the same sum in the same precision, in another
order, with every derivative a convolution has: VJP, JVP, double backward, vmap. Without AVX-512 units there is nothing to gain,
and the convolution's backward pass is slower than the products' (24 against 45 GFLOP/s on one core of an AVX2 EPYC): there
`F.linear` it is.

On one thread PyTorch gives such a convolution to oneDNN only if it has IMAGES or more images, so the rows are cut into as many.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

IMAGES = 16
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
FEW_ROWS = 128  # below, the call costs more than the product: measured for widths of 64 to 2048


class Linear(nn.Linear):
    """`nn.Linear`, with its parameters and their names; float32 rows on a CPU may take the convolution's kernel."""

    def forward(self, x: Float[Tensor, "*rows n_in"]) -> Float[Tensor, "*rows n_out"]:
        by_convolution = (
            AVX512
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and x.numel() >= FEW_ROWS * self.in_features
            and torch.backends.mkldnn.is_available()
            and not torch.is_autocast_enabled("cpu")
            and (x.numel() % (IMAGES * self.in_features) == 0 or torch.get_num_threads() > 1)
        )
        return pointwise_convolution(x, self.weight, self.bias) if by_convolution else F.linear(x, self.weight, self.bias)


def pointwise_convolution(
    x: Float[Tensor, "*rows n_in"], weight: Float[Tensor, "n_out n_in"], bias: Float[Tensor, "n_out"] | None = None
) -> Float[Tensor, "*rows n_out"]:
    """x W^T + b: the rows are the pixels of channels-last images, so that nothing is copied."""
    n_in = x.shape[-1]
    images = IMAGES if x.numel() % (IMAGES * n_in) == 0 else 1
    y = F.conv2d(x.contiguous().view(images, -1, 1, n_in).permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))
