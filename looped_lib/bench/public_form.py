"""The baseline: the naive form of the same mathematics, as public training scripts for small looped transformers have it.

One `Linear` makes q, k and v; attention is written out (scores, a triangular mask built at each call, softmax, dropout); logits
are computed at all positions, the last character's included; each training step waits for its loss; generation takes one
problem at a time and recomputes the whole text for every new character, and for every depth. Only the placement of the public
STARS runs, sandwich_dual with LayerNorm, is here. Written for comparison only; nothing else in the library imports it.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from looped_lib.models.looped import LoopedTransformer
from looped_lib.tasks.problems import IGNORE, Problems


class PublicAttention(nn.Module):
    """softmax(mask(Q K^T / sqrt(d_head))) V, every intermediate in full."""

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, d_model = x.shape
        heads = (batch, seq, self.n_heads, d_model // self.n_heads)
        q, k, v = (part.reshape(heads).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(heads[-1])
        mask = torch.tril(torch.ones(seq, seq, device=x.device))
        weights = self.dropout(F.softmax(scores.masked_fill(mask == 0, float("-inf")), dim=-1))
        return self.out((weights @ v).transpose(1, 2).contiguous().view(batch, seq, d_model))


class PublicBlock(nn.Module):
    """x <- N2(x + Attention(N1 x)), x <- N4(x + MLP(N3 x))."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(4))
        self.attention = PublicAttention(d_model, n_heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(d_model, d_ff), nn.GELU(), nn.Linear(d_ff, d_model), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[1](x + self.attention(self.norms[0](x)))
        return self.norms[3](x + self.mlp(self.norms[2](x)))


class PublicModel(nn.Module):
    """The whole model, with the weights of a `LoopedTransformer` (sandwich_dual, LayerNorm, one layer, no prelude or coda)."""

    def __init__(self, model: LoopedTransformer):
        super().__init__()
        c = model.config
        if (c.norm_placement, c.norm_type, c.k_layers, c.prelude_layers, c.coda_layers) != (
            *("sandwich_dual", "LayerNorm"),
            *(1, 0, 0),
        ):
            raise ValueError("the baseline has one sandwich_dual block with LayerNorm, and no prelude or coda")
        self.tokens = nn.Embedding(c.vocab_size, c.d_model)
        self.positions = nn.Embedding(c.max_len, c.d_model)
        self.dropout = nn.Dropout(c.dropout)
        self.block = PublicBlock(c.d_model, c.n_heads, c.d_ff, c.dropout)
        self.norm = nn.LayerNorm(c.d_model)
        self.head = nn.Linear(c.d_model, c.vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        ours = model.layers[0]
        pairs = [(self.tokens, model.token_embedding), (self.positions, model.position_embedding)]
        pairs += [(self.block.norms[0], ours.attention.norm_in), (self.block.norms[1], ours.attention.norm_out)]
        pairs += [(self.block.norms[2], ours.mlp.norm_in), (self.block.norms[3], ours.mlp.norm_out)]
        pairs += [(self.block.attention.qkv, ours.attention.sublayer.qkv)]
        pairs += [(self.block.attention.out, ours.attention.sublayer.out)]
        pairs += [(self.block.mlp[0], ours.mlp.sublayer.up), (self.block.mlp[2], ours.mlp.sublayer.out)]
        pairs += [(self.norm, model.final_norm)]
        for mine, theirs in pairs:
            mine.load_state_dict(theirs.state_dict())

    def forward(self, ids: Int[Tensor, "batch seq"], n_loops: int) -> tuple[Tensor, Tensor]:
        """(logits, h_T)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        h = self.dropout(self.tokens(ids) + self.positions(positions))
        for _ in range(n_loops):
            h = self.block(h)
        return self.head(self.norm(h)), h

    @torch.no_grad()
    def solves(self, text: list[int], prompt_len: int, n_loops: int) -> bool:
        """Greedy generation of one answer, EOS included, at one depth; whether it is right."""
        ids = torch.tensor([text[:prompt_len]])
        for _ in text[prompt_len:]:
            logits, _ = self(ids, n_loops)
            ids = torch.cat([ids, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        return ids[0].tolist() == text


def solved_by_depth(model: PublicModel, problems: Problems, depths: range) -> Bool[Tensor, "problem depth"]:
    """Which problems are solved at which of `depths`: depth by depth, problem by problem."""
    model.eval()
    texts = [[i for i in row if i != problems.pad] for row in problems.ids.tolist()]
    pairs = list(zip(texts, problems.prompt_len.tolist(), strict=True))
    return torch.tensor([[model.solves(text, n, depth) for text, n in pairs] for depth in depths]).T


def train_step(
    model: PublicModel,
    optimizer: torch.optim.Optimizer,
    problems: Problems,
    n_loops: int,
    penalty_weight: float = 0.0,
) -> float:
    """One optimiser step on (1 - w) CE + w ||v^T J||^2, v one random direction of the whole batch. Returns the loss."""
    optimizer.zero_grad()
    logits, h = model(problems.ids, n_loops)
    labels = torch.cat([problems.labels, torch.full_like(problems.ids[:, :1], IGNORE)], dim=1)
    loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=IGNORE)
    if penalty_weight > 0:
        loss = (1 - penalty_weight) * loss + penalty_weight * jacobian_penalty(model, h)
    loss.backward()
    optimizer.step()
    return loss.item()


def jacobian_penalty(model: PublicModel, h: Tensor) -> Tensor:
    """||v^T J||^2 at the detached state, v normalised over the whole batch tensor."""
    h = h.detach().requires_grad_(True)
    v = torch.randn_like(h)
    v = v / v.norm()
    (vjp,) = torch.autograd.grad(model.block(h), h, v, create_graph=True)
    return vjp.pow(2).sum()
