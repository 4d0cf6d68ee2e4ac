"""Costs of training: parameters of real models, FLOPs as torch counts them, memory that grows and divides as it must."""

from dataclasses import fields

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from looped_lib.ouro.model import costs
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.model.costs import Memory, training_memory
from looped_lib.ouro.model.modeling import OuroForCausalLM

SMALL = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "1.4B": OuroConfig(),
    "2.6B": OuroConfig(num_hidden_layers=48),
    "small": OuroConfig(**SMALL),
    "grouped": OuroConfig(**SMALL, num_key_value_heads=2),
    "wide heads": OuroConfig(**SMALL, head_dim=24),
    "tied": OuroConfig(**SMALL, tie_word_embeddings=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name):
    with torch.device("meta"):
        model = OuroForCausalLM(CONFIGS[name])
    model.tie_weights()
    assert costs.parameters(CONFIGS[name]) == sum(p.numel() for p in model.parameters())


def test_parameters_are_those_that_are_published():
    assert costs.parameters(CONFIGS["1.4B"]) == 1_434_652_673 and costs.parameters(CONFIGS["2.6B"]) == 2_667_974_657


@pytest.mark.parametrize("n_loops", [1, 3])
@pytest.mark.parametrize("name", ["small", "grouped", "wide heads"])
def test_flops_are_what_is_multiplied_with_half_of_the_attention(name, n_loops):
    """Eager attention multiplies the whole square of positions, of which causal attention needs half."""
    c, rows, seq = CONFIGS[name], 2, 12
    model = OuroForCausalLM._from_config(c, attn_implementation="eager")
    ids = torch.randint(0, c.vocab_size, (rows, seq))
    counter = FlopCounterMode(display=False)
    with counter:
        model(ids, labels=ids, n_loops=n_loops).loss.backward()
    other_half = n_loops * c.num_hidden_layers * 2 * c.num_attention_heads * c.head_dim * seq
    assert counter.get_total_flops() == rows * seq * (costs.training_flops(c, n_loops, seq) + 3 * other_half)


def test_a_mean_depth_gives_the_mean_of_the_flops():
    c = CONFIGS["1.4B"]
    assert costs.training_flops(c, 2.5, 100) == (costs.training_flops(c, 2, 100) + costs.training_flops(c, 3, 100)) / 2
    # The common rule, 6 FLOPs per weight used and token: 24 layers of weights four times, the head once.
    layers = costs.parameters(c) - 2 * c.vocab_size * c.hidden_size
    assert costs.training_flops(c, 4, 1) == pytest.approx(6 * (4 * layers + c.vocab_size * c.hidden_size), rel=1e-3)


def memory(**changes) -> Memory:
    return training_memory(
        CONFIGS["1.4B"], **{"n_loops": 4, "micro_batch": 1, "seq": 512, "bf16": True, "checkpointing": True} | changes
    )


@pytest.mark.parametrize("name", ["n_loops", "micro_batch", "seq"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_memory_grows_with_depth_and_batch(name, checkpointing):
    sizes = [memory(**{"checkpointing": checkpointing, name: n}) for n in (2, 4, 8)]
    totals = [size.total for size in sizes]
    assert totals == sorted(set(totals))
    assert len({(size.weights, size.gradients, size.moments) for size in sizes}) == 1


def test_memory_is_the_sum_of_its_parts_and_shards_divide_what_is_sharded():
    one, eight = memory(), memory(shards=8)
    assert one.saved == 0 and one.total == sum(getattr(one, field.name) for field in fields(Memory))
    on_cpu = memory(on_cpu=True, seq=2)
    assert on_cpu.saved == 12 * costs.parameters(CONFIGS["1.4B"]) > on_cpu.states + on_cpu.logits
    assert on_cpu.total == on_cpu.weights + on_cpu.gradients + on_cpu.moments + on_cpu.saved
    assert memory(buckets=True).gradients == 2 * one.gradients and memory(penalty=True).states > 3 * one.states
    for name in ("weights", "gradients", "moments"):
        assert getattr(eight, name) == getattr(one, name) / 8
    assert (eight.states, eight.logits) == (one.states, one.logits)
    n = costs.parameters(CONFIGS["1.4B"])
    assert (one.weights, one.gradients, one.moments) == (6 * n, 4 * n, 8 * n) and memory(bf16=False).weights == 4 * n


@pytest.mark.parametrize("checkpointing", [True, False])
def test_states_are_about_what_the_backward_pass_keeps(checkpointing):
    """Of a model as wide as its MLP and heads are in the real one, in float32."""
    c = OuroConfig(vocab_size=50, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4)
    model, ids = OuroForCausalLM(c).train(), torch.randint(0, 50, (2, 64))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in parameters:
            kept[x.untyped_storage().data_ptr()] = x  # held, so that no storage is used twice
        return x

    n_loops = 1 if checkpointing else 3  # with checkpointing, what one recomputed loop keeps
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        h = model.embed(ids)
        for _ in range(n_loops):
            h = model.step(h)
    counted = sum(x.untyped_storage().nbytes() for x in kept.values())
    expected = training_memory(c, n_loops, 2, 64, bf16=False, checkpointing=checkpointing).states
    assert counted == pytest.approx(expected, rel=0.2)


def test_peak_is_known_by_name_on_a_gpu_only(monkeypatch):
    assert costs.peak_flops(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Unknown", None)):  # noqa: B007
        assert costs.peak_flops(torch.device("cuda")) == peak


def test_memory_used_by_this_process_is_in_bytes():
    assert 5e7 < costs.memory_used(torch.device("cpu")) < 1e12
