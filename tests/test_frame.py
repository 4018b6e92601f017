"""The design's limits, held by looking at the tracked files, and what `import mpq` brings in."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchaudio", "k2", "lhotse", "numpy", "kaldifst", "matplotlib")


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository: tracked and new ones that are not ignored."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *patterns]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in found.stdout.splitlines() if (ROOT / name).is_file()]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_import_mpq_is_light() -> None:
    code = f"import sys, mpq, mpq.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


@pytest.mark.slow
def test_torchaudio_and_k2_are_not_imported_by_the_package() -> None:
    """Every module can be imported where neither is installed."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in tracked("mpq/*.py")
        if path.name != "__main__.py"
    ]
    code = (
        "import importlib, sys\n"
        "sys.modules['torchaudio'] = sys.modules['k2'] = None\n"
        f"for name in {sorted(modules)!r}: importlib.import_module(name)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr[-2000:]


def test_modules_are_short() -> None:
    files = tracked("mpq/*.py", "local/*.py", "utils/*.py", "benchmarks/*.py")
    assert files
    assert not [f"{n}: {c}" for n, f in zip(names(files), files, strict=True) if (c := count_lines(f)) >= 400]


def test_recipes_and_shell_files_are_short() -> None:
    recipes, shell = tracked("egs/*/run.sh"), tracked("*.sh")
    assert shell
    assert not [f"{n}: {c}" for n, f in zip(names(recipes), recipes, strict=True) if (c := count_lines(f)) > 150]
    assert not [f"{n}: {c}" for n, f in zip(names(shell), shell, strict=True) if (c := count_lines(f)) >= 400]


def test_functions_are_short() -> None:
    long = []
    for path in tracked("mpq/*.py", "local/*.py", "utils/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                n_lines = node.end_lineno - node.lineno + 1
                if n_lines >= 50:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {n_lines} lines")
    assert not long


def test_public_functions_have_docstrings() -> None:
    bare = []
    for path in tracked("mpq/*.py", "local/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree):
            bare.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not bare


def test_no_corpus_name_inside_the_package() -> None:
    corpora = re.compile(r"\b(an4|librispeech|switchboard|swbd|fisher(?!(?:'s)? information)|callhome|timit)\b", re.I)
    assert not [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked("mpq/*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if corpora.search(line)
    ]


def test_no_registry_hosts_and_no_paths_of_one_machine() -> None:
    hosts = re.compile(
        "|".join(("py" + r"pi\.org", "python" + "hosted", "deb" + r"ian\.org", "npm" + r"js\.(org|com)"))
    )
    places = re.compile("|".join(("/wo" + "rk/", "/tm" + "p/w/", "/ro" + "ot/", "/ho" + "me/")))
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if hosts.search(line) or places.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found


def test_lock_file_pins_everything_that_is_asked_for() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = [
        line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+( ; .+)?", line) for line in lines), "an inexact or odd line"
    pinned = {plain(line.partition("==")[0]) for line in lines}
    project = (ROOT / "pyproject.toml").read_text()
    asked = project[project.index("dependencies = [") : project.index("[project.scripts]")]
    wanted = {plain(name) for name in re.findall(r'^    "([\w.-]+)', asked, re.M)}
    assert {"torch", "lhotse", "pytest"} <= wanted
    assert wanted <= pinned
    assert "torch==2.11.0" in lines and "torchaudio==2.11.0" in lines


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())
