"""The house: rooms import only rooms below them, `__init__` files import nothing, and the first level stays small."""

import ast
from pathlib import Path

from looped_lib.core.project import find_root

LIBRARY = find_root() / "looped_lib"
FLOORS = (
    "core samplers tasks models regularizers config dynamics training plots runs studies "
    "ouro.model ouro.finetune ouro.serve ouro.evaluate widgets report bench"
).split()  # from the ground up


def room(module: str) -> str:
    """The room of a module by its dotted name, without the library's own."""
    return max((r for r in FLOORS if f"{module}.".startswith(f"{r}.")), key=len)


def imported(path: Path) -> set[str]:
    """The modules of the library that a file imports, anywhere in it, without the library's own name."""
    modules = {".".join(p.relative_to(LIBRARY).with_suffix("").parts) for p in LIBRARY.rglob("*.py")}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [f"{n}.{a.name}" for n in names for a in node.names]
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        found |= {n.removeprefix("looped_lib.") for n in names if n.startswith("looped_lib.")} & modules
    return found


def test_rooms_import_only_rooms_below_them():
    for path in LIBRARY.rglob("*.py"):
        module = ".".join(path.relative_to(LIBRARY).with_suffix("").parts)
        if path.parent == LIBRARY and path.stem.startswith("__"):
            continue
        above = {m for m in imported(path) if FLOORS.index(room(m)) > FLOORS.index(room(module))}
        assert not above, f"{module} imports {above}, which stand above it"


def test_init_files_import_nothing():
    for path in LIBRARY.rglob("__init__.py"):
        assert not [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)], path


def test_the_first_level_has_at_most_18_entries():
    assert len([p for p in LIBRARY.iterdir() if p.name != "__pycache__"]) <= 18


def test_tests_stand_in_the_same_tree():
    tests = find_root() / "tests"
    rooms = {p.relative_to(LIBRARY) for p in LIBRARY.rglob("*") if p.is_dir() and list(p.glob("*.py"))}
    assert {p.parent.relative_to(tests) for p in tests.rglob("test_*.py")} <= rooms | {Path(".")}


def test_files_have_at_most_300_lines_and_functions_50():
    for path in LIBRARY.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef))
        assert not [n.name for n in functions if n.end_lineno - n.lineno >= 50], path
