"""Tokens a second: vLLM, with this package's model, against transformers' `generate`, on the same Ouro and prompts.

The model has the shape of the preset `cpu` and random weights, unless a checkpoint is given. It loops 4 times, in float32. The
prompts are word problems of data/; each is answered greedily by the same number of tokens, as nothing ends an answer. Both have
all prompts at once: `generate` as one batch padded on the left, with a cache of all loops, as the harness's transformers backend
has it; vLLM as a list, compiled, without its prefix cache, which would spare it the prompts from the second turn on. On a CPU
both have one thread: two mostly wait for each other on matrices of a small model.
"""

import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer

from looped_lib.bench.worker import Calls, Worker, median_seconds
from looped_lib.core.project import find_root
from looped_lib.core.quiet import QUIET
from looped_lib.ouro.evaluate.presets import write_random
from looped_lib.ouro.finetune.data import prompt_text
from looped_lib.ouro.finetune.presets import TRAINED_DEPTH
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.ouro.serve.kv_memory import kv_bytes_per_token

TIE = 1e-4  # nats; what float32 leaves open between two orders of summation is less
_ENGINE = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in the process that is timed, and ends with it
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    **QUIET,
}
_BLOCK = 128  # tokens in a block of vLLM's cache, at most


def measure(
    checkpoint: str | Path | None = None,
    problems: int = 64,
    new_tokens: int = 64,
    repeats: int = 5,
    compiled: bool = True,
) -> dict[str, tuple[float, str]]:
    """{name: (ratio, what was compared)}. RuntimeError if two answers part otherwise than at a tie (see `count_alike`).

    Neither the start of an engine nor its first two turns count.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(checkpoint or write_random(Path(folder), "cpu"))
        prompts = word_problems(checkpoint, problems)
        asked = (checkpoint, prompts, new_tokens)
        with Worker(vllm_calls, *asked, compiled, environment=_ENGINE) as vllm, Worker(generate_calls, *asked) as ours:
            alike = count_alike(checkpoint, prompts, ours.result("answer"), vllm.result("answer"))
            seconds = median_seconds([(vllm, "answer"), (ours, "answer")], repeats)
    vllm_rate, our_rate = (problems * new_tokens / s for s in seconds)
    said = f"vLLM {vllm_rate:,.0f}, generate {our_rate:,.0f} tokens/s; {alike} of {problems} answers alike"
    return {"vllm_vs_generate": (vllm_rate / our_rate, said)}


def word_problems(checkpoint: str, problems: int) -> list[list[int]]:
    """The first held-out problems as tokens, up to where the answer begins."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lines = (find_root() / "data" / "word_problems" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:problems]
    texts = [prompt_text(tokenizer, json.loads(line)["problem"], "") for line in lines]
    return tokenizer(texts, add_special_tokens=False).input_ids


def vllm_calls(checkpoint: str, prompts: list[list[int]], new_tokens: int, compiled: bool) -> Calls:
    """`answer`: all prompts by an engine of vLLM."""
    torch.set_num_threads(1)  # vLLM takes the number as it finds it, and heeds no later one
    from vllm import LLM, SamplingParams

    max_len = max(map(len, prompts)) + new_tokens
    config = AutoConfig.from_pretrained(checkpoint)
    config.total_ut_steps = TRAINED_DEPTH
    engine = LLM(
        checkpoint,
        hf_overrides={"total_ut_steps": TRAINED_DEPTH},
        dtype="float32",
        max_model_len=max_len,
        max_num_seqs=len(prompts),
        kv_cache_memory_bytes=kv_bytes_per_token(config, 4) * (len(prompts) + 1) * (max_len + _BLOCK),
        enable_prefix_caching=False,
        enforce_eager=not compiled,
        skip_tokenizer_init=True,
    )
    texts = [{"prompt_token_ids": prompt} for prompt in prompts]
    greedy = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    return {"answer": lambda: [list(o.outputs[0].token_ids) for o in engine.generate(texts, greedy, use_tqdm=False)]}


def generate_calls(checkpoint: str, prompts: list[list[int]], new_tokens: int) -> Calls:
    """`answer`: all prompts by transformers, as one batch."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _fixed_depth(checkpoint).to(device)
    model.generation_config.eos_token_id = None  # or `generate` would fall back to it
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(device)
    greedy = {"do_sample": False, "max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": tokenizer.pad_token_id}

    def answer() -> list[list[int]]:
        return model.generate(**batch, n_loops=TRAINED_DEPTH, **greedy)[:, batch["input_ids"].shape[1] :].tolist()

    return {"answer": answer}


def _fixed_depth(checkpoint: str) -> OuroForCausalLM:
    """The model, which takes all loops whatever its config says of the exit gate, as vLLM does."""
    return OuroForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, early_exit_threshold=1.0).eval()


def count_alike(checkpoint: str, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]]) -> int:
    """How many answers are the same to the last token.

    RuntimeError if two part otherwise than by a tie: where they first differ, either token's log-probability, of a pass without
    cache or padding, is more than TIE below that of the likeliest. What follows a tie may differ, and is not compared.
    """
    parting = [answers for answers in zip(prompts, ours, theirs, strict=True) if answers[1] != answers[2]]
    model = _fixed_depth(checkpoint) if parting else None
    for prompt, one, other in parting:
        parts = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        with torch.inference_mode():
            log_p = model(torch.tensor([prompt + one[:parts]]), n_loops=TRAINED_DEPTH).logits[0, -1].log_softmax(-1)
        gap = (log_p.max() - log_p[[one[parts], other[parts]]].min()).item()
        if gap > TIE:
            raise RuntimeError(f"generate and vLLM disagree, by {gap:.2g} nats, at token {parts} after {prompt + one[:parts]}")
    return len(prompts) - len(parting)
