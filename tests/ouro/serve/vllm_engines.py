"""Runs vLLM engines for test_ouro_vllm.py: `python vllm_engines.py JOBS.json FOLDER` writes FOLDER/<job>.json for each job.

A job is {"engine": arguments of vllm.LLM, "calls": [arguments of `call`]}. vLLM is imported once; each job then runs in a process
of its own, so that memory and failures of one engine are not the next one's.
"""

import json
import os
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def call(llm: LLM, prompts: list[list[int]], adapter: str | None = None, score: bool = False) -> list[dict]:
    """For each prompt of one batch: 16 greedy tokens and the log-probabilities of the 5 likeliest at each, or (`score`) those of
    the prompt's own tokens; and how many of these came from the prefix cache.
    """
    asked = {"max_tokens": 1, "prompt_logprobs": 0} if score else {"max_tokens": 16, "logprobs": 5, "ignore_eos": True}
    lora = None if adapter is None else LoRARequest("adapter", 1, adapter)
    params = SamplingParams(temperature=0, detokenize=False, **asked)
    out = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False, lora_request=lora)
    found = [o.prompt_logprobs[1:] if score else o.outputs[0].logprobs for o in out]
    logprobs = [[{token: p.logprob for token, p in position.items()} for position in positions] for positions in found]
    return [
        {"ids": list(o.outputs[0].token_ids), "logprobs": p, "cached": o.num_cached_tokens}
        for o, p in zip(out, logprobs, strict=True)
    ]


def run(job: dict) -> dict:
    """The job's results and seconds, or its error."""
    start = time.perf_counter()
    try:
        llm = LLM(**job["engine"])
        started = time.perf_counter()
        calls = [call(llm, **arguments) for arguments in job["calls"]]
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}
    seconds = {"start_seconds": started - start, "call_seconds": time.perf_counter() - started}
    return {"calls": calls, "max_model_len": llm.llm_engine.model_config.max_model_len, **seconds}


if __name__ == "__main__":
    jobs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for name, job in jobs.items():
        if (child := os.fork()) == 0:
            (folder / f"{name}.json").write_text(json.dumps(run(job)))
            os._exit(0)
        os.waitpid(child, 0)
