"""How the site is built: pages that live outside docs/, and docstrings in reStructuredText made Markdown.

Formulas become MathML, which browsers draw by themselves, so that no page needs a script from elsewhere.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = "lightning_lyapunov"
ROOT = Path(__file__).parents[1]
OUTSIDE = {"benchmarks.md": "benchmarks/README.md", "growth.png": "benchmarks/growth.png"}
"""Files of the site, and where in the repository they live."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the files from outside docs/ in."""
    for uri, path in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to these files as they are named in the site."""
    for uri, path in OUTSIDE.items():
        markdown = markdown.replace(f"](../{path}", f"]({uri}")
    return markdown


class FromRestructuredText(griffe.Extension):
    """Docstrings of our package, before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring, if there is one."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Show what a default is, rather than the name of the constant that holds it."""
        for parameter in func.parameters:
            if isinstance(parameter.default, griffe.ExprName):
                module, _, name = parameter.default.canonical_path.rpartition(".")
                value = getattr(import_module(module), name, None) if module.startswith(PACKAGE) else None
                if isinstance(value, int | float | str):
                    parameter.default = repr(value)


def to_markdown(text: str) -> str:
    """Roles, formulas and tables as Markdown with MathML."""
    text = re.sub(r"^( *)\.\. math:: ?((?:.+\n?)(?:\1 +.+\n?)*)", _display, text, flags=re.MULTILINE)
    text = re.sub(r"^( *)\.\. math::\n((?:\1 +.+\n?)+)", _display, text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]+)`", lambda m: _mathml(m[1]), text)
    text = re.sub(r":[a-z]+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"^(\w.*):: *$", r"\1:", text, flags=re.MULTILINE)
    text = re.sub(r"^Example:(?=\n +>>>)", "Examples:", text, flags=re.MULTILINE)  # the section that holds code
    return re.sub(r"^(=+(?: +=+)+)\n(.*?)\n\1$", _table, text, flags=re.MULTILINE | re.DOTALL)


def _display(found: re.Match[str]) -> str:
    formula = " ".join(found[2].split())
    if "&" in formula:
        formula = rf"\begin{{aligned}} {formula} \end{{aligned}}"
    return f"{found[1]}{_mathml(formula, display='block')}\n"


def _mathml(formula: str, display: str = "inline") -> str:
    return convert(formula, display=display)


def _table(found: re.Match[str]) -> str:
    """A simple table, whose columns begin where its border does; a line without a first cell goes on above."""
    starts = [column.start() for column in re.finditer("=+", found[1])]
    ends = [*starts[1:], None]
    rows: list[list[str]] = []
    for line in found[2].splitlines():
        cells = [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{above} {more}".strip() for above, more in zip(rows[-1], cells, strict=True)]
    blank = "|" + " |" * len(starts)
    body = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([blank, "|" + "---|" * len(starts), *body])
