"""The small looped transformer: embed, then one shared block stack Phi applied again and again, then read out.

    h_0     = embed(ids)              token + learned position embedding, dropout, optional unlooped prelude blocks
    h_{t+1} = step(h_t) = Phi(h_t)    k shared blocks; by default the input is not injected again
    logits  = readout(h_T)            optional unlooped coda blocks, final norm, head tied to the token embedding

`forward(ids, n_loops)` only composes the three. Samplers, regularisers, trajectories and depth curves use nothing else, but
for one thing that a model may offer to be looked at: step(h) = loop_norm(before_norm(h)), the state before the norm that ends
each loop and hides its growth.

With input injection the state that the three functions pass on is the pair [h; e], of which a loop moves the first `n_moving`
entries (see `injection`, `state`), and h_0 may be random (see `initial_state`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from looped_lib.models.blocks import Block, Residual, Stream
from looped_lib.models.cache import Cache, Slot
from looped_lib.models.config import ModelConfig
from looped_lib.models.dropout import Dropout
from looped_lib.models.initial_state import STARTS
from looped_lib.models.injection import INJECTIONS
from looped_lib.models.norms import make_norm

Ids = Int[Tensor, "batch seq"]
Logits = Float[Tensor, "batch seq vocab"]


class LoopedTransformer(nn.Module):
    """A decoder-only transformer whose middle is looped (`config` says how wide, which norms, how many layers in Phi)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = nn.Embedding(config.max_len, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.prelude = nn.ModuleList(Block(config) for _ in range(config.prelude_layers))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.k_layers))
        self.coda = nn.ModuleList(Block(config) for _ in range(config.coda_layers))
        final = config.norm_type if config.final_norm == "as_blocks" else config.final_norm
        self.final_norm = make_norm(final, config.d_model, config.rms_eps)
        self.start = STARTS[config.initial_state](config)
        self.injection = INJECTIONS[config.injection](config)
        self.n_moving = config.d_model
        self.attention_layers = (config.prelude_layers, config.k_layers, config.coda_layers)
        self.apply(self._initialise)

    def embed(self, ids: Ids, cache: Cache | None = None) -> Stream:
        """h_0 of token ids. With a cache, `ids` are the positions that follow those already in it."""
        first = 0 if cache is None else cache.positions
        last = first + ids.shape[1]
        if last > self.config.max_len:
            raise ValueError(f"max_len is {self.config.max_len} positions, but the sequence has {last}")
        h = self.dropout(self.token_embedding(ids) + self.position_embedding.weight[first:last])
        if cache is not None:
            cache.positions = last
        e = _run(self.prelude, h, None if cache is None else cache.prelude)
        return self.injection.start(self.start(e, first), e)

    def step(self, h: Stream, slots: list[Slot] | None = None) -> Stream:
        """Phi(h): exactly one loop, per-loop norms included. `slots` are the cached keys and values of this loop."""
        return self.loop_norm(self.before_norm(h, slots))

    def before_norm(self, h: Stream, slots: list[Slot] | None = None) -> Stream:
        """The last sum of Phi(h), before the norm that ends the loop; Phi(h) itself where the placement has no such norm."""
        x = _run(self.layers[:-1], self.injection(h), slots)
        return self.injection.follow(self.layers[-1].before_norm(x, None if slots is None else slots[-1]), h)

    def loop_norm(self, u: Stream) -> Stream:
        """The norm that ends the loop: step(h) = loop_norm(before_norm(h))."""
        return self.injection.follow(self.layers[-1].mlp.outer(self.injection.moving(u)), u)

    def readout(self, h: Stream, slots: list[Slot] | None = None) -> Logits:
        """Next-token logits at every position of h."""
        return self.final_norm(_run(self.coda, self.injection.moving(h), slots)) @ self.token_embedding.weight.T

    def forward(self, ids: Ids, n_loops: int) -> Logits:
        """Logits after `n_loops` loops; 0 reads out the embedding itself."""
        h = self.embed(ids)
        for _ in range(n_loops):
            h = self.step(h)
        return self.readout(h)

    @torch.no_grad()
    def _initialise(self, module: nn.Module) -> None:
        """Weights N(0, init_std), biases 0, norms at identity; DeepNorm's output projections Xavier-normal, gain sqrt(alpha / 2).

        The published DeepNorm (Wang et al. 2022) divides the gain by the depth; the study this project reproduces did not.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Residual) and self.config.norm_type == "DeepNorm":  # `apply` has visited its children before
            nn.init.xavier_normal_(module.sublayer.out.weight, gain=math.sqrt(self.config.deepnorm_alpha / 2))

    @torch.no_grad()
    def generate(self, ids: Ids, n_loops: int, new_tokens: int, use_cache: bool = True) -> Int[Tensor, "batch seq_out"]:
        """Greedy continuation: `new_tokens` argmax tokens after each row of `ids`, all rows of one length.

        With the cache every position is computed once at each loop: a state depends only on its own prefix, so the states of
        earlier positions never change. Without it the whole prefix is recomputed for each token (the reference).
        Generation does not stop at EOS; the grader cuts there. Dropout is off whatever the module's mode.
        """
        with evaluating(self):
            return self._decode(ids, n_loops, new_tokens, use_cache)

    def _decode(self, ids: Ids, n_loops: int, new_tokens: int, use_cache: bool) -> Tensor:
        if not use_cache:
            for _ in range(new_tokens):
                ids = torch.cat([ids, self(ids, n_loops)[:, -1:].argmax(-1)], dim=1)
            return ids
        c = self.config
        seq_max = ids.shape[1] + new_tokens
        cache = Cache.empty(n_loops, c.k_layers, c.prelude_layers, c.coda_layers, seq_max)
        out, new = [ids], ids
        for _ in range(new_tokens):
            h = self.embed(new, cache)
            for slots in cache.loops:
                h = self.step(h, slots)
            new = self.readout(h, cache.coda)[:, -1:].argmax(-1)
            out.append(new)
        return torch.cat(out, dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the module's mode as it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _run(layers: nn.ModuleList, h: Stream, slots: list[Slot] | None) -> Stream:
    for i, layer in enumerate(layers):
        h = layer(h, None if slots is None else slots[i])
    return h
