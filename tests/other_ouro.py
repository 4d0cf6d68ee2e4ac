"""Ouro from its equations, over a state dict: no transformers, nothing of the library, no cache, nothing fused.

Attention is a softmax over scores with a mask that says which key each query may see; positions, padding and packing come in
through `Text`. RMSNorm and softmax reduce in at least float32; rotary tables are float32, as in the official code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """What the weights do not say about themselves. `rope_factor` divides the positions (linear scaling)."""

    layers: int
    heads: int
    kv_heads: int
    rope_theta: float = 1e6
    rope_factor: float = 1.0
    eps: float = 1e-6


@dataclass(frozen=True)
class Text:
    """Positions of each token, and which keys [batch, query, key] it may see."""

    positions: Tensor
    allowed: Tensor


def text_of(ids: Tensor, real: Tensor | None = None, number: Tensor | None = None) -> Text:
    """A token sees itself and the earlier real tokens of its own text; its position is how many of those there are.

    `real` marks what is not padding, `number` says which of several packed texts a token belongs to.
    """
    real = torch.ones_like(ids, dtype=torch.bool) if real is None else real.bool()
    number = torch.zeros_like(ids) if number is None else number
    earlier = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril(-1)
    before = earlier & real[:, None, :] & (number[:, :, None] == number[:, None, :])
    return Text(before.sum(-1), before | torch.eye(ids.shape[1], dtype=torch.bool))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)


def rotated(x: Tensor, positions: Tensor, sizes: Sizes) -> Tensor:
    """RoPE of x [batch, seq, heads, head_dim]: entry i of the first half turns with entry i of the second."""
    half = x.shape[-1] // 2
    frequency = 1 / (sizes.rope_theta ** (torch.arange(half, dtype=torch.float32) * 2 / x.shape[-1])) / sizes.rope_factor
    angle = positions[..., None, None].float() * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Head by head; query head i uses key head i // (heads / kv_heads). All are [batch, seq, heads, head_dim]."""
    group, out = q.shape[2] // k.shape[2], []
    for i in range(q.shape[2]):
        scores = q[:, :, i] @ k[:, :, i // group].transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~allowed, -torch.inf).to(torch.promote_types(q.dtype, torch.float32))
        exp = (scores - scores.amax(-1, keepdim=True)).exp()
        out.append((exp / exp.sum(-1, keepdim=True)).to(q.dtype) @ v[:, :, i // group])
    return torch.stack(out, 2)


def layer(w: Weights, i: int, h: Tensor, text: Text, sizes: Sizes, memory: tuple[Tensor, Tensor] | None = None) -> tuple:
    """(h after layer i, its keys, its values); `memory` holds keys and values that come before these positions."""
    part = {name.removeprefix(f"model.layers.{i}."): x for name, x in w.items() if name.startswith(f"model.layers.{i}.")}

    def norm(x: Tensor, name: str) -> Tensor:
        return rms_norm(x, part[f"{name}.weight"], sizes.eps)

    def times(x: Tensor, name: str) -> Tensor:
        return x @ part[f"{name}_proj.weight"].T

    x = norm(h, "input_layernorm")
    q = rotated(times(x, "self_attn.q").unflatten(-1, (sizes.heads, -1)), text.positions, sizes)
    k = rotated(times(x, "self_attn.k").unflatten(-1, (sizes.kv_heads, -1)), text.positions, sizes)
    v = times(x, "self_attn.v").unflatten(-1, (sizes.kv_heads, -1))
    keys, values = (k, v) if memory is None else (torch.cat([memory[0], k], 1), torch.cat([memory[1], v], 1))
    h = h + norm(times(attend(q, keys, values, text.allowed).flatten(2), "self_attn.o"), "input_layernorm_2")
    x = norm(h, "post_attention_layernorm")
    gate = times(x, "mlp.gate")
    x = times(gate / (1 + (-gate).exp()) * times(x, "mlp.up"), "mlp.down")
    return h + norm(x, "post_attention_layernorm_2"), k, v


def loop(w: Weights, h: Tensor, text: Text, sizes: Sizes) -> Tensor:
    """Phi: all layers, then the norm."""
    for i in range(sizes.layers):
        h, _, _ = layer(w, i, h, text, sizes)
    return rms_norm(h, w["model.norm.weight"], sizes.eps)


def states(w: Weights, ids: Tensor, n_loops: int, sizes: Sizes, text: Text | None = None) -> list[Tensor]:
    """h_0 .. h_T."""
    text, out = text or text_of(ids), [w["model.embed_tokens.weight"][ids]]
    for _ in range(n_loops):
        out.append(loop(w, out[-1], text, sizes))
    return out


def logits(w: Weights, h: Tensor) -> Tensor:
    return h @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def gate(w: Weights, h: Tensor) -> Tensor:
    """lambda of a state."""
    score = (h @ w["model.early_exit_gate.weight"].T + w["model.early_exit_gate.bias"])[..., 0]
    return 1 / (1 + (-score.float()).exp())


def exit_probabilities(w: Weights, after: list[Tensor]) -> Tensor:
    """p_t of states after loop 1 .. T: lambda_t times the chance not to have left before; the last takes the rest."""
    lambdas = [gate(w, h) for h in after]
    p = [
        lambdas[t] * torch.stack([1 - x for x in lambdas[:t]] + [torch.ones_like(lambdas[0])]).prod(0) for t in range(len(after))
    ]
    return torch.stack([*p[:-1], 1 - sum(p[:-1], torch.zeros_like(p[0]))])


def exit_loops(
    w: Weights,
    path: list[Tensor],
    threshold: float | None = None,
    residual: float | None = None,
    kl: float | None = None,
    entropy: float | None = None,
) -> Tensor:
    """tau of every position of h_0 .. h_T: the first loop after which a criterion says stop; else T."""
    last = len(path) - 1
    tau = torch.full(path[0].shape[:2], last)
    cumulative = exit_probabilities(w, path[1:]).cumsum(0)
    for t in range(last, 0, -1):
        if threshold is not None:
            tau[cumulative[t - 1] >= threshold] = t
        if residual is not None:
            tau[(path[t] - path[t - 1]).norm(dim=-1) / path[t - 1].norm(dim=-1) <= residual] = t
        now, before = (torch.distributions.Categorical(logits=logits(w, path[k])) for k in (t, t - 1))
        if kl is not None and t > 1:
            tau[torch.distributions.kl_divergence(now, before) <= kl] = t
        if entropy is not None:
            tau[now.entropy() <= entropy] = t
    return tau


def at_loop(path: list[Tensor], tau: Tensor) -> Tensor:
    """h_tau of every position."""
    return torch.stack(path).gather(0, tau[None, ..., None].expand(1, *path[0].shape))[0]


def token_losses(w: Weights, h: Tensor, labels: Tensor) -> Tensor:
    """-log p(next label) at every position but the last, 0 where the label is -100."""
    log_p = logits(w, h)[:, :-1].float().log_softmax(-1)
    wanted = labels[:, 1:]
    return -log_p.gather(-1, wanted.clamp_min(0)[..., None])[..., 0] * (wanted != -100)


def mixture_loss(w: Weights, after: list[Tensor], labels: Tensor, beta: float, count: int | None = None) -> Tensor:
    """sum_t p_t L_t - beta H(p), summed over the labels, divided by `count` (their number if not given)."""
    p, real = exit_probabilities(w, after)[..., :-1], labels[:, 1:] != -100
    entropy = -(p * p.log()).sum(0)
    each = (p * torch.stack([token_losses(w, h, labels) for h in after])).sum(0) - beta * entropy
    return each[real].sum() / (real.sum() if count is None else count)


def last_loop_decoding(
    w: Weights, ids: Tensor, ends: list[int], n_loops: int, sizes: Sizes, **how: float
) -> tuple[Tensor, Tensor]:
    """(logits, tau) of one text [1, seq], read in pieces that end at `ends`. Within a piece every loop is computed in full;
    earlier pieces are seen as they were, each token, in the loop it was read out at. `how` is `exit_loops`'."""
    text, read, taus, memory = text_of(ids), [], [], [None] * sizes.layers
    for start, end in zip([0, *ends], ends, strict=False):
        here = Text(text.positions[:, start:end], text.allowed[:, start:end, :end])
        path, kept = [w["model.embed_tokens.weight"][ids[:, start:end]]], []
        for _ in range(n_loops):
            h, slots = path[-1], []
            for i in range(sizes.layers):
                h, k, v = layer(w, i, h, here, sizes, memory[i])
                slots.append((k, v))
            path.append(rms_norm(h, w["model.norm.weight"], sizes.eps))
            kept.append(slots)
        tau = exit_loops(w, path, **how)
        rows = torch.arange(end - start)
        for i in range(sizes.layers):
            new = tuple(torch.stack([loop[i][x][0] for loop in kept])[tau[0] - 1, rows][None] for x in (0, 1))
            memory[i] = new if memory[i] is None else tuple(torch.cat(x, 1) for x in zip(memory[i], new, strict=True))
        read.append(logits(w, at_loop(path, tau)))
        taus.append(tau)
    return torch.cat(read, 1), torch.cat(taus, 1)
