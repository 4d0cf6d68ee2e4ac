"""The forms that the benchmark compares compute the same numbers (at tiny sizes); never their times."""

import importlib.util
import math
import os

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from looped_lib.bench import depth, public_form, spectrum, sweep, train_step, vllm
from looped_lib.bench import measure as command
from looped_lib.bench.worker import Worker, median_seconds
from looped_lib.config import ModelConfig
from looped_lib.core.files import read_json
from looped_lib.dynamics.depth import depth_curve
from looped_lib.models.looped import LoopedTransformer
from looped_lib.ouro.evaluate.presets import write_random
from looped_lib.ouro.model.modeling import OuroForCausalLM
from looped_lib.tasks.addition import generate_problems
from looped_lib.tasks.problems import IGNORE
from looped_lib.training.trainer import Trainer

TINY = ModelConfig(d_model=16, n_heads=2, d_ff=32, dropout=0.0, init_std=0.3, max_len=20)


def test_naive_logits_are_ours():
    model = LoopedTransformer(TINY).double()
    problems = generate_problems(4, 5, seed=0)
    logits, h = public_form.PublicModel(model).double()(problems.ids, 3)
    torch.testing.assert_close(logits, model(problems.ids, 3), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.readout(h), logits, rtol=1e-10, atol=1e-12)


