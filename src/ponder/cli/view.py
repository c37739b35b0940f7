"""Look at runs in a browser: every problem, two runs side by side, training as it goes on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ponder.cli._common import check_target
from ponder.cli._output import note, results, say

if TYPE_CHECKING:
    from ponder.viewing.catalog import Catalog

PORT = 7667
"""Where the page is unless told otherwise."""
EPILOG = f"""\
examples:
  ponder view                                    # every run below runs/
  ponder view runs/eval
  ponder view runs/eval-before runs/eval-after   # side by side, problem by problem
  ponder view runs/rl                            # also while it trains
  ponder view runs/eval --out eval.html          # one file, to keep or to send

It serves a page at http://127.0.0.1:{PORT}/, to this machine alone, until Ctrl-C. The page lists all problems;
they can be filtered (verdict, stop reason, changed between two runs), sorted and searched in full text; `?` on
the page shows its keys. What a running command writes appears by itself. Nothing is sent anywhere, and nothing
in the runs is changed. From another machine: ssh -L {PORT}:127.0.0.1:{PORT} HOST
"""


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="ponder view", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run directories, or folders of them (default: runs)")
    parser.add_argument(
        "--port",
        type=int,
        help=f"port of the page; 0 for any free one (default: {PORT}, or a free one if it is in use)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--out", metavar="FILE.html", help="write the page with the runs to one file instead of serving it"
    )
    return parser


def main(args: list[str]) -> int:
    flags = parser()
    given = flags.parse_args(args)
    if given.out is not None:
        if given.port is not None:
            flags.error("--out writes a file and needs no --port")
        check_target("--out", given.out)
    from ponder.viewing.catalog import Catalog

    catalog = Catalog(given.runs, on_error=lambda sentence: note(f"note: {sentence}"))
    if given.out is not None:
        from ponder.viewing.static import write

        write(catalog, Path(given.out))
        say(given.out)
        if given.open:
            _open(Path(given.out).absolute().as_uri())
        return 0
    return serve(catalog, given.port, given.open)


def serve(catalog: Catalog, port: int | None, opened: bool) -> int:
    """Serve until Ctrl-C, which is the usual end."""
    from ponder.errors import UserError
    from ponder.viewing.server import Server

    try:
        server = Server(catalog, PORT if port is None else port)
    except UserError:
        if port is not None:
            raise
        server = Server(catalog)
        note(f"note: port {PORT} is in use; this page has another one")
    with server:
        say(server.url)
        results().flush()
        note("Ctrl-C ends it")
        if opened:
            _open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _open(url: str) -> None:
    import webbrowser

    if not webbrowser.open(url):
        note(f"note: no browser was found; open {url}")
