"""A name means one thing: no two public classes of the package share a name, nor do two modules of the tests."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "raystage"


def test_no_two_public_classes_share_a_name() -> None:
    homes = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(PACKAGE)))
    shared = {name: files for name, files in homes.items() if len(files) > 1}
    assert shared == {}


def test_no_two_modules_of_the_tests_share_a_name() -> None:
    """The folders of the tests are no packages, so pytest imports each file as a top-level module."""
    homes = defaultdict(list)
    for path in sorted(TESTS.rglob("*.py")):
        if path.name != "conftest.py":  # these pytest tells apart by their folders
            homes[path.name].append(str(path.relative_to(TESTS.parent)))
    shared = "; ".join(" and ".join(files) for files in homes.values() if len(files) > 1)
    assert not shared, f"pytest can import only one of {shared}: give each a name that no other file under tests/ has"
