"""What the processes of this project tell nobody: by environment variables that libraries read as they are imported."""

import os

QUIET = {
    "DO_NOT_TRACK": "1",  # vLLM's usage statistics, the hub's telemetry
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets would count a load, even of a local file
}

LOCAL = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""For processes that are on one machine: what they open to talk to each other, no other machine can reach."""


def be_quiet() -> None:
    """Set QUIET for this process and those it starts, but for what its user has set. Call before other imports."""
    os.environ.update(quiet_environment())


def quiet_environment(**changes: str) -> dict[str, str]:
    """The environment for a child process: QUIET, over it the user's own variables, over these `changes`."""
    return {**QUIET, **os.environ, **changes}
