"""Fine-tuning against an independent training loop: loss, gradients, depths, probes; one process, DDP, FSDP2."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ouro_jobs import config, eager_compiler, inputs, metrics, record_calls, run, training, weights
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from looped_lib.config import PenaltyConfig
from looped_lib.core.files import read_json
from looped_lib.dynamics.jacobian import dense_jacobian, random_signs
from looped_lib.ouro.finetune import job, loading
from looped_lib.ouro.finetune.config import FinetuneConfig
from looped_lib.ouro.finetune.data import IGNORE, Collator, tokenise
from looped_lib.ouro.finetune.rows import load_rows
from looped_lib.ouro.model import costs
from looped_lib.samplers import UniformLoops
from looped_lib.training.jacobian_penalty import JacobianPenalty

DEPTHS = UniformLoops(low=1, high=4)
PENALTY = PenaltyConfig(weight=0.3, share=0.5, onset=1)
FINITE = PenaltyConfig(weight=0.3, share=0.5, onset=1, product="finite_difference")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    with inputs(tmp_path_factory.mktemp("finetune")) as folder:
        yield folder


def runs_of_two(folder: Path) -> dict[str, FinetuneConfig]:
    return {
        "ddp": config(folder, micro_batch=4),
        "ddp_accumulated": config(folder, micro_batch=2),
        "fsdp2": config(folder, micro_batch=4, parallel="fsdp2"),
        "fsdp2_accumulated": config(folder, micro_batch=2, parallel="fsdp2"),
        "ddp_penalty": config(folder, micro_batch=1, loops=DEPTHS, penalty=PENALTY, steps=5),
        "fsdp2_penalty": config(folder, micro_batch=1, loops=DEPTHS, penalty=FINITE, steps=5, parallel="fsdp2"),
        "ddp_bf16": config(folder, micro_batch=4, precision="bf16", steps=1),
        "fsdp2_bf16": config(folder, micro_batch=4, precision="bf16", steps=1, parallel="fsdp2", gradient_checkpointing=True),
        "ddp_lora": config(folder, micro_batch=4, lora_rank=2, penalty=FINITE, steps=2),
        "fsdp2_lora": config(folder, micro_batch=4, lora_rank=2, penalty=FINITE, steps=2, parallel="fsdp2"),
        "ddp_mixture": config(folder, micro_batch=4, loops=UniformLoops(low=1, high=2), loss="gate_mixture", steps=5),
        "fsdp2_mixture": config(
            folder, micro_batch=4, loops=UniformLoops(low=1, high=2), loss="gate_mixture", steps=5, parallel="fsdp2"
        ),
    }


@pytest.fixture(scope="module")
def two(folder) -> dict[str, FinetuneConfig]:
    """Runs on two processes, all of one job."""
    configs = runs_of_two(folder)
    run([(c, folder / name) for name, c in configs.items()], 2, record_calls, folder)
    return configs


def by_hand(c: FinetuneConfig, processes: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The run `c`, written out: what is logged, the first update's gradient before clipping, the final weights."""
    tokenizer = AutoTokenizer.from_pretrained(c.tokenizer)
    rows = list(tokenise(load_rows(c.data, c.seed), tokenizer, c.data).dataset)
    model = AutoModelForCausalLM.from_pretrained(c.model, dtype=torch.float32)
    named = {n: p for n, p in model.named_parameters() if c.loss == "gate_mixture" or "gate." not in n or "mlp" in n}
    u, per_epoch = c.updates, -(-len(rows) // c.updates.batch_size)
    groups = [{"params": [p for p in named.values() if (p.ndim > 1) == m], "weight_decay": m * u.weight_decay} for m in (1, 0)]
    optimizer = torch.optim.AdamW(groups, u.lr, u.betas)
    lines, first = [], {}
    for update in range(u.steps or per_epoch):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(c.seed + update // per_epoch)).tolist()
        batch = [rows[i] for i in order[update % per_epoch * u.batch_size :][: u.batch_size]]
        parts = [batch[i : i + u.micro_batch] for i in range(0, len(batch), u.micro_batch)]
        accumulation = u.batch_size // u.micro_batch // processes
        labels = sum(label != IGNORE for row in batch for label in row["labels"][1:])
        estimated = range(0, accumulation, round(1 / c.penalty.share))
        on = c.penalty.weight > 0 and update >= c.penalty.onset
        loss, penalties, depths = torch.zeros(()), [], []
        for i, part in enumerate(parts):
            m = i // processes
            depths.append(c.loops.sample(c.seed, update * accumulation + m))
            inputs = Collator(tokenizer)(part)
            if c.loss == "gate_mixture":
                loss = loss + model(**inputs, n_loops=depths[-1], entropy_weight=c.entropy_weight, num_items_in_batch=labels).loss
            else:
                given = {name: value for name, value in inputs.items() if name != "labels"}
                logits = model(**given, n_loops=depths[-1]).logits[:, :-1]
                loss = loss + F.cross_entropy(logits.transpose(1, 2), inputs["labels"][:, 1:], reduction="sum") / labels
            if on and m in estimated:
                penalties.append(penalty(model, inputs, depths[-1], c, update, i))
        r = torch.stack(penalties).mean() if penalties else torch.zeros(())
        w = c.penalty.weight if update >= c.penalty.onset else 0.0
        ((1 - w) * loss + w * r).backward()
        first = first or {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
        norm = torch.nn.utils.clip_grad_norm_(named.values(), u.grad_clip or torch.inf)
        optimizer.step()
        optimizer.zero_grad()
        values = {"loss": loss, "penalty": r, "grad_norm": norm, "n_loops": sum(depths) / len(depths)}
        lines.append({name: float(torch.as_tensor(value).detach()) for name, value in values.items()})
    return lines, first, model.state_dict()


def penalty(model, inputs, n_loops: int, c: FinetuneConfig, update: int, part: int) -> torch.Tensor:
    """R at the last state, by the estimator of `regularizers` itself (which is compared with the dense J below)."""
    h, mask = model.embed(inputs["input_ids"]), inputs.get("attention_mask")
    loops, tokens = model.model.context(h, mask, inputs.get("position_ids")), None if mask is None else mask.bool()
    for _ in range(n_loops):
        h = model.step(h, loops)
    return JacobianPenalty(c.penalty, c.seed).of(lambda x: model.step(x, loops), h, update, part, tokens)


def assert_same_run(c: FinetuneConfig, run_dir: Path, processes: int) -> None:
    lines, gradient, final = by_hand(c, processes)
    for line, expected in zip(metrics(run_dir), lines, strict=True):
        assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-5), line["step"]
    clipped = min(1.0, c.updates.grad_clip / lines[0]["grad_norm"]) if c.updates.grad_clip else 1.0
    moments = training(run_dir, 1)
    for name, g in gradient.items():
        share = 1 - c.updates.betas[0]
        torch.testing.assert_close(moments[f"adamw.{name}.exp_avg"], share * clipped * g, rtol=1e-4, atol=1e-7)
    for name, w in weights(run_dir, len(lines)).items():
        torch.testing.assert_close(w, final[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("micro_batch, grad_clip", [(8, 1.0), (4, 0.0), (2, 1.0)])
def test_accumulation_is_one_big_batch_of_tokens(folder, micro_batch, grad_clip):
    c = config(folder, micro_batch=micro_batch, grad_clip=grad_clip)
    run_dir = folder / f"one_{micro_batch}"
    job.finetune(c, run_dir)
    assert_same_run(c, run_dir, 1)


@pytest.mark.parametrize("name", ["ddp", "ddp_accumulated", "fsdp2", "fsdp2_accumulated"])
def test_two_processes_train_what_one_does(folder, two, name):
    assert_same_run(two[name], folder / name, 2)


@pytest.mark.parametrize("name", ["ddp_penalty", "fsdp2_penalty", "ddp_mixture", "fsdp2_mixture"])
def test_penalty_and_mixture_are_the_formula_on_two_processes(folder, two, name):
    """Over more than one epoch, from an onset on, with one-loop mixtures that leave the gate out."""
    assert_same_run(two[name], folder / name, 2)


def test_two_processes_loop_equally_often_on_different_rows(folder, two):
    calls = [[json.loads(line) for line in (folder / f"calls.rank{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]
    at = 0
    for name, c in two.items():
        accumulation = c.updates.batch_size // c.updates.micro_batch // 2
        for line in metrics(folder / name):
            update = line["step"] - 1
            mine, other = (one[at : at + accumulation] for one in calls)
            depths = [c.loops.sample(c.seed, update * accumulation + m) for m in range(accumulation)]
            assert [call["loops"] for call in mine] == [call["loops"] for call in other] == depths
            assert line["n_loops"] == sum(depths) / accumulation
            penalised = [c.penalty.weight > 0 and update >= 1 and m in (0, 2) for m in range(accumulation)]  # share 1/2
            assert [call["penalised"] for call in mine] == [call["penalised"] for call in other] == penalised
            assert not any(row in call["rows"] for call in mine for o in other for row in o["rows"])
            at += accumulation
    assert at == len(calls[0]) == len(calls[1])


SINGLE = {
    "jvp": {"penalty": PenaltyConfig(weight=0.3, share=1.0, onset=0, product="jvp")},
    "a third of five": {
        "penalty": PenaltyConfig(weight=0.3, share=1 / 3, onset=0),
        "batch_size": 6,
        "micro_batch": 1,
        "steps": 2,
    },
    "radius": {"penalty": PenaltyConfig(weight=0.3, share=1.0, onset=0, quantity="spectral_radius", iterations=3)},
    "recomputed": {"penalty": PENALTY, "gradient_checkpointing": True, "weight_decay": 0.5},
    "mixture": {"loss": "gate_mixture", "entropy_weight": 0.3, "gradient_checkpointing": True},
    "rest": {"batch_size": 16, "penalty": PENALTY, "steps": 4},  # of 24 rows, every second update has 8
}


@pytest.mark.parametrize("name", SINGLE)
def test_one_process_trains_by_the_formula(folder, name):
    c = config(folder, **{"micro_batch": 2, "loops": DEPTHS, "steps": 4, **SINGLE[name]})
    job.finetune(c, folder / name)
    assert_same_run(c, folder / name, 1)


def test_packed_rows_train_by_the_formula(folder):
    """Each blind to the others in its row, penalty included."""
    c = config(folder, batch_size=4, micro_batch=2, loops=DEPTHS, penalty=PENALTY)
    c = replace(c, data=replace(c.data, packing=True))
    job.finetune(c, folder / "packed")
    assert_same_run(c, folder / "packed", 1)


@pytest.mark.parametrize("quantity", ["squared_fro", "spectral_norm"])
def test_a_penalty_of_marked_positions_is_that_of_their_block_of_the_jacobian(folder, quantity):
    """By the probes it drew and the Jacobian written out, real tokens' rows and columns alone."""
    model = AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float64)
    ids, mask = torch.randint(3, 500, (3, 5)), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    h = model.step(model.embed(ids)).detach()
    loops = model.model.context(h, mask)
    c = PenaltyConfig(weight=0.1, quantity=quantity, iterations=1 if quantity == "squared_fro" else 60)
    estimator = JacobianPenalty(c, seed=5)
    got = estimator.of(lambda x: model.step(x, loops), h, 7, 2, mask.bool())
    probe = random_signs(h, estimator._generator(h, 7, 2))
    expected = []
    for row in range(3):
        jacobian = dense_jacobian(lambda x, row=row: model.step(x, model.model.context(x, mask[row : row + 1])), h[row])
        real = mask[row].bool().repeat_interleave(16)
        block = jacobian[real][:, real]
        if quantity == "squared_fro":
            expected.append((probe[row].flatten()[real] @ block).square().sum() / real.sum())
        else:
            expected.append(torch.linalg.matrix_norm(block, 2) ** 2)
    torch.testing.assert_close(got, torch.stack(expected).mean(), rtol=1e-9 if quantity == "squared_fro" else 1e-3, atol=0)


@pytest.mark.parametrize("product", ["vjp", "jvp", "finite_difference"])
def test_marked_positions_are_a_block_of_any_map(product):
    """One that mixes all positions, which the model's mask does not let padding do."""
    a = torch.randn(6, 6, dtype=torch.float64)
    h, tokens = torch.randn(1, 3, 2, dtype=torch.float64), torch.tensor([[True, False, True]])
    estimator, real = JacobianPenalty(PenaltyConfig(weight=0.1, product=product), 0), torch.tensor([0, 1, 4, 5])
    got = estimator.of(lambda x: (x.flatten(1) @ a.T).view_as(x), h, 0, tokens=tokens)
    probe, block = random_signs(h, estimator._generator(h, 0, 0)).flatten()[real], a[real][:, real]
    image = probe @ block if product == "vjp" else block @ probe
    torch.testing.assert_close(got, image.square().sum() / 4, rtol=1e-8, atol=0)


def test_the_gate_is_trained_by_the_mixture_alone(folder, two):
    start = AutoModelForCausalLM.from_pretrained(folder / "start").state_dict()
    for name, c in two.items():
        if c.updates.lora_rank:
            continue
        end = weights(folder / name, c.updates.steps or 3)
        moved = {w for w in end if not torch.equal(end[w], start[w])}
        gate = {w for w in end if "early_exit_gate" in w}
        assert moved == end.keys() - (set() if c.loss == "gate_mixture" else gate)


def test_adapters_train_alone(folder, two):
    """LoRA on two processes under DDP and FSDP2: the same adapters, the only weights that are saved; they load on their base."""
    saved = {name: load_file(folder / name / "model" / "adapter_model.safetensors") for name in ("ddp_lora", "fsdp2_lora")}
    assert all("lora_" in name for name in saved["ddp_lora"]) and len(saved["ddp_lora"]) == 2 * 7 * 2
    for name, w in saved["ddp_lora"].items():
        torch.testing.assert_close(saved["fsdp2_lora"][name], w, rtol=0, atol=1e-5)
    assert {p.name for p in (folder / "ddp_lora" / "model").iterdir()}.isdisjoint({"model.safetensors"})
    ids = torch.randint(3, 500, (2, 7))
    tuned, base = (AutoModelForCausalLM.from_pretrained(folder / f) for f in ("ddp_lora/model", "start"))
    assert (tuned(ids).logits - base(ids).logits).abs().max() > 1e-3
    for name, w in base.state_dict().items():
        found = [v for k, v in tuned.state_dict().items() if k.replace(".base_layer", "") == name]
        assert len(found) == 1 and torch.equal(found[0], w)


def apart(folder: Path, a: str, b: str, step: int) -> float:
    """How far two runs from the same start lie from each other, as a share of the way the first one went."""
    start = load_file(folder / "start" / "model.safetensors")
    a, b = weights(folder / a, step), weights(folder / b, step)
    gap, way = (torch.cat([(x[name] - y[name]).flatten() for name in a]).norm() for x, y in ((a, b), (a, start)))
    return float(gap / way)


def test_bfloat16_trains_nearly_the_same_float32_weights(folder, two):
    for exact, rounded in (("ddp", "ddp_bf16"), ("fsdp2", "fsdp2_bf16")):
        assert 1e-5 < apart(folder, exact, rounded, 1) < 0.2
        assert all(w.dtype == torch.float32 for w in weights(folder / rounded, 1).values())


def test_a_compiled_model_trains_the_same_weights(folder):
    penalty = PenaltyConfig(weight=0.3, share=1.0, onset=0, product="finite_difference")
    c = config(folder, steps=1, micro_batch=8, penalty=penalty)
    both = [(replace(c, updates=replace(c.updates, compile=on)), folder / f"compiled_{on}") for on in (False, True)]
    run(both, 1, eager_compiler)
    assert apart(folder, "compiled_False", "compiled_True", 1) < 1e-3


def test_what_is_logged(folder, two):
    """Sums over both processes; FLOPs are those of `costs`; nothing of a machine's peak on a CPU."""
    c, seen = two["ddp_penalty"], 0
    calls = [[json.loads(line) for line in (folder / f"calls.rank{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]
    before = 3 * (1 + 2 + 1 + 2)
    for i, line in enumerate(metrics(folder / "ddp_penalty")):
        rows = [call for one in calls for call in one[before + 4 * i : before + 4 * (i + 1)]]
        tokens = [(len(call["rows"][0]), call["loops"]) for call in rows]  # micro-batches of one row have no padding
        architecture = AutoModelForCausalLM.from_pretrained(folder / "start").config
        flops = sum(n * costs.training_flops(architecture, loops, n) for n, loops in tokens)
        assert line["tokens_per_sec"] * line["seconds_per_update"] == pytest.approx(sum(n for n, _ in tokens))
        assert line["flops_per_sec"] * line["seconds_per_update"] == pytest.approx(flops)
        assert line["memory_bytes"] > 1e6 and "mfu" not in line and line["learning_rate"] == c.updates.lr
        assert line["step"] == i + 1 and line["epoch"] == pytest.approx((i + 1) / 3)
        seen += len(rows)
    assert seen == 40 and list((folder / "ddp_penalty" / "tensorboard").glob("events.out.tfevents.*"))


def test_a_line_is_the_mean_of_the_updates_since_the_line_before(folder):
    """And the last update has a line, whatever `log_every`."""
    every, third = (config(folder, steps=5, loops=DEPTHS, penalty=PENALTY, log_every=n) for n in (1, 3))
    for c, name in ((every, "log_1"), (third, "log_3")):
        job.finetune(c, folder / name)
    lines = metrics(folder / "log_1")
    assert [line["step"] for line in metrics(folder / "log_3")] == [3, 5]
    for line, part in zip(metrics(folder / "log_3"), (lines[:3], lines[3:]), strict=True):
        for name in ("loss", "penalty", "n_loops"):
            assert line[name] == pytest.approx(sum(one[name] for one in part) / len(part), rel=1e-6)
        assert line["grad_norm"] == pytest.approx(part[-1]["grad_norm"], rel=1e-6)
    events = EventAccumulator(str(folder / "log_3" / "tensorboard")).Reload()
    for name in ("loss", "penalty", "n_loops", "tokens_per_sec", "grad_norm"):
        assert [event.step for event in events.Scalars(f"train/{name}")] == [3, 5]
    seconds = sum(line["seconds_per_update"] * n for line, n in zip(metrics(folder / "log_3"), (3, 2), strict=True))
    assert read_json(folder / "log_3" / "result.json")["seconds"] == {"train": pytest.approx(seconds)}


def test_between_two_lines_of_the_log_nothing_waits_for_the_device(folder, monkeypatch):
    """But transformers' own look at the padding mask."""
    waits = Counter()

    def place() -> str:
        frame = sys._getframe(2)
        while not any(part in frame.f_code.co_filename for part in ("looped_lib", "transformers", "accelerate", "utils/data")):
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"

    for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        method = getattr(torch.Tensor, name)

        def counted(self, *args, method=method, **kwargs):
            waits[place()] += 1
            return method(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    c = config(folder, micro_batch=2, steps=6, log_every=6, checkpoint_every=6, loops=DEPTHS, penalty=PENALTY)
    job.finetune(c, folder / "waits")
    assert waits.pop("masking_utils.py:_ignore_causal_mask_sdpa") > 0
    logging = {"trainer.py:close": 1, "trainer.py:_maybe_log_save_evaluate": 2, "trainer.py:_finalize_training": 1}
    epochs = {"sampler.py:__iter__": 4, "dataloader.py:__init__": 2}
    assert waits == logging | epochs


@pytest.mark.parametrize("how", [{"lr": 1e30, "grad_clip": 0.0}])
def test_a_loss_that_is_not_finite_stops_the_run(folder, how):
    with pytest.raises(FloatingPointError, match="update 2: loss nan.*Lower updates.lr"):
        job.finetune(config(folder, **how), folder / "nan")
    assert not (folder / "nan" / "model").exists()


def test_weights_from_scratch_follow_from_the_seed(folder):
    made = []
    for seed in (1, 1, 2):
        c = config(folder, from_scratch=True, seed=seed)
        job.set_seed(seed)
        made.append(loading.load_model(c, loading.load_architecture(c)).state_dict())
    job.finetune(config(folder, from_scratch=True, seed=1, steps=1, lr=1e-12), folder / "scratch")
    trained = weights(folder / "scratch", 1)
    for name, w in made[0].items():
        assert torch.equal(w, made[1][name])
        torch.testing.assert_close(w, trained[name], rtol=0, atol=1e-9)
    assert not torch.equal(made[0]["lm_head.weight"], made[2]["lm_head.weight"])


def test_the_final_model_generates_with_a_cache_and_stops_with_its_turn(folder, two):
    model = AutoModelForCausalLM.from_pretrained(folder / "ddp" / "model")
    assert model.generation_config.eos_token_id == [0, 2] and model.config.use_cache and model.generation_config.use_cache
    assert model.config.architectures == ["OuroForCausalLM"]
    sharded = AutoModelForCausalLM.from_pretrained(folder / "fsdp2" / "model")
    assert sharded.config.to_dict() == model.config.to_dict() | {"_name_or_path": sharded.config._name_or_path}
    assert AutoTokenizer.from_pretrained(folder / "ddp" / "model").chat_template
