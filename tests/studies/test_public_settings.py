"""The paper's presets against a form written anew: 40 optimiser steps from the same weights, rows and loop counts.

The form here is naive and shares no code with the library's: the model from its formulas, the penalty as one VJP of the whole
batch, AdamW by hand, nothing clipped. Widths are small, settings those of size `paper`; dropout is off, since its masks cannot be
shared.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from looped_lib.dynamics.jacobian import random_normal
from looped_lib.models.looped import LoopedTransformer
from looped_lib.regularizers import LastChange
from looped_lib.studies import paper
from looped_lib.studies.sizes import base
from looped_lib.tasks.problems import IGNORE
from looped_lib.training.trainer import Trainer, learning_rate

STEPS, WARMUP, ONSET = 40, 5, 15


def small(config):
    """The same settings on narrow models and small batches; steps, warm-up and onset in proportion."""
    model = replace(config.model, d_model=16, n_heads=2, d_ff=32, dropout=0.0, max_len=20, init_std=0.2)
    data = replace(config.data, train_file="", test_file="", n_train=37, n_test=4)
    training = replace(config.training, steps=STEPS, batch_size=8, warmup_steps=WARMUP, lr=1e-3, checkpoint_every=0)
    onset = ONSET if config.penalty.onset else 0
    loops = config.loops if config.loops.mean() == 4 else replace(config.loops, high=6)
    return replace(
        config, model=model, data=data, training=training, loops=loops, penalty=replace(config.penalty, onset=onset), seed=3
    )


def block(w, c, h):
    """One loop. w: the weights by name, double."""

    def norm(x, name):
        if c.norm_type == "RMSNorm":
            return x / (x.pow(2).mean(-1, keepdim=True) + 1.1920928955078125e-07).sqrt() * w[f"{name}.weight"]
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x if c.norm_type == "SimpleNorm" else x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(x):
        q, k, v = (x @ w["a.qkv.weight"].T + w["a.qkv.bias"]).view(*x.shape[:2], 3, c.n_heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores + torch.full(scores.shape[-2:], -math.inf, dtype=x.dtype).triu(1)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ w["a.out.weight"].T + w["a.out.bias"]

    def mlp(x):
        return F.gelu(x @ w["m.up.weight"].T + w["m.up.bias"]) @ w["m.out.weight"].T + w["m.out.bias"]

    alpha = c.deepnorm_alpha if c.norm_type == "DeepNorm" else 1.0
    for f, name in ((attention, "A"), (mlp, "M")):
        if c.norm_placement == "pre_norm":
            h = h + f(norm(h, f"{name}.norm"))
        elif c.norm_placement == "post_norm":
            h = norm(alpha * h + f(h), f"{name}.norm")
        elif c.norm_placement == "sandwich_branch":
            h = h + norm(f(norm(h, f"{name}.norm_in")), f"{name}.norm_out")
        else:
            h = norm(h + f(norm(h, f"{name}.norm_in")), f"{name}.norm_out")
    return h


class Naive:
    """Weights, AdamW's moments, and one step at a time."""

    def __init__(self, model, config):
        self.config = config
        self.names = [name for name, _ in model.named_parameters()]
        self.weights = [p.detach().double().clone().requires_grad_() for p in model.parameters()]
        self.m, self.v = ([torch.zeros_like(p) for p in self.weights] for _ in range(2))

    def short(self):
        return {
            name.replace("layers.0.attention.sublayer", "a")
            .replace("layers.0.mlp.sublayer", "m")
            .replace("layers.0.attention", "A")
            .replace("layers.0.mlp", "M"): p
            for name, p in zip(self.names, self.weights, strict=True)
        }

    def loss(self, step, inputs, labels, n_loops, probe):
        c, w = self.config, self.short()
        h = w["token_embedding.weight"][inputs] + w["position_embedding.weight"][: inputs.shape[1]]
        before = h
        for _ in range(n_loops):
            before, h = h, block(w, c.model, h)
        x = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        logits = (x * w["final_norm.weight"] + w["final_norm.bias"]) @ w["token_embedding.weight"].T
        kept = labels != IGNORE
        ce = -logits.log_softmax(-1)[kept].gather(-1, labels[kept][:, None]).mean()
        penalty = c.penalty
        loss = ce
        if penalty.weight and step >= penalty.onset:
            at = h.detach().requires_grad_()
            (product,) = torch.autograd.grad(block(w, c.model, at), at, probe / probe.norm(), create_graph=True)
            loss = 0.9 * ce + 0.1 * product.pow(2).sum()
        if self.config.terms:
            loss = loss + (h - before).norm(dim=-1).mean()
        return loss

    def step(self, step, *batch):
        loss = self.loss(step, *batch)
        gradients = torch.autograd.grad(loss, self.weights)
        lr, t = learning_rate(self.config.training, step), step + 1
        with torch.no_grad():
            for p, g, m, v in zip(self.weights, gradients, self.m, self.v, strict=True):
                p *= 1 - lr * 0.01
                m.lerp_(g, 0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                p -= lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        return loss.item(), torch.stack([g.norm() for g in gradients]).norm().item()


def one(configs):
    (config,) = configs.values()
    return config


RUNS = {
    "STARS": lambda: one(paper.jacobian_study("paper", "public_code")),
    "STARS as really run": lambda: one(paper.jacobian_study("paper", "public")),
    "L2": lambda: one(paper.random_loop_study("paper", "l2")),
    "RMSNorm": lambda: one(paper.norm_study("paper", "pre_norm", "RMSNorm")),
    "SimpleNorm": lambda: one(paper.norm_study("paper", "sandwich_branch", "SimpleNorm")),
    "DeepNorm": lambda: one(paper.norm_study("paper", "post_norm", "DeepNorm")),
    "DeepNorm elsewhere": lambda: one(paper.norm_study("paper", "sandwich_dual", "DeepNorm")),
}


@pytest.mark.parametrize("run", RUNS)
def test_forty_steps_are_those_of_a_naive_form(run, tmp_path):
    config = small(RUNS[run]())
    trainer = Trainer(config, tmp_path, progress=False)
    trainer.model.double()
    naive, norms, seen = Naive(trainer.model, config), [], []
    for step in range(STEPS):
        repeats, size = config.training.batch_repeats, config.training.batch_size
        rows = trainer.batches.rows(step)
        if not config.training.shuffle:
            assert rows.tolist() == [(step // repeats * size + i) % 37 for i in range(size)]
        inputs, labels = trainer.problems.inputs[rows], trainer.problems.labels[rows]
        n_loops = config.loops.sample(config.seed, step)
        like = trainer.model.embed(inputs)
        probe = random_normal(like, trainer.objective.jacobian._generator(like, step, 0))
        trainer.step = step
        ours = trainer.train_step()
        loss, norm = naive.step(step, inputs, labels, n_loops, probe)
        assert ours["loss"].item() == pytest.approx(loss, rel=1e-6), step
        norms.append(norm)
        seen.append((tuple(rows.tolist()), n_loops))
    for name, mine, theirs in zip(naive.names, trainer.model.parameters(), naive.weights, strict=True):
        if not name.endswith("qkv.bias"):  # the keys' bias has no gradient but rounding, which Adam magnifies
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert max(norms) > 1.0, "a clip at 1 would not have been seen"
    if config.training.batch_repeats == 4:
        assert all(seen[i][0] == seen[i - i % 4][0] for i in range(STEPS)) and len({n for _, n in seen[:4]}) > 1


def test_initial_weights_of_deepnorm_are_its_own_in_every_placement():
    for config in paper.norm_study("paper", "all", "DeepNorm").values():
        model = LoopedTransformer(config.model)
        out = model.layers[0].mlp.sublayer.out.weight
        assert out.std().item() == pytest.approx(math.sqrt(5 * 2 / (512 + 1024)), rel=0.02)
        assert model.layers[0].mlp.sublayer.up.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_settings_line_by_line():
    """runs/PAPER.md, as values."""
    norms = paper.norm_study("paper", "all", "all")
    random = [c for p in ("", "sandwich_dual") for c in paper.random_loop_study("paper", norm_placement=p).values()]
    stars = paper.jacobian_study("paper")
    assert len(norms) == 16 and {c.loops.mean() for c in norms.values()} == {4.0}
    for c in [*norms.values(), *random, *stars.values(), base("paper")]:
        assert (c.training.grad_clip, c.model.final_norm, c.model.rms_eps) == (0.0, "LayerNorm", torch.finfo(torch.float32).eps)
        assert c.training.lr_end == 0 and c.data.test_file and c.data.train_file
    assert {c.model.deepnorm_alpha for n, c in norms.items() if "DeepNorm" in n} == {10.0}
    assert {c.model.deepnorm_alpha for c in random} == {1.0}
    assert [c.model.norm_placement for c in random] == ["sandwich_branch"] * 7 + ["sandwich_dual"] * 7
    assert list(paper.random_loop_study("paper", "l2")) == ["l2-sandwich_branch-seed0"]
    l2 = one(paper.random_loop_study("paper", "l2"))
    assert l2.terms == {"l2": LastChange(weight=1.0, onset=0)} and l2.penalty.weight == 0
    uniform, poisson = (one(paper.random_loop_study("paper", name)).loops for name in ("uniform", "poisson"))
    assert [uniform.support[0], uniform.support[-1], uniform.mean()] == [1, 100, 50.5]
    assert [poisson.support[0], poisson.support[-1], poisson.rate] == [1, 100, 5.0]
    for name in ("public_code", "public"):
        c = one(paper.jacobian_study("paper", name))
        assert (c.penalty.weight, c.penalty.onset, c.penalty.share, c.penalty.public_code) == (0.1, 2000, 1.0, True)
        assert (c.model.norm_placement, c.model.norm_type, c.loops.mean()) == (
            "sandwich_dual",
            "LayerNorm",
            pytest.approx(9.4, abs=0.1),
        )
        assert (c.training.batch_repeats, c.training.shuffle) == ((4, False) if name == "public" else (1, True))
    assert {c.penalty.share for c in stars.values() if c.penalty.weight} == {1.0}
    assert "public-seed0" not in stars
