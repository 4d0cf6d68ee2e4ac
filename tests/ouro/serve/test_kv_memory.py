"""The memory of a cache, foreseen: what a LoopCache holds, what Ouro's takes, and a limit that is refused one token beyond."""

import pytest
import torch
from tiny_ouro import random_ids, tiny

from looped_lib.ouro.model.cache import LoopCache
from looped_lib.ouro.model.configuration import OuroConfig
from looped_lib.ouro.serve.kv_memory import check_cache_memory, kv_bytes_per_token


@pytest.mark.parametrize("n_loops", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_a_cache_holds(n_loops, dtype):
    model = tiny(dtype, total_ut_steps=n_loops)
    cache = LoopCache(model.config.num_hidden_layers)
    with torch.no_grad():
        model(input_ids=random_ids(2, 7), past_key_values=cache)
    assert cache.nbytes() == 2 * 7 * kv_bytes_per_token(model.config, dtype.itemsize)


def test_ouros_numbers():
    assert [kv_bytes_per_token(OuroConfig(total_ut_steps=t)) for t in (4, 8, 16)] == [768 * 2**10, 1536 * 2**10, 3 * 2**20]


def test_devices_share_the_heads_and_repeat_the_last_ones():
    config = OuroConfig(num_key_value_heads=4)
    assert [kv_bytes_per_token(config, 2, n) * n / kv_bytes_per_token(config) for n in (1, 2, 4, 8)] == [1, 1, 1, 2]


def test_one_token_too_many_is_refused_with_what_would_fit():
    config, room = OuroConfig(), 1000 * 768 * 2**10 + 1
    check_cache_memory(config, 1000, room)
    with pytest.raises(ValueError, match=r"total_ut_steps=4 a token takes 768 KiB.*max_model_len=1001 .* \(to 1000 at most"):
        check_cache_memory(config, 1001, room)
