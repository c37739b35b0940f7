"""`python -m ponder.figures > docs/figures.md`."""

from ponder.figures.page import page

print(page(), end="")
