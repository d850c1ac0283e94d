"""Who may import whom: the table of rooms in docs/architecture.md, checked over the sources."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent / "src"
PACKAGE = SOURCES / "driftsched"

MAY_IMPORT = {
    "core": {"core"},
    "policies": {"core", "policies"},
    "estimators": {"core", "estimators"},
    "evaluation": {"core", "estimators", "evaluation"},
    "queues": {"core", "queues"},
    "engines": {"core", "engines"},
    "telemetry": {"core", "telemetry"},
    "sim": {"core", "engines", "sim"},
    "gateway": {"core", "engines", "gateway"},
    "bench": {"core", "sim", "bench"},
    "local": {"core", "local"},
    "config": {"core", "keys", "yamls"},
    "keys": {"core", "yamls"},
    "yamls": {"core"},
}
"""Rooms, and modules that count as one, by what of the package they may import."""

COMPOSITION = {
    "",
    "__main__",
    "serving",
    "operating",
    "pooling",
    "observing",
    "simulation",
    "simulating",
    "benching",
    "evaluating",
    "reloading",
    "replaying",
    "selftuning",
    "shadowing",
    "training",
    "demo",
    "cli",
    "cli_sim",
    "cli_bench",
    "cli_evaluate",
    "cli_keys",
    "cli_replay",
    "cli_train",
}
"""Only these know all."""

NO_THIRD_PARTY = {"core", "policies"}
FORBIDDEN_IN_CORE = {
    "asyncio",
    "os",
    "random",
    "secrets",
    "select",
    "signal",
    "socket",
    "threading",
    "time",
    "uuid",
}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(SOURCES).with_suffix("").parts)
    return name.removesuffix(".__init__")


def room_of(module: str) -> str:
    """`core` for `driftsched.core.model`; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def imports_of(path: Path) -> Iterator[str]:
    """Full names of the modules imported anywhere in a file, function bodies included."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute, so that they can be read and checked"
            assert node.module is not None
            # `from driftsched import engines` imports a room by its package
            yield from (
                (f"{node.module}.{a.name}" for a in node.names) if node.module == "driftsched" else [node.module]
            )


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_belongs_to_a_known_room() -> None:
    assert {room_of(module) for module in MODULES} == {*MAY_IMPORT, *COMPOSITION}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    found = {
        (module, imported)
        for module, path in MODULES.items()
        if room_of(module) == room
        for imported in imports_of(path)
        if imported.partition(".")[0] == "driftsched" and room_of(imported) not in MAY_IMPORT[room]
    }
    assert set() == found


@pytest.mark.parametrize("room", sorted(NO_THIRD_PARTY))
def test_a_pure_room_needs_nothing_but_the_standard_library(room: str) -> None:
    found = {
        (module, imported)
        for module, path in MODULES.items()
        if room_of(module) == room
        for imported in imports_of(path)
        if imported.partition(".")[0] not in {"driftsched", *sys.stdlib_module_names}
    }
    assert set() == found


def test_the_core_reads_no_clock_no_socket_and_no_dice() -> None:
    found = {
        (module, imported)
        for module, path in MODULES.items()
        if room_of(module) == "core"
        for imported in imports_of(path)
        if imported.partition(".")[0] in FORBIDDEN_IN_CORE
    }
    assert set() == found


def test_policies_and_estimators_read_no_clock() -> None:
    found = {
        (module, imported)
        for module, path in MODULES.items()
        if room_of(module) in {"policies", "estimators"}
        for imported in imports_of(path)
        if imported.partition(".")[0] in {"asyncio", "time", "datetime"}
    }
    assert set() == found
