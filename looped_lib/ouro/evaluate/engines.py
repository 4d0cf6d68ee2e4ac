"""lm-eval's engines by backend, as a worker asks them: `prepare` hears all requests and stops, `stop` says which is asked.

With transformers one engine has every loop count (`sweep`), with vLLM an engine is built for one.
"""

from pathlib import Path
from typing import Any

import torch

from looped_lib.ouro.evaluate.cells import EvaluationConfig
from looped_lib.ouro.evaluate.checkpoint import Checkpoint
from looped_lib.ouro.evaluate.reading import without_wildcards
from looped_lib.ouro.evaluate.stops import Stop

SMALL = 10_000_000  # parameters


def start(config: EvaluationConfig, checkpoint: Checkpoint, stops: list[Stop], links: Path) -> Any:
    """An engine of the config's backend. `links` is a folder for what is only needed while it runs."""
    if config.backend == "transformers":
        return _transformers(config, checkpoint)
    (depth,) = set(stops)
    return _vllm(config, checkpoint, depth, links)


def _transformers(config: EvaluationConfig, checkpoint: Checkpoint) -> Any:
    from looped_lib.ouro.evaluate.sweep import Sweep  # slow to import

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = checkpoint.model(config.dtype).to(device)
    if device == "cpu" and model.num_parameters() < SMALL:
        torch.set_num_threads(1)  # on small matrices two threads mostly wait for each other
    return Sweep(model, checkpoint.tokenizer(), config.batch_size, config.max_len)


def _vllm(config: EvaluationConfig, checkpoint: Checkpoint, depth: int, links: Path) -> Any:
    """An adapter is merged: with one at work, vLLM has no log-probabilities of a prompt (on a CPU its engine dies of them)."""
    from lm_eval.models.vllm_causallms import VLLM

    class OneDepth(VLLM):
        def prepare(self, requests: Any, stops: Any) -> None:
            """vLLM fills its own batches when it is asked."""

    def found(source: str | Path) -> str:  # vLLM lists a folder's files by a pattern
        return str(without_wildcards(Path(source), links)) if Path(source).is_dir() else str(source)

    arguments = {
        "pretrained": found(checkpoint.base if checkpoint.adapter is None else _merged(checkpoint, config.dtype, links)),
        "tokenizer": found(checkpoint.source),
        "dtype": config.dtype,
        "max_model_len": config.max_len,
        "max_gen_toks": config.max_new_tokens,
        "seed": config.seed,
        "hf_overrides": {"total_ut_steps": depth},
        **config.engine,
    }
    return OneDepth.create_from_arg_obj(arguments, {"batch_size": "auto"})


def _merged(checkpoint: Checkpoint, dtype: str, links: Path) -> Path:
    """A folder with base and adapter in one, which is deleted with `links`."""
    checkpoint.model(dtype).save_pretrained(links / "merged")
    return links / "merged"
