"""How often each verifier is wrong: on hand-checked pairs, and on answers whose value is known because it was made up.

python benchmarks/verdicts.py                 false positives and false negatives on tests/data/verdict_pairs.jsonl
python benchmarks/verdicts.py --fuzz 60       also minutes of made answers and hostile texts; findings are printed
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

from ponder import registry
from ponder.evaluation.intervals import clopper_pearson
from ponder.types import VerdictKind

PAIRS = Path(__file__).parent.parent / "tests" / "data" / "verdict_pairs.jsonl"
NAMES = ("numeric", "math", "exact", "choice")
SLOW = 3.0
"""Seconds of processor time that reading one text may take."""


def rates(rows: list[dict], verifiers: dict) -> None:
    print(
        "| verifier | right answers | judged wrong (false negatives) | wrong answers | judged right (false positives) |"
    )
    print("|---|---|---|---|---|")
    for name in NAMES:
        counts: Counter[tuple[bool, bool]] = Counter()
        for row in rows:
            if row["verifier"] == name:
                correct = verifiers[name](row["gold"], row["answer"]).correct
                counts[row["right"], correct] += 1
                if correct is not row["right"]:
                    print(f"   {row}", file=sys.stderr)
        cells = []
        for right in (True, False):
            wrong, total = counts[right, not right], counts[right, True] + counts[right, False]
            share = clopper_pearson(wrong, total)
            cells += [str(total), f"{wrong} ({100 * share.low:.2g} to {100 * share.high:.2g} %)"]
        print(f"| {name} | {' | '.join(cells)} |")


# Expressions with a known value -------------------------------------------------------------------------------------


def number(rng: random.Random) -> tuple[str, Fraction]:
    """A number as people write it."""
    kind = rng.randrange(9)
    n = rng.choice([rng.randint(0, 12), rng.randint(0, 10**4), rng.randint(0, 10**9)])
    if kind == 0:
        return f"{n:,}", Fraction(n)
    if kind == 1:
        digits = rng.randint(1, 6)
        return f"{n}.{rng.randint(0, 10**digits - 1):0{digits}d}", Fraction(0)
    d = rng.randint(2, 99)
    if kind == 2:
        return rng.choice(["\\frac{%d}{%d}", "\\dfrac{%d}{%d}", "%d/%d", "{%d}/{%d}"]) % (n, d), Fraction(n, d)
    if kind == 3 and n:
        top = rng.randint(1, d - 1)
        return rng.choice(["%d %d/%d", "%d\\frac{%d}{%d}", "%d \\tfrac{%d}{%d}"]) % (n, top, d), n + Fraction(top, d)
    if kind == 4:
        power = rng.randint(-40, 40)
        mantissa = rng.randint(1, 999)
        form = rng.choice(["%d \\times 10^{%d}", "%d × 10^{%d}", "%d*10^{%d}", "%de%d", "%d \\cdot 10^{%d}"])
        return form % (mantissa, power), mantissa * Fraction(10) ** power
    if kind == 5:
        return f"\\sqrt{{{d * d}}}", Fraction(d)
    if kind == 6:
        power = rng.randint(0, 9)
        return f"{d}^{{{power}}}", Fraction(d) ** power
    if kind == 7:
        return rng.choice(["½", "¼", "¾", "⅔", "⅛"]), Fraction(0)
    return str(n), Fraction(n)


VULGAR = {"½": Fraction(1, 2), "¼": Fraction(1, 4), "¾": Fraction(3, 4), "⅔": Fraction(2, 3), "⅛": Fraction(1, 8)}
WRAPPED = ["{}", "\\boxed{{{}}}", "The answer is ${}$.", "#### {}", "<answer>{}</answer>", "**{}**", "So x = \\({}\\).",
           "\\[\n\\boxed{{{}}}\n\\]", "Answer: {}", "first 7, then\n\n{}"]  # fmt: skip
UNITS = ["", "", "", " cm", " m^2", "\\text{ kg}", " apples", "\\,\\mathrm{ft}^3", " km/h", " dollars"]


def known(rng: random.Random) -> tuple[str, Fraction]:
    """A number with its exact value, signed."""
    text, value = number(rng)
    if text in VULGAR:
        value = VULGAR[text]
    elif "." in text and not value:
        value = Fraction(text)
    if rng.random() < 0.3:
        return rng.choice(["-", "−", "–"]) + text, -value
    return text, value


def numbers(rng: random.Random, verifiers: dict, found: Counter) -> None:
    text, value = known(rng)
    answer = rng.choice(WRAPPED).format(text + rng.choice(UNITS))
    near = value + rng.choice([-1, 1]) * Fraction(1, 10 ** rng.randint(0, 50))
    for name in ("numeric", "math"):
        gold = value if name == "numeric" else str(value)
        other = near if name == "numeric" else str(near)
        note(found, f"{name} refused an equal number", not verifiers[name](gold, answer).correct, (gold, answer))
        note(found, f"{name} took another number", verifiers[name](other, answer).correct, (other, answer))


# Formulas and hostile texts -----------------------------------------------------------------------------------------


def tree(rng: random.Random, depth: int) -> tuple[str, str, str]:
    """A formula in two spellings, and one that differs from it."""
    if depth == 0:
        text = rng.choice(["x", "y", "a", str(rng.randint(1, 9)), "\\pi", f"\\sqrt{{{rng.choice([2, 3, 5])}}}"])
        return text, text, f"({text}+1)"
    (a, a2, a3), (b, b2, b3) = tree(rng, depth - 1), tree(rng, depth - 1)
    kind = rng.randrange(5)
    if kind == 0:
        return f"({a}+{b})", f"({b2}+{a2})", f"({a}+{b3})"
    if kind == 1:
        return f"{a}\\cdot {b}", f"({b2})({a2})", f"{a3}\\cdot {b}\\cdot 2"
    if kind == 2:
        return (
            f"\\frac{{{a}}}{{({b})^2+1}}",
            f"({a2})/(({b2})*({b2})+1)",
            f"\\frac{{{a}}}{{({b})^2+1}}+1",
        )
    if kind == 3:
        return f"({a}-{b})", f"(-({b2})+{a2})", f"({a3}-{b})"
    return f"({a})^2", f"({a2})({a2})", f"({a})^2+1"


def formulas(rng: random.Random, verifiers: dict, found: Counter) -> None:
    gold, same, other = tree(rng, rng.randint(1, 2))
    verdict = verifiers["math"](gold, f"\\boxed{{{same}}}")
    note(found, "math refused an equal formula", not verdict.correct, (gold, same, verdict.reason))
    note(found, "math took another formula", verifiers["math"](gold, f"\\boxed{{{other}}}").correct, (gold, other))


ATOMS = [*"0123456789.,-+*/^!%$()[]{}\\=<>_ \n|:;'\"abxei√½²π–№", "\\frac{", "\\boxed{", "\\text{", "####", "<answer>",
         "The answer is ", "not ", " or ", "1,234", "\\sqrt{", "\\le ", "\\cup ", "\\infty", "\\pm ", "(B)",
         "Question:", "10^", "e5", "\ud800", "\x00", "\\begin{pmatrix}", "&", "\\\\", "million", "sqrt(",
         "**"]  # fmt: skip


def hostile(rng: random.Random, verifiers: dict, found: Counter) -> None:
    text = "".join(rng.choice(ATOMS) for _ in range(rng.randint(1, 40)))
    if rng.random() < 0.1:
        text *= rng.randint(2, 100_000 // len(text))
    for name, gold in (("numeric", 5), ("exact", "five"), ("choice", "B"), ("math", "x+1")):
        began = time.process_time()
        try:
            verdict = verifiers[name](gold, text)
            given = verifiers[name].read(text)
            note(
                found,
                f"{name} does not equal itself",
                given is not None and not verifiers[name].same(given, given),
                text,
            )
            note(found, f"{name} says {verdict.kind.value}", verdict.kind is VerdictKind.JUDGE_ERROR, text)
        except Exception as error:
            note(found, f"{name} raised {type(error).__name__}", True, (text[:300], str(error)[:100]))
        seconds = time.process_time() - began
        note(found, f"{name} took long", seconds > SLOW, (round(seconds, 1), len(text), text[:200]))


def note(found: Counter, what: str, failed: bool, example: object) -> None:
    """Count a check; print the first failures of each kind."""
    found["checks"] += 1
    if failed:
        found[what] += 1
        if found[what] <= 5:
            print(f"{what}: {example!r}", flush=True)


def fuzz(minutes: float, seed: int, verifiers: dict) -> None:
    rng, found, end = random.Random(seed), Counter(), time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        rng.choices([numbers, formulas, hostile], [6, 1, 3])[0](rng, verifiers, found)
    checks = found.pop("checks", 0)
    print(f"{checks:,} checks in {minutes:g} minutes, seed {seed}; failed: {dict(found) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=float, default=0.0, metavar="MINUTES", help="minutes of made answers")
    parser.add_argument("--seed", type=int, default=0, help="of the made answers")
    parser.add_argument("--quick", action="store_true", help="only every 20th pair, to see that it runs")
    options = parser.parse_args()
    verifiers = {name: registry.build("verifiers", name, {}) for name in NAMES}
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    rates(rows[::20] if options.quick else rows, verifiers)
    if options.fuzz:
        fuzz(options.fuzz, options.seed, verifiers)


if __name__ == "__main__":
    main()
