"""The documentation: every link leads somewhere, and `make docs` builds a site of it that needs no network."""

import importlib.util
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
PAGES = [HERE / "README.md", HERE / "CHANGELOG.md", *HERE.glob("docs/**/*.md"), *HERE.glob("benchmarks/*.md")]
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(HERE)) for p in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(#[^)\s]*)?\)", CODE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        there = page.parent / target if target else page
        assert there.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", there.read_text(), re.M)
            assert anchor[1:] in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, anchor


def test_lists_stand_apart_from_the_text_before() -> None:
    """Python-Markdown takes a list that follows a line of text for more of that text."""
    for page in PAGES:
        lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).split("\n")
        for before, line in pairwise(lines):
            if line.startswith("- "):
                assert not before or re.match(r"\s*- |#|\s", before), f"{page}: {line[:60]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("needs mkdocs (make docs)")
    return tmp_path_factory.mktemp("site")


def build(source: Path, to: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(source / "mkdocs.yml")]
    return subprocess.run([*command, "-d", str(to)], capture_output=True, text=True, check=False)


def test_the_site_builds_and_loads_nothing_from_elsewhere(site: Path) -> None:
    done = build(HERE, site)
    assert done.returncode == 0, done.stderr
    start = (site / "index.html").read_text()
    assert 'href="strategies.html"' in start
    assert 'src="results/quickstart-seed0.png"' in start
    assert "import ponder" in re.sub("<[^>]*>", "", (site / "examples" / "ask_once.html").read_text())
    for page in site.rglob("*.html"):
        assert not re.search(r'(?:src="|<link[^>]*href=")https?:', page.read_text()), page


def test_a_broken_link_fails(site: Path, tmp_path: Path) -> None:
    for name in ("docs", "examples", "benchmarks"):
        shutil.copytree(HERE / name, tmp_path / name)
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "mkdocs.yml"):
        shutil.copy(HERE / name, tmp_path / name)
    with (tmp_path / "README.md").open("a") as page:
        page.write("\n[Nowhere](docs/nowhere.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert "README.md: a link to docs/nowhere.md, which is not there" in done.stderr
