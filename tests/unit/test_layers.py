"""The map of docs/design: who may import whom, and that importing does nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "buttervolume"
FLOORS = ("system", "store", "hosts", "follow", "jobs", "report", "services")
"""From the lowest to the highest: each may import those below it, and itself."""
EDGES = ("api", "cli", "web")
"""May import every floor, but not each other."""
GROUND = {
    "ages": set[str](),
    "words": set[str](),
    "human": set[str](),
    "errors": {"words"},
    "names": {"errors"},
    "config": {"ages", "errors", "names"},
}
"""What lies below all floors, each with what it may import of the others."""
COMMAND_LINE_LAZILY = {"daemon"}
"""What a command may import, within a function, beside what the edge itself may."""


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = sorted(
    filter(None, (_name(path) for path in PACKAGE.rglob("*.py") if path.stem != "__main__"))
)


def floor_of(module: str) -> str:
    return module.partition(".")[0]


def allowed(module: str) -> set[str]:
    """The floors that a module may import from."""
    own = floor_of(module)
    if own in GROUND:
        return GROUND[own]
    if own in FLOORS:
        return {*GROUND, *FLOORS[: FLOORS.index(own) + 1]}
    if own in EDGES:
        return {*GROUND, *FLOORS, own}
    assert own == "daemon", f"{module} has no floor: name it here and in the manual's map"
    return {*GROUND, *FLOORS, *EDGES}


OPTIONAL = {"apprise"}
"""What is imported only if it is there."""
HTTP = {"requests", "requests_unixsocket", "flask", "waitress", "werkzeug", "urllib3"}


@cache
def tree_of(module: str) -> ast.Module:
    path = PACKAGE / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(source.read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[str]:
    """The modules of ours that are imported in a piece of code."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            names = [alias.name for alias in inner.names]
        elif isinstance(inner, ast.ImportFrom) and inner.level:
            names = [f"buttervolume.{inner.module or ''}"]
        elif isinstance(inner, ast.ImportFrom) and (inner.module or "").count(".") < 2:
            names = [f"{inner.module}.{alias.name}" for alias in inner.names]
        elif isinstance(inner, ast.ImportFrom):
            names = [inner.module or ""]
        else:
            continue
        for name in names:
            if name.startswith("buttervolume."):
                yield _module(name.removeprefix("buttervolume."))


def _module(name: str) -> str:
    """The module that a dotted name is, or is in."""
    return name if name in MODULES else name.rpartition(".")[0]


def third_party(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name.split(".")[0] for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom) and not inner.level:
            yield (inner.module or "").split(".")[0]


def functions_of(module: str) -> list[ast.stmt]:
    """The functions at the top of a module."""
    return [node for node in tree_of(module).body if isinstance(node, ast.FunctionDef)]


def for_the_type_checker(module: str) -> list[ast.stmt]:
    """What is not read when the program runs."""
    return [
        node
        for node in tree_of(module).body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    ]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_lower_floors_only(module: str) -> None:
    lazily = COMMAND_LINE_LAZILY if floor_of(module) == "cli" else set()

    imported = {floor_of(name) for name in imports(tree_of(module))}

    assert imported <= allowed(module) | lazily


def test_no_floor_holds_a_circle() -> None:
    known = {module: set(imports(tree_of(module))) - {module} for module in MODULES}
    while known:
        free = {module for module, needs in known.items() if not needs & known.keys()}
        assert free, f"these import each other: {sorted(known)}"
        known = {module: needs for module, needs in known.items() if module not in free}


def test_the_command_line_imports_what_a_command_needs_only_when_it_is_asked_for() -> None:
    at_the_top = list(imports(tree_of("cli.main")))
    for part in (*functions_of("cli.main"), *for_the_type_checker("cli.main")):
        for name in imports(part):
            at_the_top.remove(name)

    assert set(at_the_top) <= {"config", "errors", "cli.parser", "cli.usage", "cli.terminal"}


def test_subprocess_has_one_user() -> None:
    users = [m for m in MODULES if "subprocess" in set(third_party(tree_of(m)))]

    assert users == ["system.command"]


def test_nobody_uses_a_shell() -> None:
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            assert not (isinstance(node, ast.keyword) and node.arg == "shell"), module
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in (("os", "system"), ("os", "popen")), module


def test_domain_modules_know_nothing_of_http() -> None:
    for module in {m for m in MODULES if floor_of(m) not in (*EDGES, "daemon")}:
        assert not HTTP & set(third_party(tree_of(module))), module


SPY = """
import contextlib, importlib, logging, sys, threading
{preload}
loggers = logging.root.manager.loggerDict
before = logging.root.handlers[:], logging.root.level
deeds = []
def spy(event, arguments):
    if event == "open":
        path = str(arguments[0])
        if not path.endswith((".py", ".pyc", ".so")):
            deeds.append((event, path))
    elif event.startswith({events!r}):
        deeds.append((event, repr(arguments)))
sys.addaudithook(spy)
for module in {modules!r}:
    if module.startswith("buttervolume."):
        importlib.import_module(module)
    else:
        exec(module)
    assert not deeds, (module, deeds)
    assert not any(name.startswith("buttervolume") for name in loggers), (module, [*loggers])
    assert (logging.root.handlers, logging.root.level) == before, module
    assert threading.active_count() == 1, module
"""


EVENTS = (
    *("subprocess.", "socket.", "fcntl.", "signal.", "shutil.", "tempfile."),
    *("os.exec", "os.fork", "os.posix_spawn", "os.system", "os.mkdir", "os.rename", "os.remove"),
)


def preloads() -> list[str]:
    """What imports all that is not ours, so that the spy does not see that."""
    used = {name for m in MODULES for name in third_party(tree_of(m))} - {"buttervolume"}
    preload = [f"import {name}" for name in sorted(used - OPTIONAL)]
    preload += [f"with contextlib.suppress(ImportError): import {name}" for name in OPTIONAL]
    return [*preload, "import waitress.server, waitress.channel, ctypes"]


def spy_on(*modules: str, preload: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Import these, or run them as code, with a spy behind."""
    program = SPY.format(preload="\n".join(preload), events=EVENTS, modules=modules)
    return subprocess.run(
        [sys.executable, "-B", "-c", program],
        capture_output=True,
        text=True,
        env={"BUTTERVOLUME_TIMER": "nonsense", "PATH": ""},
        check=False,
    )


def test_importing_reads_no_file_runs_no_command_and_touches_no_logger() -> None:
    done = spy_on(*(f"buttervolume.{module}" for module in MODULES), preload=preloads())

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "deed",
    [
        "open('/etc/passwd').close()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "logging.getLogger('buttervolume.x')",
        "logging.basicConfig()",
    ],
)
def test_the_spy_sees_what_it_is_to_see(deed: str) -> None:
    done = spy_on(deed)

    assert (done.returncode, "AssertionError" in done.stderr) == (1, True), done.stderr
