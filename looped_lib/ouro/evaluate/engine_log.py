"""Why an engine failed, out of what its processes told its log."""

import re
from pathlib import Path

_PREFIX = re.compile(r"^\([\w ]+ ?pid=\d+\) ?")  # before each line of a process of vLLM
_LOGGED = re.compile(r"^[A-Z]+ \d\d-\d\d [\d:.]+ \[[^\]]*\] ?")
_ERROR = re.compile(r"^(?:\w+\.)*(?:\w*(?:Error|Exception|Exit|Interrupt|Failed|Failure)\w*|\w+): \S")
_TRACEBACK = "Traceback (most recent call last):"


def root_cause(log: Path, start: int = 0) -> str | None:
    """The first error of a log, from byte `start` on: the last line of its first traceback. None if there is none."""
    if not log.exists():
        return None
    with open(log, "rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    plain = [_LOGGED.sub("", _PREFIX.sub("", line)) for line in lines]
    opened = next((i for i, line in enumerate(plain) if _TRACEBACK in line), None)
    if opened is None:
        return None
    end = next((i for i in range(opened + 1, len(plain)) if _ERROR.match(plain[i])), None)
    if end is None:
        return None
    said = plain[end]
    if said.endswith("Config") or "validation error for" in said:  # pydantic leaves what is wrong to the second line
        said = ": ".join([said, *(line.strip() for line in plain[end + 2 : end + 3])])
    return said.split(" [type=")[0]
