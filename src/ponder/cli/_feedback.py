"""What a search may ask besides its model, from the command line: the environment's feedback, or another scorer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ponder import registry
from ponder.config import Options
from ponder.errors import UserError
from ponder.protocols import Environment, Feedback, Scorer


@dataclass(frozen=True)
class ScorerOptions:
    """What scores the responses of a search. A verb's config inherits these fields."""

    scorer: str | None = None
    """The scorer of responses: a name of `ponder list scorers`, or PATH.py:Class (default: the environment's own, if it
    has one)."""
    scorer_options: Options = field(default_factory=dict)
    """Options of the scorer."""


def feedback_of(options: ScorerOptions, environment: Environment | None) -> Feedback:
    """The environment's feedback, with the scorer that was asked for in place of its own. Raises `UserError`."""
    feedback = Feedback() if environment is None else environment.feedback
    if options.scorer is None:
        if options.scorer_options:
            raise UserError("--scorer-options goes with --scorer; name one, or leave it out")
        return feedback
    scorer = registry.build("scorers", options.scorer, options.scorer_options)
    if not isinstance(scorer, Scorer):
        raise UserError(
            f"--scorer {options.scorer}: {type(scorer).__name__} is not a scorer; derive it from "
            "ponder.scorers.base.BaseScorer, and give it `value` or `score`"
        )
    return dataclasses.replace(feedback, scorer=scorer)
