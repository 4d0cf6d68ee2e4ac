"""How much memory the keys and values of a looped decoder take, known before an engine or a cache is made.

Loop t of layer i keeps its own keys and values, so a token costs

    2 * T * N * kv heads * head_dim * element size

bytes: 768 KiB for Ouro-1.4B at its 4 loops in bfloat16, 1.5 MiB at 8.
"""

from looped_lib.ouro.model.configuration import OuroConfig


def kv_bytes_per_token(config: OuroConfig, bytes_per_element: int = 2, tensor_parallel: int = 1) -> int:
    """Bytes that one token's keys and values take on a device after `config.total_ut_steps` loops."""
    slots = config.total_ut_steps * config.num_hidden_layers
    heads = max(1, config.num_key_value_heads // tensor_parallel)  # a head is never split, but repeated if there are too few
    return 2 * slots * heads * config.head_dim * bytes_per_element


def check_cache_memory(
    config: OuroConfig,
    max_model_len: int,
    bytes_available: int,
    bytes_per_element: int = 2,
    tensor_parallel: int = 1,
) -> None:
    """ValueError if the cache of a single sequence of `max_model_len` tokens is larger than `bytes_available`.

    How many sequences an engine may run at once (max_num_seqs) does not enter: those without room wait.
    """
    per_token = kv_bytes_per_token(config, bytes_per_element, tensor_parallel)
    if per_token * max_model_len > bytes_available:
        raise ValueError(
            f"at total_ut_steps={config.total_ut_steps} a token takes {per_token / 2**10:,.0f} KiB of cache, so one sequence of "
            f"max_model_len={max_model_len} takes {per_token * max_model_len / 2**30:.2f} GiB, but at most "
            f"{bytes_available / 2**30:.2f} GiB are there: lower max_model_len (to {bytes_available // per_token} at most; -1 "
            "takes the longest that fits) or total_ut_steps, or give the cache more memory"
        )
