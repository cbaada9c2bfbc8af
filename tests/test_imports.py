"""Who may import whom, and what --help must not import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = ("cache", "pipeline", "train", "infer")
ALLOWED = {
    "cache": {"cache"},
    "pipeline": {"cache", "pipeline"},
    "train": {"cache", "train"},
    "infer": {"cache", "pipeline", "train", "infer"},
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
COMMANDS = [path for path in FILES if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
HEAVY = ("torch", "librosa", "h5py", "timm", "sklearn", "scipy", "soundfile", "numba", "joblib", "matplotlib")


def imported(path: Path) -> set[str]:
    """Top-level names of all that a file imports, at its top or inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_import_rule(path):
    """cache < pipeline and cache < train; train never imports pipeline; cache needs numpy and h5py only."""
    names, package = imported(path), path.relative_to(ROOT).parts[0]
    assert names & {*PACKAGES, "tests"} <= ALLOWED[package]
    if package == "cache":
        assert names <= {"numpy", "h5py", "cache", *sys.stdlib_module_names}


def modules(path: Path) -> set[str]:
    """Full names of all that a file imports: modules, or what it takes from them."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    taken = {
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    return plain | taken


@pytest.mark.parametrize("folder", [path.parent for path in COMMANDS if path.name == "__main__.py"], ids=str)
def test_commands_stand_apart(folder):
    """What commands share lies above them: nothing outside of a command's own folder imports from it."""
    command = ".".join(folder.relative_to(ROOT).parts)
    others = [path for path in FILES if folder not in path.parents]
    assert not [path for path in others if any(f"{name}.".startswith(f"{command}.") for name in modules(path))]


def test_the_rule_covers_every_package():
    """setup.cfg lists exactly the packages that the rule is about."""
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    listed = text.partition("packages =\n")[2].partition("\npython_requires")[0].split()
    assert set(listed) == {".".join(path.relative_to(ROOT).parent.parts) for path in FILES}
    assert COMMANDS


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_imports_nothing_heavy(path):
    """--help of every command answers without loading what takes half a second to load."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "runpy" in loaded
    assert not loaded & set(HEAVY)
