"""What the pages say is so: commands parse, links lead somewhere, and the tree of files is the real one."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import cache.cli
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
WORDS, LINES, WIDTH = 1500, 150, 120  # of README.md
_PACKAGES = r"(?:cache|pipeline|train|infer|tests\.bench)"
_COMMAND = re.compile(rf"(?:python|torchrun) .*?-m (?P<module>{_PACKAGES}\.\S+)(?P<flags>.*)")


def commands(page: Path) -> list[tuple[str, str]]:
    """The module and the flags of each command of ours on a page, in code blocks and between backticks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [(found["module"], found["flags"]) for line in lines if (found := _COMMAND.search(line))]


def anchors(page: Path) -> set[str]:
    """The names by which the headings of a page are linked."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of ours that a page shows has a module, and flags that it knows, with values that it takes."""
    monkeypatch.setattr(cache.cli, "run_main", lambda body: 0)
    for module, flags in commands(page):
        folder = ROOT.joinpath(*module.split("."))
        name = f"{module}.__main__" if folder.is_dir() else module
        arguments = [word for word in shlex.split(flags, comments=True) if word != "--"]
        try:
            assert importlib.import_module(name).main(arguments) == 0
        except SystemExit as error:
            raise AssertionError(f"{page.name}: {module}{flags}") from error


def test_there_are_commands() -> None:
    """The three commands that must work as written are among those that are parsed."""
    shown = [module + flags for module, flags in commands(ROOT / "README.md")]
    for command in (
        "pipeline.build_cache --n-mels 224",
        "train.run --fold 0",
        "infer.predict --folds all --tta 4",
    ):
        assert command in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link within the project names a file that exists, and a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


def test_make_targets_exist() -> None:
    """Every `make` target that a page shows is in the Makefile."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in re.findall(r"(?:^|`)make ([a-z][a-z -]*)", text, re.M):
            assert set(line.split()) <= set(targets), f"{page.name}: make {line}"


def test_tests_that_are_named_exist() -> None:
    """Every test that a page names is there."""
    files = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("tests/*.py")}
    for page in PAGES:
        for name in re.findall(
            r"`(?:pytest \S+ )?(?:tests/)?(test_\w+(?:\.py)?)[ `]", page.read_text(encoding="utf-8")
        ):
            known = name in files if name.endswith(".py") else any(f"def {name}(" in text for text in files.values())
            assert known or name == "test_resnet", f"{page.name}: {name}"


def test_the_tree_is_the_real_one() -> None:
    """CONTRIBUTING.md's tree has every file of the four packages, and nothing else."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = re.search(r"^```\n(cache/.*?)^```", text, re.M | re.S)
    assert tree, "no tree"
    shown, parents = set(), []
    for line in tree[1].splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        parents = [*parents[:depth], name]
        shown.add("".join(parents))
    packages = [ROOT / name for name in ("cache", "pipeline", "train", "infer")]
    files = [path for package in packages for path in package.rglob("*") if path.suffix in (".py", ".html", ".md")]
    expected = {str(path.relative_to(ROOT)) for path in files if path.name not in ("__init__.py", "__main__.py")}
    assert {name for name in shown if not name.endswith("/")} == expected
    assert {name for name in shown if name.endswith("/")} == {f"{path.parent.relative_to(ROOT)}/" for path in files}


def test_readme_is_short() -> None:
    """README.md stays within its lines and words, and no line of prose is wider than the code's."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    assert len(text.split()) <= WORDS
    for page in PAGES:
        wide = [line for line in page.read_text(encoding="utf-8").splitlines() if len(line) > WIDTH]
        if page.name != "experiments.md":
            assert not [line for line in wide if not line.startswith(("|", "OMP_NUM_THREADS", "torchrun"))]
