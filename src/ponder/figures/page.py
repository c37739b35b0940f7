"""`docs/figures.md`, which `python -m ponder.figures` prints."""

from __future__ import annotations

from ponder.figures import GROUPS

HEAD = """# Figures

What each number of ponder counts, under one name on the console, in reports, in the viewer and in JSON. The keys are \
those of `--json` and of the files of a run; the table is `ponder.figures`.

An accuracy and its like are shares in JSON (0 to 1) and written in percent. An estimate in JSON is `{"value", "low", \
"high", "n", "method", "chosen_of"}`: a 95 % interval over problems, `null` where they are too few to carry one; then \
`method` says why. A mean over problems takes the mean over the samples of each first.
"""
TAIL = """
Judge and checker are in the [glossary](ARCHITECTURE.md#glossary). "Chosen by the checker" is said of what the checker \
accepted, and of nothing else.

Names of older versions are read as today's. `mean_tokens` counted response tokens alone and is now \
`mean_response_tokens_per_search`; `seconds` and `seconds_per_correct` of an evaluation are `run_seconds` and \
`run_seconds_per_correct`. `confidence` is `vote_share` where there was a vote; elsewhere it was the checker's reward, \
which is in the `check` of the chosen sample.
"""


def page() -> str:
    """`docs/figures.md`."""
    parts = [HEAD]
    for name, group in GROUPS.items():
        rows = [f"| `{f.key}` | {f.label} | {f.unit} | {f.meaning} |" for f in group]
        parts.append(
            "\n".join([f"## {name}", "| key | label | unit | what it counts |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts) + TAIL
