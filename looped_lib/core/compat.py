"""Private names of other packages, used where there is no public one, each with its reason. A test holds that each still exists.

What a class overrides of theirs is listed in OVERRIDDEN.
"""

from typing import Any

OVERRIDDEN = {
    "transformers.Trainer": ("_save_checkpoint", "_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_rng_state"),
    "transformers.GenerationMixin": ("_prepare_cache_for_generation",),
    "lm_eval.models.huggingface.HFLM": ("_loglikelihood_tokens",),
}
"""By class the methods that a subclass here overrides: checkpoints that are resumed exactly, a cache of T loops, many depths at
once."""


def process_store() -> Any:
    """The store at which the processes of a job met: a process that fails can leave word there, without the others' help."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def dispatch_mode() -> type:
    """The base class of what sees every operator. torch's own counter of FLOPs refuses gradients of a leaf."""
    from torch.utils._python_dispatch import TorchDispatchMode

    return TorchDispatchMode


def operator(overload: Any) -> Any:
    """The operator that an overload is of: FLOPs are registered by it."""
    return overload._overloadpacket


def fill_width(figure: Any) -> None:
    """Make a FigureWidget as wide as the notebook, also when that changes."""
    figure._config = figure._config | {"responsive": True}


def task_loader() -> Any:
    """lm-eval's reader of task files: includes and functions are resolved as it does."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml


def fingerprint(rows: Any) -> str:
    """What identifies the contents of a `datasets` table."""
    return rows._fingerprint


def keep_shards(model: Any) -> None:
    """A model that is sharded already: the Trainer leaves it as it is."""
    model._is_distributed_loading_by_transformers = True
