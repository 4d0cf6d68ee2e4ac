"""Norm placements against their formulas; the public recurrence; causality; cached generation equal to uncached."""

import itertools
import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from looped_lib.models.cache import Cache
from looped_lib.models.config import ModelConfig, NormPlacement, NormType
from looped_lib.models.looped import LoopedTransformer

PLACEMENTS, TYPES = get_args(NormPlacement), get_args(NormType)
PAIRS = list(itertools.product(PLACEMENTS, TYPES))
SMALL = {"d_model": 16, "n_heads": 2, "d_ff": 24, "max_len": 12, "init_std": 0.4, "dropout": 0.2}


def build(**changes) -> LoopedTransformer:
    torch.manual_seed(0)
    model = LoopedTransformer(ModelConfig(**{**SMALL, **changes})).double().eval()
    with torch.no_grad():  # norms at identity would hide a missing gain or bias
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    return model


def reference_norm(kind, x, p):
    if kind == "RMSNorm":
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * p["weight"]
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return y if kind == "SimpleNorm" else y * p["weight"] + p["bias"]


def reference_block(model, x, block=None):
    """One loop of one layer (or another block of the model), written from the equations."""
    c, block = model.config, block or model.layers[0]

    def attention(z):
        s = block.attention.sublayer
        q, k, v = (z @ s.qkv.weight.T + s.qkv.bias).split(c.d_model, -1)
        heads = []
        for i in range(c.n_heads):
            part = slice(i * c.d_model // c.n_heads, (i + 1) * c.d_model // c.n_heads)
            scores = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(c.d_model / c.n_heads)
            later = torch.ones_like(scores, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v[..., part])
        return torch.cat(heads, -1) @ s.out.weight.T + s.out.bias

    def mlp(z):
        s = block.mlp.sublayer
        return F.gelu(z @ s.up.weight.T + s.up.bias) @ s.out.weight.T + s.out.bias

    for residual, f in ((block.attention, attention), (block.mlp, mlp)):
        norms = {n.removesuffix("norm").strip("_") or n: dict(m.named_parameters()) for n, m in residual.named_children()}

        def norm(z, which, norms=norms):
            return reference_norm(c.norm_type, z, norms[which])

        if c.norm_type == "DeepNorm" and c.norm_placement == "post_norm":
            x = norm(c.deepnorm_alpha * x + f(x), "norm")
        elif c.norm_placement == "pre_norm":
            x = x + f(norm(x, "norm"))
        elif c.norm_placement == "post_norm":
            x = norm(x + f(x), "norm")
        elif c.norm_placement == "sandwich_branch":
            x = x + norm(f(norm(x, "norm_in")), "norm_out")
        else:
            x = norm(x + f(norm(x, "norm_in")), "norm_out")
    return x


@pytest.mark.parametrize(("placement", "kind"), PAIRS)
def test_step_is_its_formula(placement, kind):
    model = build(norm_placement=placement, norm_type=kind)
    h = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(model.step(h), reference_block(model, h), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_deepnorm_starts_with_its_gain(placement):
    model = LoopedTransformer(ModelConfig(norm_placement=placement, norm_type="DeepNorm", deepnorm_alpha=10.0))
    block = model.layers[0]
    for linear in (block.attention.sublayer.out, block.mlp.sublayer.out):
        expected = math.sqrt(10 / 2) * math.sqrt(2 / (linear.in_features + linear.out_features))
        assert linear.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert block.mlp.sublayer.up.weight.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("extra", [{}, {"prelude_layers": 1, "coda_layers": 2, "k_layers": 2}])
def test_forward_composes_embed_step_readout(extra):
    model = build(**extra)
    ids = torch.randint(0, 15, (3, 7))
    h = model.embed(ids)
    for t in range(4):
        torch.testing.assert_close(model(ids, t), model.readout(h), rtol=0, atol=0)
        h = model.step(h)
    blocks = [*model.prelude, *model.layers, *model.coda]
    assert len(blocks) == 1 + 4 * bool(extra) and "lm_head" not in dict(model.named_modules())  # the head is tied


def test_the_whole_forward_pass_is_its_formula():
    """Embedding, prelude, loops of k layers, coda, final norm, tied head: in this order, each the stated number of times."""
    model = build(prelude_layers=1, k_layers=2, coda_layers=2)
    ids, words = torch.randint(0, 15, (2, 6)), model.token_embedding.weight
    h = reference_block(model, words[ids] + model.position_embedding.weight[:6], model.prelude[0])
    for n_loops in range(4):
        out = h
        for block in model.coda:
            out = reference_block(model, out, block)
        logits = reference_norm("LayerNorm", out, dict(model.final_norm.named_parameters())) @ words.T
        torch.testing.assert_close(model(ids, n_loops), logits, rtol=1e-10, atol=1e-10)
        for block in model.layers:
            h = reference_block(model, h, block)


@pytest.mark.parametrize(("placement", "bounded"), list(zip(PLACEMENTS, [False, True, False, True], strict=True)))
def test_which_placements_bound_the_state(placement, bounded):
    """After 1,000 loops a normalised token vector still has norm sqrt(d); a sum of branches has grown far beyond it."""
    model, h = build(norm_placement=placement, norm_type="SimpleNorm"), torch.randn(1, 4, 16, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(1000):
            h = model.step(h)
    norms = h.norm(dim=-1)
    assert (norms <= 4 + 1e-9).all() if bounded else (norms > 40).all()


def test_dropout_acts_on_embedding_attention_and_mlp():
    model, x, ids = build().train(), torch.randn(1, 6, 16, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.long)
    layer = model.layers[0]
    for part in (lambda: model.embed(ids), lambda: layer.attention(x), lambda: layer.mlp(x)):
        assert not torch.equal(part(), part())


@pytest.mark.parametrize(("placement", "kind"), PAIRS)
def test_no_position_sees_a_later_one(placement, kind):
    model = build(norm_placement=placement, norm_type=kind, prelude_layers=1, coda_layers=1)
    ids = torch.randint(0, 14, (2, 8))
    changed = ids.clone()
    changed[:, 5:] += 1
    a, b = model(ids, 3), model(changed, 3)
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.allclose(a[:, 5:], b[:, 5:])


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("extra", [{}, {"prelude_layers": 1, "coda_layers": 1, "k_layers": 2}])
@pytest.mark.parametrize("n_loops", [0, 1, 5])
def test_cached_generation_equals_uncached(placement, extra, n_loops):
    model = build(norm_placement=placement, **extra).train()
    ids = torch.randint(0, 15, (6, 4))
    generated = model.generate(ids, n_loops, 8)
    assert model.training and torch.equal(generated[:, :4], ids)
    assert torch.equal(generated, model.generate(ids, n_loops, 8, use_cache=False))
    # The tokens of a random model may be dull; its logits, one position at a time through the cache, are not.
    model.eval()
    text = torch.randint(0, 15, (6, 12))
    c = model.config
    cache = Cache.empty(n_loops, c.k_layers, c.prelude_layers, c.coda_layers, 12)
    logits = []
    for part in (text[:, :4], text[:, 4:7], *text[:, 7:].split(1, dim=1)):
        h = model.embed(part, cache)
        for slots in cache.loops:
            h = model.step(h, slots)
        logits.append(model.readout(h, cache.coda))
    torch.testing.assert_close(torch.cat(logits, dim=1), model(text, n_loops), rtol=1e-9, atol=1e-9)
    assert (cache.nbytes() > 0) == (n_loops > 0 or bool(extra))


def test_too_long_a_sequence_is_refused():
    with pytest.raises(ValueError, match="max_len is 12 positions, but the sequence has 13"):
        build()(torch.zeros(1, 13, dtype=torch.long), 1)


def test_the_papers_model_has_its_size():
    """2.38 M parameters with the public code's 512 positions."""
    n = sum(p.numel() for p in LoopedTransformer(ModelConfig(max_len=512)).parameters())
    assert n == pytest.approx(2.38e6, rel=0.005)
