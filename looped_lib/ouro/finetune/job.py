"""Fine-tune Ouro under torchrun:

    torchrun --nproc_per_node 8 -m looped_lib.ouro.finetune CONFIG.json RUN_DIR

CONFIG.json is a FinetuneConfig (see `looped_lib.ouro.finetune.config`; fields left out take the paper's values). RUN_DIR gets

    finetune.json    the config          metrics.jsonl, tensorboard/   loss, penalty, depth, tokens/s, MFU, memory by update
    checkpoints/     see `saving`        model/                        the final model, for from_pretrained and vLLM
    data.json        rows kept and left out                           result.json   what was run, once it is done

The same command goes on where a killed run stood, on any number of processes. On several machines give torchrun its own options
on each, --nnodes, --node_rank and --rdzv_endpoint HOST:PORT; RUN_DIR and the data must be on a disk that they share.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import is_flash_attn_2_available

from looped_lib.config import from_dict, to_dict
from looped_lib.core import compat
from looped_lib.core.checks import ConfigError
from looped_lib.core.errors import work
from looped_lib.core.files import read_json, write_json
from looped_lib.core.interrupts import SIGNALS, Interrupt, deferred
from looped_lib.ouro.finetune import saving
from looped_lib.ouro.finetune.config import FinetuneConfig, UpdatesConfig, updates_of
from looped_lib.ouro.finetune.data import Collator, tokenise
from looped_lib.ouro.finetune.folder import DATA, METRICS, MODEL, RESULT, STOP, claimed
from looped_lib.ouro.finetune.loading import load_architecture, load_model, load_tokenizer
from looped_lib.ouro.finetune.rows import load_rows
from looped_lib.ouro.finetune.trainer import LoopedTrainer
from looped_lib.runs.folders import provenance
from looped_lib.runs.results import write_result
from looped_lib.tasks.tokenizer import TURN_END
from looped_lib.training import metrics, trackers
from looped_lib.training.processes import Agreement, Processes, run_job


def finetune(config: FinetuneConfig, run_dir: str | Path) -> None:
    """Train, or go on training, what `config` says in `run_dir`; does nothing if that is done. Within torchrun's process group.

    Before any work: ConfigError on a config that the folder's run was not started with, Busy if another job is at work in it.
    """
    with prepared(config, Path(run_dir)) as trainer:
        if trainer is not None:
            train(trainer)


@contextmanager
def prepared(config: FinetuneConfig, run_dir: Path) -> Iterator[LoopedTrainer | None]:
    """`prepare` in a folder that is this job's alone while the block runs. What is quickly checked is checked first."""
    processes = Processes.from_environment()
    accumulation(config.updates, processes.world)
    check_installed(config.updates)
    with claimed(config, run_dir, processes):
        yield prepare(config, run_dir, processes)


def prepare(config: FinetuneConfig, run_dir: Path, processes: Processes) -> LoopedTrainer | None:
    """All that comes before the first update; None if the run is done.

    ConfigError, ValueError (data) or FileNotFoundError say what is wrong.
    """
    if (run_dir / RESULT).exists():
        return None
    architecture, tokenizer = load_architecture(config), load_tokenizer(config)
    if len(tokenizer) > architecture.vocab_size:
        raise ConfigError(
            f"FinetuneConfig.tokenizer must have at most the model's {architecture.vocab_size} tokens, "
            f"got {config.tokenizer or config.model!r} with {len(tokenizer)}"
        )
    dataset = load_data(config, tokenizer, run_dir, processes)
    settings, newest = arguments(config, run_dir, len(dataset), processes.world), newest_checkpoint(run_dir)
    if newest is not None:
        saving.check(newest, config, settings.max_steps)
        if processes.first:  # once, as it reads gigabytes; nobody loads what is not whole
            saving.check_sums(newest)
        processes.wait()
    set_seed(config.seed)
    model = load_model(config, architecture, newest)
    if TURN_END in tokenizer.get_vocab():  # an answer ends with its turn
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN_END)]
    if config.updates.parallel == "fsdp2" and processes.world > 1:
        shard(model.to(processes.device), bf16=config.updates.precision == "bf16")
    return LoopedTrainer(
        config,
        run_dir,
        model,
        settings,
        train_dataset=dataset,
        data_collator=Collator(tokenizer),
        processing_class=tokenizer,
        callbacks=[MetricsFile(run_dir / METRICS)],
    )


def train(trainer: LoopedTrainer) -> None:
    """From the newest checkpoint to the final model, or to where the run is stopped.

    An interrupt (SIGINT, SIGTERM) ends the update, writes a checkpoint and goes on its way (see `core.interrupts`).
    """
    newest = newest_checkpoint(trainer.run_dir)
    done = 0 if newest is None else saving.step_of(newest)
    with deferred() as interrupt:
        stops = Stops(trainer.run_dir, interrupt)
        trainer.add_callback(stops)
        if done < trainer.args.max_steps:
            done = trainer.train(resume_from_checkpoint=None if newest is None else str(newest)).global_step
        if done == trainer.args.max_steps and not stops.agreed:
            finish(trainer)
        interrupt.message = f"stopped at update {done}; the same command goes on"


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Where the run goes on; None if it begins."""
    return (saving.checkpoints(run_dir) or [None])[-1]


def accumulation(c: UpdatesConfig, world: int) -> int:
    """Micro-batches of a process in each update. ConfigError if the batch cannot be split over `world` processes."""
    if c.batch_size % (c.micro_batch * world):
        raise ConfigError(
            f"UpdatesConfig.batch_size must be a multiple of micro_batch times the number of processes "
            f"({c.micro_batch} x {world}), got {c.batch_size}"
        )
    return c.batch_size // (c.micro_batch * world)


def check_installed(c: UpdatesConfig) -> None:
    """ConfigError on settings that need a package which is not there."""
    if c.attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise ConfigError(
            "UpdatesConfig.attention 'flash_attention_2' needs the package flash-attn and a GPU, which are not both here: "
            "install it, or choose 'sdpa'"
        )
    trackers.check_installed(c)


def shard(model: Any, bf16: bool) -> None:
    """FSDP2: every layer, then the rest, split over all processes; the Trainer then leaves the model as it is."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
    for layer in model.get_decoder().layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # without adapters
    compat.keep_shards(base)


