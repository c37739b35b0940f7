"""Hooks of mkdocs: pages of the site that lie outside docs/, and links that fit a repository turned into the site's.

A link to a file that is no page (source code, a recipe) becomes plain text; one to a file that is not there fails.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "benchmarks/README.md": "benchmarks/README.md",
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
}
"""Files of the repository outside docs/, and where they are on the site."""
FOLDERS = {"examples": "examples/index.md", "benchmarks": "benchmarks/README.md", "docs/results": "results/index.md"}
"""What a link to a folder leads to."""
LINK = re.compile(r"(?P<before>!?\[(?P<text>[^\]]*)\])\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_log = logging.getLogger("mkdocs.hooks.site")


def examples() -> list[Path]:
    return sorted((ROOT / "examples").glob("*.py"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the examples where the navigation says `Examples`."""
    pages = ["examples/index.md", *(f"examples/{path.stem}.md" for path in examples())]
    config.nav = [{"Examples": pages} if entry == {"Examples": "examples/"} else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    made = {where: (ROOT / name).read_text(encoding="utf-8") for name, where in PAGES.items()}
    made["examples/index.md"] = "# Examples\n\n" + "\n".join(
        f"- [{path.name}]({path.stem}.md): {_summary(path)}" for path in examples()
    )
    for path in examples():
        code = path.read_text(encoding="utf-8")
        made[f"examples/{path.stem}.md"] = f"# {path.name}\n\n{_summary(path)}\n\n```python\n{code}```\n"
    results = sorted((ROOT / "docs" / "results").glob("*.md"))
    made["results/index.md"] = "# What was measured\n\n" + "\n".join(
        f"- [{_title(path)}]({path.name})" for path in results
    )
    for where, text in made.items():
        files.append(File.generated(config, where, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links between files of the repository as links between pages; code stays as it is."""
    where = page.file.src_uri
    source = {new: old for old, new in PAGES.items()}.get(where)
    if source is None and page.file.generated_by is not None:
        return markdown
    source = source or f"docs/{where}"
    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(lambda found: _link(found, source, where, files), part) for part in parts[::2]]
    return "".join(parts)


def _link(found: re.Match[str], source: str, where: str, files: Files) -> str:
    target = found["target"]
    if re.match(r"[a-z]+:", target):
        return found[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        _log.warning("%s: a link to %s, which is not there", source, target)
        return found[0]
    page = _page(path)
    if files.get_file_from_path(page) is None:
        return found["text"]
    return f"{found['before']}({posixpath.relpath(page, posixpath.dirname(where))}{found['anchor'] or ''})"


def _page(path: str) -> str:
    """Where a file or folder of the repository is on the site, if it is there."""
    if path in FOLDERS:
        return FOLDERS[path]
    if path.startswith("examples/"):
        return path.removesuffix(".py") + ".md"
    return PAGES.get(path, path.removeprefix("docs/"))


def _summary(path: Path) -> str:
    return " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
