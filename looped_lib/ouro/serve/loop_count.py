"""Another loop count for an engine of vLLM that runs: its workers get this method (`worker_extension_cls`)."""


class LoopCount:
    """What a worker can do beside vLLM's own."""

    def set_loops(self, n: int) -> None:
        """Loop n times from now on, at most as often as the engine was built for; only if nothing is compiled (enforce_eager).

        What the prefix cache holds is of another loop count: it has to be emptied.
        """
        model = self.model_runner.model.model
        if not 1 <= n <= len(model.layers[0].self_attn.loops):
            raise ValueError(f"this engine loops 1 to {len(model.layers[0].self_attn.loops)} times, not {n}")
        model.n_loops = n
