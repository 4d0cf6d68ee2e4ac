"""Fine-tuning jobs of a second or two: a tiny Ouro, few rows of very different lengths, processes that start at once.

The processes of a job are forked from one that has imported everything and computed nothing, which saves each of them the seconds
that torch and transformers take to import. What they run is what torchrun's would.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import datasets
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from looped_lib.config import PenaltyConfig, to_dict
from looped_lib.core.files import write_jsonl
from looped_lib.core.project import find_root
from looped_lib.ouro.finetune import job, saving
from looped_lib.ouro.finetune.config import ChatDataConfig, FinetuneConfig, UpdatesConfig
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.samplers import FixedLoops
from looped_lib.tasks.word_problems import generate
from looped_lib.training.processes import leave, process_group

TOKENIZER = find_root() / "data" / "tokenizer"
ROWS = [{**row, "solution": row["solution"] * (1 + i % 4)} for i, row in enumerate(generate(24, seed=1))]
UPDATES = {field.name for field in fields(UpdatesConfig)}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ouro_jobs", "torch.utils.tensorboard", "peft"])
Run = tuple[FinetuneConfig, Path]
Prepare = Callable[..., None]


def write_inputs(folder: Path) -> None:
    """The model and the rows that `config` names."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    OuroForCausalLM(OuroConfig(**sizes, rope_theta=1e4, initializer_range=0.2)).save_pretrained(folder / "start")
    write_jsonl(folder / "rows.jsonl", ROWS)


def config(folder: Path, **changes) -> FinetuneConfig:
    """SFT at 3 loops, one pass over the 24 rows. Fields of `updates` are changed by their own names, others as a whole."""
    updates = {
        "batch_size": 8,
        "micro_batch": 4,
        "lr": 1e-3,
        "warmup_ratio": 0.0,
        "precision": "fp32",
        "gradient_checkpointing": False,
        "checkpoint_every": 1,
        "checkpoints_kept": 9,
    }
    base = FinetuneConfig(
        model=str(folder / "start"),
        tokenizer=str(TOKENIZER),
        loops=FixedLoops(3),
        penalty=PenaltyConfig(weight=0.0, share=1.0, onset=0),
        data=ChatDataConfig(dataset=str(folder / "rows.jsonl"), system_prompt="", max_len=200, max_rows=0),
        updates=UpdatesConfig(**updates | {name: value for name, value in changes.items() if name in UPDATES}),
        seed=3,
    )
    return replace(base, **{name: value for name, value in changes.items() if name not in UPDATES})


def own_cache(folder: Path) -> None:
    """Tokenised rows are cached under `folder`, not in the user's cache."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"


@contextmanager
def inputs(folder: Path) -> Iterator[Path]:
    """The folder, with what `config` needs; jobs in its subfolders, and runs in this process, use its cache."""
    write_inputs(folder)
    before = datasets.config.HF_DATASETS_CACHE
    own_cache(folder)
    yield folder
    datasets.config.HF_DATASETS_CACHE = before


@dataclass
class Job:
    """Processes that do runs one after the other, and the store that they find each other by, which torchrun would keep."""

    processes: list[BaseProcess]
    store: TCPStore

    def statuses(self) -> list[int | None]:
        """Exit statuses by rank, once all have ended."""
        for process in self.processes:
            process.join(120)
        return [process.exitcode for process in self.processes]


def start(runs: Sequence[Run], processes: int, prepare: Prepare | None = None, *args) -> Job:
    """Start a job whose processes first call `prepare(rank, *args)`. One run is done as the command does it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    work = [CONTEXT.Process(target=_work, args=(runs, rank, processes, store.port, prepare, *args)) for rank in range(processes)]
    for process in work:
        process.start()
    return Job(work, store)


def run(runs: Sequence[Run], processes: int, prepare: Prepare | None = None, *args) -> None:
    """`start`, to the end, which must be a good one."""
    statuses = start(runs, processes, prepare, *args).statuses()
    assert statuses == [0] * processes, log(runs[0][1], 0) + log(runs[0][1], 1)


def log(run_dir: Path, rank: int) -> str:
    """What a process of the job whose first run is in `run_dir` printed."""
    path = Path(f"{run_dir}.rank{rank}.log")
    return path.read_text() if path.exists() else ""


def record_calls(rank: int, folder: Path) -> None:
    """Keep a line for each call of the model in a training job: its loops, its rows, whether it is penalised."""
    forward = OuroForCausalLM.forward

    def recorded(self, input_ids, n_loops, of_phi=None, **kwargs):
        with open(folder / f"calls.rank{rank}.jsonl", "a") as file:
            print(json.dumps({"loops": n_loops, "rows": input_ids.tolist(), "penalised": of_phi is not None}), file=file)
        return forward(self, input_ids, n_loops=n_loops, of_phi=of_phi, **kwargs)

    OuroForCausalLM.forward = recorded


def eager_compiler(rank: int) -> None:
    """torch.compile that captures and differentiates graphs but makes no kernels, which takes minutes."""
    torch.compile = partial(torch.compile, backend="aot_eager")


def _work(runs: Sequence[Run], rank: int, processes: int, port: int, prepare: Prepare | None, *args) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    sys.stdout = sys.stderr = open(f"{runs[0][1]}.rank{rank}.log", "a", buffering=1)  # noqa: SIM115
    own_cache(runs[0][1].parent)
    if prepare is not None:
        prepare(rank, *args)
    if len(runs) == 1:
        path = runs[0][1].with_suffix(".json")
        path.write_text(json.dumps(to_dict(runs[0][0])))
        job.main([str(path), str(runs[0][1])])
    else:
        kept = []  # a trainer whose life ends here may not let the process go on (see `processes.leave`)
        with process_group():
            for config, run_dir in runs:
                with job.prepared(config, run_dir) as trainer:
                    kept.append(trainer)
                    job.train(trainer)
        leave()


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(saving.checkpoint_folder(run_dir, step) / "model.safetensors")


def training(run_dir: Path, step: int, prefix: str = "adamw.") -> dict[str, torch.Tensor]:
    return saving.read_training(saving.checkpoint_folder(run_dir, step), prefix)


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a), [k for k in a if not torch.equal(a[k], b[k])]