def test_one_training_step_moves_the_weights_alike(tmp_path):
    config = train_step.paper_step(n_loops=3, batch_size=16, model=TINY)
    problems = generate_problems(4, 16, seed=0)
    trainer = Trainer(config, tmp_path, progress=False)
    before = trainer.model.token_embedding.weight.detach().clone()
    public = public_form.PublicModel(trainer.model)
    c = config.training
    optimizer = torch.optim.AdamW(public.parameters(), lr=c.lr, betas=c.betas, weight_decay=c.weight_decay)
    loss = public_form.train_step(public, optimizer, problems, n_loops=3)
    assert trainer.train_step()["loss"].item() == pytest.approx(loss, rel=1e-5)
    ours = public_form.PublicModel(trainer.model).state_dict()  # our weights under the naive form's names
    for name, weight in public.state_dict().items():
        if name != "block.attention.qkv.bias":  # the keys' bias has no gradient but rounding, which Adam magnifies
            torch.testing.assert_close(weight, ours[name], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert (trainer.model.token_embedding.weight - before).abs().max() > 0.5 * c.lr


def test_naive_loss_counts_the_answer_only():
    public = public_form.PublicModel(LoopedTransformer(TINY))
    problems = generate_problems(4, 6, seed=1)
    logits = public(problems.ids, 2)[0].log_softmax(-1)[:, :-1]
    counted = problems.labels != IGNORE
    expected = -logits.gather(-1, problems.labels.clamp(min=0)[..., None]).squeeze(-1)[counted].mean().item()
    optimizer = torch.optim.SGD(public.parameters(), lr=0.0)
    assert public_form.train_step(public, optimizer, problems, n_loops=2) == pytest.approx(expected, rel=1e-5)


def test_naive_penalty_is_one_vector_jacobian_product():
    public = public_form.PublicModel(LoopedTransformer(TINY)).double()
    h = torch.randn(2, 3, 16, dtype=torch.float64)
    jacobian = torch.func.jacrev(public.block)(h).reshape(h.numel(), h.numel())
    torch.manual_seed(7)
    r = public_form.jacobian_penalty(public, h)
    torch.manual_seed(7)
    v = torch.randn_like(h).flatten()
    assert r.item() == pytest.approx(((v / v.norm()) @ jacobian).square().sum().item(), rel=1e-10)
    r.backward()
    assert public.block.mlp[0].weight.grad.abs().max() > 0


def test_naive_penalty_enters_the_loss_with_its_weight():
    public = public_form.PublicModel(LoopedTransformer(TINY))
    problems = generate_problems(4, 4, seed=2)
    optimizer = torch.optim.SGD(public.parameters(), lr=0.0)
    plain = public_form.train_step(public, optimizer, problems, n_loops=2)
    torch.manual_seed(3)
    r = public_form.jacobian_penalty(public, public(problems.ids, 2)[1]).item()
    torch.manual_seed(3)
    both = public_form.train_step(public, optimizer, problems, n_loops=2, penalty_weight=0.1)
    assert both == pytest.approx(0.9 * plain + 0.1 * r, rel=1e-5)
    assert abs(both - plain) > 1e-3


def test_baseline_of_another_model_is_refused():
    with pytest.raises(ValueError, match="sandwich_dual"):
        public_form.PublicModel(LoopedTransformer(ModelConfig(norm_placement="pre_norm", d_model=16, n_heads=2, d_ff=32)))


def test_penalised_step_reports_the_penalty(tmp_path):
    config = train_step.paper_step(n_loops=2, batch_size=8, model=TINY)
    plain = Trainer(config, tmp_path / "plain", progress=False).train_step()
    penalised = Trainer(train_step.penalised(config), tmp_path / "penalised", progress=False).train_step()
    assert plain["penalty"] == 0 and penalised["penalty"] > 0


def test_naive_depths_are_those_of_one_pass():
    model = LoopedTransformer(TINY)
    problems = generate_problems(2, 6, seed=0)
    depth.teach(model, [problems[:3]], depth=2, steps=300)
    solved = public_form.solved_by_depth(public_form.PublicModel(model), problems, range(0, 6))
    assert torch.equal(solved, depth_curve(model, problems, 5).correct)
    assert solved[:3, 2].all() and not solved.all()  # right and wrong answers to agree on


def test_chunks_are_neighbours_in_the_sorted_set():
    problems = generate_problems(2, 500, seed=0)
    chunks = depth.spread_chunks(problems)
    ranked = sorted((len(text), text) for text in problems.texts())
    places = [[ranked.index((len(text), text)) for text in chunk.texts()] for chunk in chunks]
    assert all(p == list(range(p[0], p[0] + 64)) for p in places)
    assert places[0][0] == 0 and places[-1][-1] == 499


def test_products_and_their_flops():
    config = train_step.paper_step(n_loops=3, batch_size=2, model=TINY)
    assert train_step.flops(config) == 3 * 6 * (2 * 16) * (4 * 16 * 16 + 2 * 16 * 32)
    for products in (train_step.products_by_mm, train_step.products_by_convolution):
        run = products(config)
        with FlopCounterMode(display=False) as counted:
            run()
        assert counted.get_total_flops() == train_step.flops(config)


def test_both_spectra_have_one_radius(monkeypatch):
    assert spectrum.measure(TINY, seq=4)["spectrum_vs_dense"][0] > 0
    monkeypatch.setattr(spectrum, "exact_radius", lambda step, h: torch.ones(1))
    with pytest.raises(RuntimeError, match="radii disagree: 1.0 from the blocks"):
        spectrum.measure(TINY, seq=4)


@pytest.fixture(scope="module")
def tiny_ouro(tmp_path_factory):
    """(Checkpoint, prompts, model); whatever token is written, the checkpoint says that the text ends there."""
    folder = write_random(tmp_path_factory.mktemp("ouro"))
    model = OuroForCausalLM.from_pretrained(folder).eval()
    model.config.eos_token_id = model.generation_config.eos_token_id = list(range(512))
    model.save_pretrained(folder)
    return str(folder), vllm.word_problems(str(folder), 3), model


def test_batched_answers_are_those_of_single_prompts_and_do_not_end(tiny_ouro):
    checkpoint, prompts, model = tiny_ouro
    answers = vllm.generate_calls(checkpoint, prompts, 6)["answer"]()
    assert len({len(prompt) for prompt in prompts}) > 1  # some are padded
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(6):
                ids = torch.cat([ids, model(ids, n_loops=4).logits[:, -1:].argmax(-1)], 1)
        assert ids[0, len(prompt) :].tolist() == answer


def test_answers_may_part_at_a_tie_only(tiny_ouro, tmp_path):
    _, prompts, model = tiny_ouro
    with torch.no_grad():
        likeliest, *_, unlikely = model(torch.tensor([prompts[0]]), n_loops=4).logits[0, -1].argsort(descending=True).tolist()
        model.lm_head.weight[unlikely] = model.lm_head.weight[likeliest]
        third = model(torch.tensor([prompts[0]]), n_loops=4).logits[0, -1].argsort(descending=True)[2].item()
    model.save_pretrained(tmp_path)
    ours = [[likeliest, 5], [7, 8]]
    assert vllm.count_alike(str(tmp_path), prompts[:2], ours, ours) == 2
    assert vllm.count_alike(str(tmp_path), prompts[:2], ours, [[unlikely, 6], [7, 8]]) == 1
    with pytest.raises(RuntimeError, match="disagree, by .* nats, at token 0"):
        vllm.count_alike(str(tmp_path), prompts[:2], ours, [[third, 5], [7, 8]])


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
def test_vllm_and_generate_answer_alike(tiny_ouro):
    ratio, said = vllm.measure(tiny_ouro[0], problems=3, new_tokens=4, repeats=1, compiled=False)["vllm_vs_generate"]
    assert ratio > 0 and "3 of 3 answers alike" in said


def test_a_sweep_and_separate_depths_agree(monkeypatch):
    found = sweep.measure_answers(problems=2, depths=[1, 2], steps=3) | sweep.measure_likelihoods(problems=2, depths=[1, 2])
    assert all(ratio > 0 for ratio, _ in found.values()) and set(command._ANSWERS) < set(found)
    generated = sweep.generated
    monkeypatch.setattr(sweep, "generated", lambda *asked: [[511, *text[1:]] for text in generated(*asked)])
    with pytest.raises(RuntimeError, match="sweep and generate disagree at depth 1, by .* of a logit, at token 0"):
        sweep.measure_answers(problems=2, depths=[1, 2], steps=0)


def _calls(folder):
    return {name: (folder / name).touch for name in "ab"} | {"broken": lambda: 1 / 0, "where": lambda: os.environ["WHERE"]}


def test_workers_take_turns_and_say_when_they_die(tmp_path, capfd):
    with Worker(_calls, tmp_path, environment={"WHERE": "there"}) as worker:
        seconds = median_seconds([(worker, "a"), (worker, "b")], repeats=2)
        assert len(seconds) == 2 and all(math.isfinite(s) and s > 0 for s in seconds)
        assert (tmp_path / "a").exists() and (tmp_path / "b").exists()
        assert worker.result("where") == "there" and "WHERE" not in os.environ
        with pytest.raises(RuntimeError, match="'broken' has ended"):
            worker.seconds("broken")
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """The file of results of a command that measures nothing, and finds vLLM."""
    monkeypatch.setattr(command, "runs_folder", lambda: tmp_path / "runs")
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    monkeypatch.setattr(depth, "measure", lambda: {"depth_curve_vs_public": (321.5, "one, another")})
    monkeypatch.setattr(spectrum, "measure", lambda: {"spectrum_vs_dense": (30.0, "")})
    monkeypatch.setattr(sweep, "measure_answers", lambda: dict.fromkeys(command._ANSWERS, (3.5, "")))
    monkeypatch.setattr(sweep, "measure_likelihoods", lambda: {"likelihood_sweep_vs_separate": (8.0, "")})
    monkeypatch.setattr(vllm, "measure", lambda: {"vllm_vs_generate": (1.5, "")})
    monkeypatch.setattr(train_step, "measure", lambda config: {n: (2.0, "") for n in command._TRAIN_STEP})
    return tmp_path / "runs" / "bench" / "result.json"


def test_command_writes_what_was_asked_for(measured, capsys):
    command.main(["depth_curve_vs_public"])
    assert "321.50  one, another" in capsys.readouterr().out
    assert read_json(measured) == {"depth_curve_vs_public": 321.5}
    command.main(["penalty_overhead"])
    assert read_json(measured) == {"depth_curve_vs_public": 321.5, "penalty_overhead": 2.0}
    command.main([])
    assert set(read_json(measured)) == set(command.NAMES)
    with pytest.raises(SystemExit):
        command.main(["penalty_overheat"])
    assert "no measurement penalty_overheat" in capsys.readouterr().err


def test_without_vllm_its_line_is_left_out_unless_named(measured, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    command.main([])
    assert set(read_json(measured)) == set(command.NAMES) - {"vllm_vs_generate"}
    assert "left out: vllm_vs_generate needs vLLM, which is not installed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["spectrum_vs_dense", "vllm_vs_generate"])
    assert "vllm_vs_generate needs vLLM, which is not installed" in capsys.readouterr().err
