"""What a GPU does in a second. `looped-lib paper` starts it, in a process of its own, to write TIMINGS.json.

step    one training step of the paper's addition model at 8 loops, with and without STARS's penalty: the naive form (as public
        scripts have it, in float32), this library in float32, TF32 and bfloat16 with Phi compiled; seconds, the ratio to the
        naive form, and the share of the card's stated bfloat16 peak (FLOPs counted as in `train_step`)
ouro    one micro-batch of 2,048 tokens of Ouro-1.4B with random weights, forward and backward, as in fine-tuning (float32
        weights, bfloat16 products, recomputation) at 4 and 8 loops, without the penalty (SFT) and with it (STARS): tokens a
        second, share of the peak, greatest memory; and the seconds of one AdamW update

The file is written after each part, so that a run that is stopped keeps what it had. Without a GPU everything runs on the CPU, at
whatever sizes it is given (tests give tiny ones).
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from looped_lib.bench import train_step
from looped_lib.config import ExperimentConfig, PenaltyConfig
from looped_lib.core.files import write_json
from looped_lib.ouro.model import costs
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.regularizers import public_code_penalty
from looped_lib.runs.folders import provenance
from looped_lib.training.jacobian_penalty import JacobianPenalty

DEPTHS = (4, 8)
TOKENS = 2048
PENALTY = PenaltyConfig(weight=0.1, share=1.0, onset=0)  # of fine-tuning (see `ouro.finetune.config`)


def seconds_each(call: Callable[[], Any], device: torch.device, repeats: int, warm: int = 3) -> float:
    """Mean seconds of a call, the device waited for before and after all of them, not between."""
    for _ in range(warm):
        call()
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def step_timings(config: ExperimentConfig, device: torch.device, repeats: int, precisions: tuple[str, ...]) -> dict[str, Any]:
    """{plain, penalised: {form: seconds, ratio to the naive form, share of the peak}} of one training step."""
    peak, flops = costs.peak_flops(device), train_step.flops(config)
    found: dict[str, Any] = {}
    # The naive form first: a Trainer sets TF32 for the whole process.
    penalised = replace(config, penalty=replace(public_code_penalty(), onset=0))
    for name, experiment in (("plain", config), ("penalised", penalised)):
        naive = seconds_each(train_step.public_step(experiment, device), device, repeats)
        found[name] = {"naive": {"seconds": naive}}
    for name, experiment in (("plain", config), ("penalised", penalised)):
        naive = found[name]["naive"]["seconds"]
        for precision in precisions:
            training = replace(experiment.training, precision=precision, compile=device.type == "cuda")
            ours = seconds_each(train_step.our_step(replace(experiment, training=training)), device, repeats)
            share = None if peak is None else flops / ours / peak
            found[name][precision] = {"seconds": ours, "naive_over_ours": naive / ours, "share_of_bf16_peak": share}
    return found


def ouro_timings(config: OuroConfig, tokens: int, depths: tuple[int, ...], device: torch.device, repeats: int) -> dict[str, Any]:
    """{mode-depth: tokens a second, share of the peak, bytes} of a micro-batch, and the seconds of an update.

    A part that does not fit says so instead.
    """
    with device:
        model = OuroForCausalLM(config).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model.early_exit_gate.requires_grad_(False)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    ids = torch.randint(0, config.vocab_size, (1, tokens), device=device)
    _micro_batch(model, ids, 1, None)()
    optimizer.step()  # gradients and moments are there from now on, as in training
    found: dict[str, Any] = {"update_seconds": seconds_each(optimizer.step, device, repeats, warm=1)}
    for depth in depths:
        for mode in ("sft", "stars"):
            penalty = JacobianPenalty(PENALTY, seed=0) if mode == "stars" else None
            call = _micro_batch(model, ids, depth, penalty)
            torch.cuda.empty_cache()  # of the part before, which may not have fitted
            try:
                found[f"{mode}-{depth}"] = _measured(call, config, tokens, depth, device, repeats)
            except torch.OutOfMemoryError as e:
                found[f"{mode}-{depth}"] = {"error": str(e).splitlines()[0]}
    return found


def _micro_batch(model: OuroForCausalLM, ids: torch.Tensor, depth: int, penalty: JacobianPenalty | None) -> Callable[[], None]:
    """Forward and backward of one micro-batch, as `finetune.trainer` has it; gradients add up."""

    def call() -> None:
        of_phi = None if penalty is None else lambda phi, h: penalty.of(phi, h, 0, 0)
        with torch.autocast(ids.device.type, torch.bfloat16):
            out = model(input_ids=ids, labels=ids, n_loops=depth, of_phi=of_phi, use_cache=False)
        loss = out.loss if out.penalty is None else (1 - PENALTY.weight) * out.loss + PENALTY.weight * out.penalty
        loss.backward()

    return call


def _measured(
    call: Callable[[], None], config: OuroConfig, tokens: int, depth: int, device: torch.device, repeats: int
) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_each(call, device, repeats, warm=1)
    peak = costs.peak_flops(device)
    mfu = None if peak is None else tokens * costs.training_flops(config, depth, tokens) / seconds / peak
    return {"tokens_per_sec": tokens / seconds, "mfu": mfu, "memory_bytes": costs.memory_used(device)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(path: Path, device: torch.device, step: ExperimentConfig, ouro: OuroConfig, tokens: int, repeats: int) -> None:
    """All parts into the file `path`, each as soon as it is known."""
    found: dict[str, Any] = {"provenance": provenance()}
    precisions = ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32",)
    found["step"] = step_timings(step, device, repeats, precisions)
    write_json(path, found)
    found["ouro"] = ouro_timings(ouro, tokens, DEPTHS, device, max(1, repeats // 5))
    write_json(path, found)


def main(arguments: list[str]) -> None:
    """Measure this machine's GPU."""
    parser = argparse.ArgumentParser(prog="looped-lib _gpu", description="What a GPU does in a second")
    parser.add_argument("file", type=Path, metavar="TIMINGS.json")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("there is no GPU; python -m looped_lib.bench measures the CPU")
    measure(args.file, torch.device("cuda"), train_step.paper_step(), OuroConfig(), TOKENS, repeats=20)
