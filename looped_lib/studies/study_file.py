"""A study's YAML file as plain values, with the line of each, so that errors can name it."""

from pathlib import Path
from typing import Any

import yaml

LARGEST = 100_000  # bytes of a file
DEEPEST = 8  # lists and mappings within each other


class StudyError(ValueError):
    """An invalid study; the message names its file, line and field."""


def read_study(path: Path) -> tuple[Any, dict[str, int]]:
    """What the file says, and the line of each field, by names such as `grid[0].norm_type`.

    StudyError on what is not YAML, on a field given twice, and on what could make more of a small file than it shows: anchors,
    tags, deep nesting.
    """
    blob = path.read_bytes()
    if len(blob) > LARGEST:
        raise StudyError(f"{path}: has {len(blob)} bytes, more than a study's {LARGEST}")
    lines: dict[str, int] = {}
    text = ""
    try:
        text = blob.decode("utf-8")
        loader = _Loader(text)
        return _values(loader, loader.get_single_node(), "", lines), lines
    except UnicodeDecodeError as e:
        raise StudyError(f"{path}, line {blob[: e.start].count(10) + 1}: must be UTF-8, byte {blob[e.start]:#x} is not") from None
    except yaml.MarkedYAMLError as e:
        raise StudyError(f"{path}, line {e.problem_mark.line + 1 if e.problem_mark else 1}: {e.problem}") from None
    except yaml.reader.ReaderError as e:
        line = text[: e.position].count("\n") + 1
        raise StudyError(f"{path}, line {line}: character {e.character:#x} is not allowed") from None


class _Loader(yaml.SafeLoader):
    """Composes nodes without anchors and not too deep."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node."""
        event = self.peek_event()
        if getattr(event, "anchor", None):
            raise _wrong(event, "anchors and aliases (& and *) are not allowed: write the value out")
        self.depth += 1
        if self.depth > DEEPEST:
            raise _wrong(event, f"nested more than {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _values(loader: _Loader, node: yaml.Node | None, where: str, lines: dict[str, int]) -> Any:
    """The value of a node; `lines` gets the line of every field in it."""
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        found = {}
        for key, value in node.value:
            here = f"{where}.{key.value}" if where else str(key.value)
            if here in lines:
                raise _wrong(node, f"{here}: is there again in line {key.start_mark.line + 1}: give it once", lines[here] - 1)
            lines[here] = key.start_mark.line + 1
            found[str(key.value)] = _values(loader, value, here, lines)
        return found
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        for i, value in enumerate(node.value):
            lines[f"{where}[{i}]"] = value.start_mark.line + 1
        return [_values(loader, value, f"{where}[{i}]", lines) for i, value in enumerate(node.value)]
    if node is not None and not isinstance(node, yaml.ScalarNode):
        raise _wrong(node, f"tags such as {node.tag} are not allowed")
    try:
        value = None if node is None else loader.construct_object(node)
        str(value).encode()
        return value
    except UnicodeEncodeError:
        raise _wrong(node, f"{where}: has characters that UTF-8 cannot write") from None
    except ValueError as e:  # a date that does not exist, a number of thousands of digits
        raise _wrong(node, f"{where}: {e}") from None


def _wrong(at: Any, what: str, line: int | None = None) -> yaml.MarkedYAMLError:
    mark = at.start_mark
    if line is not None:
        mark = yaml.Mark(mark.name, 0, line, 0, None, None)
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)
