"""Imports point one way (docs/ARCHITECTURE.md), and `import ponder` is quick."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ponder

SOURCE = Path(ponder.__file__).parent
ROWS = [
    {
        "types",
        "show",
        "figures",
        "numbers",
        "errors",
        "protocols",
        "config",
        "flags",
        "registry",
        "sync",
        "jsonl",
        "messages",
        "responses",
        "outside",
        "openmp",
        "signals",
        "threads",
        "reading",
    },
    {"runs"},
    {"budget", "sandbox", "models"},
    {"verifiers", "engines"},
    {"scorers"},
    {"environments"},
    {"search"},
    {"evaluation"},
    {"training"},
    {"scaling", "interpret", "serving", "viewing"},
    {"cli", "api"},
]
"""`runs` needs only the first row, and every room above may use it."""
ROW = {room: i for i, row in enumerate(ROWS) for room in row}
TOP = {"__init__", "__main__"}
"""May import anything, since nothing imports them."""
FILES = sorted(SOURCE.rglob("*.py"))


def module(path, source=SOURCE):
    parts = path.relative_to(source.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name):
    """The room of a module: `ponder.budget.meter` is in `budget`."""
    return name.split(".")[1] if "." in name else "__init__"


MODULES = {module(p): p for p in FILES}


def imports(path, source=SOURCE):
    """The modules of ponder that a file imports, with line numbers: functions and `TYPE_CHECKING` blocks too."""
    own = module(path, source)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(a.name, node.lineno) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.append((inner if inner in MODULES else base, node.lineno))
    return [(name, line) for name, line in found if name == "ponder" or name.startswith("ponder.")]


def test_every_room_has_its_place():
    rooms = {p.relative_to(SOURCE).parts[0].removesuffix(".py") for p in FILES}
    assert rooms - TOP <= set(ROW), "give a new room its row here and in docs/ARCHITECTURE.md"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != SOURCE or p.stem not in TOP], ids=module)
def test_imports_point_one_way(path):
    own = room(module(path))
    wrong = [
        f"{path.relative_to(SOURCE.parent)}:{line}: {own} may not import {name}"
        for name, line in imports(path)
        if name == "ponder" or (room(name) != own and (ROW[room(name)] >= ROW[own] > 0 or ROW[room(name)] > ROW[own]))
    ]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_import_would_be_seen(tmp_path):
    # The rule holds only as far as the parser sees imports.
    file = tmp_path / "ponder" / "search" / "imagined.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from ponder.evaluation import curves\n"
        "def f():\n    import ponder.training.rl\n"
        "from ..cli import main\n"
        "from . import meter\n"
    )
    seen = imports(file, tmp_path / "ponder")
    assert {room(name) for name, _ in seen} == {"evaluation", "training", "cli", "search"}


def circles(graph):
    """The strongly connected components of more than one module (Tarjan 1972)."""
    number, lowest, stack, found = {}, {}, [], set()

    def visit(name):
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            circle = {stack.pop()}
            while name not in circle:
                circle.add(stack.pop())
            if len(circle) > 1:
                found.add(frozenset(circle))

    for name in sorted(graph):
        if name not in number:
            visit(name)
    return found


def test_no_circles_among_modules():
    """Of all imports: those for types and within functions are dependencies too."""
    graph = {name: {n for n, _ in imports(path) if n in MODULES and n != name} for name, path in MODULES.items()}
    assert "ponder.types" in graph["ponder.protocols"]
    assert not circles(graph), "\n".join(" ↔ ".join(sorted(c)) for c in circles(graph))


def test_a_circle_would_be_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == {frozenset("abc"), frozenset("de")}


HEAVY = ("torch", "transformers", "matplotlib", "math_verify", "sympy", "reasoning_gym", "huggingface_hub")


@pytest.mark.parametrize(
    "name",
    [
        "ponder",
        "ponder.engines.torch",
        "ponder.engines.opening",
        "ponder.search",
        "ponder.evaluation.testtime",
        "ponder.registry",
    ],
)
def test_heavy_libraries_are_imported_only_where_they_are_used(name):
    code = f"import sys, {name}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not loaded


def test_importing_ponder_imports_nothing_that_is_not_needed_yet():
    code = "import sys; before = set(sys.modules); import ponder; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ponder" in loaded
    assert not {name for name in loaded if name.partition(".")[0] not in {"ponder", *sys.stdlib_module_names}}
    assert len([name for name in loaded if name.startswith("ponder")]) <= 5


def test_importing_ponder_is_quick():
    code = "import time; began = time.process_time(); import ponder; print(time.process_time() - began)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    # Of the processor, so that a busy machine does not count; 2 ms is usual.
    assert min(float(run.stdout) for run in runs) < 0.2