def load_data(config: FinetuneConfig, tokenizer: PreTrainedTokenizerBase, run_dir: Path, processes: Processes) -> Any:
    """The tokenised conversations; the first process makes the cache that the others read. Counts go to data.json."""
    if not processes.first:
        processes.wait()
    tokenised = tokenise(load_rows(config.data, config.seed), tokenizer, config.data)
    if processes.first:
        print(tokenised.report, flush=True)
        updates = updates_of(config.updates, len(tokenised.dataset))
        write_json(run_dir / DATA, {**asdict(tokenised.report), "updates": updates})
        processes.wait()
    return tokenised.dataset


def arguments(config: FinetuneConfig, run_dir: Path, rows: int, world: int) -> TrainingArguments:
    """The Trainer's settings."""
    c = config.updates
    steps = updates_of(c, rows)
    cuda = torch.cuda.is_available()
    schedule = {
        "warmup_stable_decay": {"num_decay_steps": round(c.decay_ratio * steps), "min_lr_ratio": c.min_lr_ratio},
        "cosine": {"min_lr_rate": c.min_lr_ratio},
    }[c.schedule]
    trackers.set_places(run_dir)
    return TrainingArguments(
        output_dir=str(run_dir),
        max_steps=steps,
        per_device_train_batch_size=c.micro_batch,
        gradient_accumulation_steps=accumulation(c, world),
        learning_rate=c.lr,
        adam_beta1=c.betas[0],
        adam_beta2=c.betas[1],
        weight_decay=c.weight_decay,
        max_grad_norm=c.grad_clip,
        lr_scheduler_type=c.schedule if c.schedule == "warmup_stable_decay" else "cosine_with_min_lr",
        lr_scheduler_kwargs=schedule,
        warmup_steps=round(c.warmup_ratio * steps),
        bf16=c.precision == "bf16",
        gradient_checkpointing=c.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=c.log_every,
        logging_nan_inf_filter=False,  # it would wait for the device in every micro-batch
        save_steps=c.checkpoint_every,
        save_only_model=True,  # the rest is saved by LoopedTrainer; the Trainer would refuse to for a sharded model
        seed=config.seed,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        use_cache=True,  # in the config.json that is saved; training does not use one
        ddp_find_unused_parameters=config.loss == "gate_mixture" and 1 in config.loops.support,  # one loop needs no gate
        report_to=list(c.report_to) or "none",
        run_name=trackers.run_name(run_dir),
        disable_tqdm=not sys.stderr.isatty(),
    )


class MetricsFile(TrainerCallback):
    """metrics.jsonl, one line per logged update; the last update is one of them."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run writes the lines after its checkpoint anew."""
        if state.is_world_process_zero:
            metrics.keep_until(self.path, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing is saved as the final model that was not seen to be finite."""
        control.should_log |= state.global_step == state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Add a line."""
        if state.is_world_process_zero and logs and "n_loops" in logs:
            metrics.append(self.path, {"step": state.global_step, **logs})


class Stops(TrainerCallback):
    """Ends the run between two updates, with a checkpoint, once any process is interrupted or the run's folder holds STOP."""

    def __init__(self, run_dir: Path, interrupt: Interrupt):
        self.stop, self.interrupt, self.agreed = run_dir / STOP, interrupt, 0
        self.agreement = Agreement(Processes.from_environment().world)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All processes see the same, whichever was told."""
        asked = self.interrupt.signal or int(state.is_world_process_zero and self.stop.exists())
        self.agreed = self.agreement.greatest(asked)
        if not self.agreed:
            return
        control.should_log = control.should_save = control.should_training_stop = True
        if self.agreed in SIGNALS:
            self.interrupt.signal = self.agreed
        if state.is_world_process_zero:
            self.stop.touch()  # the run counts as stopped, not as failed


def finish(trainer: LoopedTrainer) -> None:
    """Write model/ and result.json."""
    config, run_dir, processes = trainer.config, trainer.run_dir, Processes.from_environment()
    weights = saving.whole_weights(trainer.model)
    if processes.first:
        with saving.writing(run_dir / MODEL, run_dir) as folder:
            trainer.write_model(folder, weights)
        lines = metrics.read_metrics(run_dir / METRICS)
        steps = [0, *(line["step"] for line in lines)]
        seconds = sum(line["seconds_per_update"] * (b - a) for line, (a, b) in zip(lines, pairwise(steps), strict=True))
        found = {"updates": trainer.args.max_steps, "seconds": {"train": seconds}}
        found |= {"config": to_dict(config), "provenance": provenance()}
        write_result(run_dir, "finetuning", found)
    processes.wait()


def main(arguments: list[str]) -> None:
    """One process of the job."""
    parser = argparse.ArgumentParser(prog="looped-lib finetune", description="Fine-tune Ouro")
    parser.add_argument("config", type=Path, help="a FinetuneConfig as JSON")
    parser.add_argument("run_dir", type=Path, help="the run's folder")
    args = parser.parse_args(arguments)

    def job() -> LoopedTrainer | None:
        config = from_dict(FinetuneConfig, read_json(args.config), str(args.config))
        with prepared(config, args.run_dir) as trainer:
            if trainer is not None:
                with work():
                    train(trainer)
        return trainer

    run_job(job)
