"""The embedded corpus: the English that every Python carries, so a first run needs no download.

Documents are the topics of the language reference (`pydoc_data.topics`, what `help()` shows) and,
per module of the standard library, its docstrings. Sources are parsed, never imported. Different
Python versions carry slightly different texts, so losses on this corpus compare only within one
version of Python (`fingerprint` tells).
"""

import ast
import functools
import hashlib
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from flaxlm.errors import MissingInput

_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "encodings",  # the same two lines a hundred times
}
# Lines that begin code, which letters alone do not tell from prose.
_CODE = re.compile(
    r"^\s*(?:>>>|(?:async )?def \w+\(|class \w+[(:]|import \w|from [\w.]+ import|return\b|@\w"
    r"|[\w.]+ = |(?:if|for|while|with|try|else)\b.*:$)",
    re.MULTILINE,
)
_WORD = re.compile(r"[A-Za-z]{2,}")


@functools.cache
def documents() -> tuple[str, ...]:
    """All documents, paragraphs separated by blank lines, in an order fixed by the file names.
    Takes seconds, once.

    Raises:
      MissingInput: this Python was installed without the sources of its standard library.
    """
    seen: set[str] = set()
    found = []
    for path in _files():
        for texts in _texts(path):
            paragraphs = [p for text in texts for p in _prose(text, seen)]
            if sum(map(len, paragraphs)) >= 200:  # a sentence or two says nothing worth a document
                found.append("\n\n".join(paragraphs))
    return tuple(found)


def fingerprint() -> str:
    """Changes whenever `documents` may: a hash over the names and sizes of the sources."""
    root = _root()
    listing = "\n".join(f"{p.relative_to(root)} {p.stat().st_size}" for p in _files())
    return hashlib.sha256(f"1\n{listing}".encode()).hexdigest()  # 1: version of the cleaning below


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


@functools.cache
def _files() -> tuple[Path, ...]:
    root = _root()
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if len(files) < 100 or not (root / "pydoc_data" / "topics.py").exists():
        raise MissingInput(
            f"embedded:english needs the standard library's .py files; {root} has {len(files)}. "
            "Use a full Python installation, or give a source of your own: text:, jsonl:, parquet:"
        )
    return tuple(sorted(files, key=lambda p: p.relative_to(root).as_posix()))


def _texts(path: Path) -> Iterator[list[str]]:
    """Per document, its raw texts: each topic is a document, and so are all docstrings of one
    module together.
    """
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source and path.name != "topics.py":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the standard library's own SyntaxWarnings
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):  # templates and deliberately broken files
            return
    if path.parent.name == "pydoc_data":
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                values = [v.value for v in node.values if isinstance(v, ast.Constant)]
                yield from ([v] for v in values if isinstance(v, str))
        return
    raw = (ast.get_docstring(node, clean=False) for node in _documented(tree))
    yield [text for text in raw if text]


def _documented(tree: ast.Module) -> Iterator[ast.AST]:
    """Whatever can have a docstring, in order: walks blocks, which are few, not expressions."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        for block in ("handlers", "finalbody", "orelse", "body"):  # a stack: the last comes first
            waiting += reversed(getattr(node, block, ()))


def _prose(text: str, seen: set[str]) -> Iterator[str]:
    """The paragraphs of `text` that are running English and new, each on one line."""
    for paragraph in re.split(r"\n[ \t]*\n", inspect.cleandoc(text)):
        line = " ".join(paragraph.split())
        if ">>>" in line or line in seen or _CODE.search(paragraph):
            continue
        words = _WORD.findall(line)
        if len(words) < 5 or sum(map(len, words)) < 0.7 * len(line.replace(" ", "")):
            continue  # code, signatures, tables, grammar, rulers
        seen.add(line)
        yield line
