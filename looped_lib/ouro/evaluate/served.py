"""lm-eval's engine on vLLM, whose loop count can be set between calls where nothing is compiled."""

from collections.abc import Iterable
from typing import Any

from lm_eval.models.vllm_causallms import VLLM


class Served(VLLM):
    """An engine built for `most` loops, which loops `stop` times."""

    def __init__(self, most: int, **arguments: Any):
        extension = "looped_lib.ouro.serve.loop_count.LoopCount"
        super().__init__(hf_overrides={"total_ut_steps": most}, worker_extension_cls=extension, **arguments)
        self._loops = most

    @property
    def stop(self) -> int:
        """The loop count."""
        return self._loops

    @stop.setter
    def stop(self, loops: int) -> None:
        if loops != self._loops:
            self.model.collective_rpc("set_loops", args=(loops,))
            self.model.reset_prefix_cache()
            self._loops = loops

    def prepare(self, requests: Iterable[Any], stops: Iterable[int]) -> None:
        """Nothing: vLLM fills its own batches when it is asked."""
