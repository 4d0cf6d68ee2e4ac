"""One training step at the paper's size: against the naive form, against the machine's matrix products, and the penalty's
price. On the CPU.

FLOPs counted: 2 per weight of Phi's matrices, token and loop for the forward pass, twice that for the backward pass; none
for embedding, attention scores, norms, readout and optimiser. With batch 512, 16 characters, 8 loops and 2.1 M weights
that is 0.82 TFLOP. The GEMM rate is measured on just these products, in the three shapes (y = x W^T, dx = dy W, dW = dy^T
x) that the two passes need for each weight, by `torch.mm` and as pointwise convolutions (see `linear`): the faster counts.
So `train_step_vs_gemm_peak` is the shortest time of the products alone over the time of the step.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from looped_lib.bench import public_form
from looped_lib.bench.worker import NO_GPU, Calls, Worker, median_seconds
from looped_lib.config import ExperimentConfig, ModelConfig, PenaltyConfig, TrainingConfig
from looped_lib.models.linear import pointwise_convolution
from looped_lib.models.looped import LoopedTransformer
from looped_lib.samplers import FixedLoops
from looped_lib.tasks.addition import Addition, generate_problems
from looped_lib.training.memory import keep_freed_memory
from looped_lib.training.trainer import Trainer


def paper_step(n_loops: int = 8, batch_size: int = 512, model: ModelConfig | None = None) -> ExperimentConfig:
    """The paper's step at one fixed depth, on problems of four digits, without penalty or warm-up."""
    return ExperimentConfig(
        model=model or ModelConfig(),
        loops=FixedLoops(n=n_loops),
        data=Addition(n_train=batch_size, n_test=1),
        training=TrainingConfig(batch_size=batch_size, warmup_steps=0, grad_clip=0.0),
    )


def penalised(config: ExperimentConfig) -> ExperimentConfig:
    """The same with STARS's Jacobian penalty at its default setting, active from the first step."""
    return replace(config, penalty=PenaltyConfig(weight=0.1, onset=0))


def our_step(config: ExperimentConfig) -> Callable[[], None]:
    """A step of the library's own training loop on `batch_size` problems, its whole training set."""
    trainer = Trainer(config)
    trainer.model.train()
    return trainer.train_step


def public_step(config: ExperimentConfig, device: str | torch.device = "cpu") -> Callable[[], float]:
    """A step of the naive form on the same problems, from the same weights."""
    torch.manual_seed(config.seed)
    c = config.training
    model = public_form.PublicModel(LoopedTransformer(config.model)).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=c.lr, betas=c.betas, weight_decay=c.weight_decay)
    problems = generate_problems(config.data.digits, c.batch_size, config.data.seed).to(device)
    n_loops = config.loops.sample(config.seed, 0)
    return lambda: public_form.train_step(model, optimizer, problems, n_loops, config.penalty.weight)


def products_by_mm(config: ExperimentConfig) -> Callable[[], None]:
    """The matrix products of one step and nothing else, into buffers that exist."""
    products = [(a, b, a @ b) for x, weight, dy in _operands(config) for a, b in ((x, weight.T), (dy, weight), (dy.T, x))]

    def run() -> None:
        for a, b, out in products:
            torch.mm(a, b, out=out)

    return _each_loop(run, config)


def products_by_convolution(config: ExperimentConfig) -> Callable[[], None]:
    """The same products by the other kernel."""
    operands = [(x.requires_grad_(), weight.requires_grad_(), dy) for x, weight, dy in _operands(config)]

    def run() -> None:
        for x, weight, dy in operands:
            torch.autograd.grad(pointwise_convolution(x, weight), (x, weight), dy)

    return _each_loop(run, config)


def flops(config: ExperimentConfig) -> int:
    """FLOPs of one step, counted as above."""
    c = config.model
    weights = c.k_layers * (4 * c.d_model**2 + 2 * c.d_model * c.d_ff)
    return 6 * weights * _tokens(config) * config.loops.sample(config.seed, 0)


def public_calls(config: ExperimentConfig) -> Calls:
    """What the naive form's process times."""
    return {"plain": public_step(config), "penalised": public_step(penalised(config))}


def our_calls(config: ExperimentConfig) -> Calls:
    """What our process times."""
    keep_freed_memory()
    return {
        "plain": our_step(config),
        "penalised": our_step(penalised(config)),
        "mm": products_by_mm(config),
        "convolution": products_by_convolution(config),
    }


def measure(config: ExperimentConfig, repeats: int = 3) -> dict[str, tuple[float, str]]:
    """{name: (ratio, what was compared)}."""
    with Worker(public_calls, config, environment=NO_GPU) as public, Worker(our_calls, config, environment=NO_GPU) as ours:
        calls = [
            *((public, "plain"), (ours, "plain"), (ours, "mm"), (ours, "convolution")),
            *((public, "penalised"), (ours, "penalised")),
        ]
        public_s, our_s, mm_s, convolution_s, public_penalised_s, our_penalised_s = median_seconds(calls, repeats)
    gemm_s = min(mm_s, convolution_s)
    gflops_per_sec = flops(config) / gemm_s / 1e9
    return {
        "train_step_vs_public": (public_s / our_s, f"naive {public_s:.2f} s, ours {our_s:.2f} s a step"),
        "train_step_with_penalty_vs_public": (
            public_penalised_s / our_penalised_s,
            f"naive {public_penalised_s:.2f} s, ours {our_penalised_s:.2f} s a step",
        ),
        "train_step_vs_gemm_peak": (
            gemm_s / our_s,
            f"its products alone {gemm_s:.2f} s ({gflops_per_sec:.0f} GFLOP/s), ours {our_s:.2f} s",
        ),
        "penalty_overhead": (
            our_penalised_s / our_s - 1,
            f"ours {our_penalised_s:.2f} s with the penalty, {our_s:.2f} s without",
        ),
    }


def _operands(config: ExperimentConfig) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(x, W, dy) of each of a block's four products."""
    c, rows = config.model, _tokens(config)
    shapes = [(c.d_model, 3 * c.d_model), (c.d_model, c.d_model), (c.d_model, c.d_ff), (c.d_ff, c.d_model)]
    return [(torch.randn(rows, n_in), torch.randn(n_out, n_in), torch.randn(rows, n_out)) for n_in, n_out in shapes]


def _each_loop(run: Callable[[], None], config: ExperimentConfig) -> Callable[[], None]:
    def runs() -> None:
        for _ in range(config.model.k_layers * config.loops.sample(config.seed, 0)):
            run()

    return runs


def _tokens(config: ExperimentConfig) -> int:
    return config.training.batch_size * generate_problems(config.data.digits, 1, 0).inputs.shape[1]
