"""lm-eval's engines by backend, as a worker asks them: `prepare` hears all requests and stops, `stop` says which is asked.

With transformers one engine answers at all stops at once (`sweep`). vLLM answers at one loop count after the other, by one engine
(`served`) or, where its graph is compiled, by one each (`EvaluationConfig.one_engine`).
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
    return _vllm(config, checkpoint, max(stops), links)


def _transformers(config: EvaluationConfig, checkpoint: Checkpoint) -> Any:
    from looped_lib.ouro.evaluate.sweep import Sweep  # slow to import

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = checkpoint.model(config.dtype).to(device)
    if device == "cpu" and model.num_parameters() < SMALL:
        torch.set_num_threads(1)  # on small matrices two threads mostly wait for each other
    return Sweep(model, checkpoint.tokenizer(), config.batch_size, config.max_len)


def _vllm(config: EvaluationConfig, checkpoint: Checkpoint, most: int, links: Path) -> Any:
    """An adapter is merged: with one at work, vLLM has no log-probabilities of a prompt (on a CPU its engine dies of them)."""
    from looped_lib.ouro.evaluate.served import Served  # slow to import, and perhaps not there

    def found(source: str | Path) -> str:  # vLLM lists a folder's files by a pattern
        return str(without_wildcards(Path(source), links)) if Path(source).is_dir() else str(source)

    arguments = {
        "pretrained": found(checkpoint.base if checkpoint.adapter is None else _merged(checkpoint, config.dtype, links)),
        "tokenizer": found(checkpoint.source),
        "dtype": config.dtype,
        "max_model_len": config.max_len,
        "max_gen_toks": config.max_new_tokens,
        "seed": config.seed,
        **config.engine,
    }
    return Served(most, **arguments, batch_size="auto")


def _merged(checkpoint: Checkpoint, dtype: str, links: Path) -> Path:
    """A folder with base and adapter in one, which is deleted with `links`."""
    checkpoint.model(dtype).save_pretrained(links / "merged")
    return links / "merged"
