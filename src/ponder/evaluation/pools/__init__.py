"""Recorded pools of samples: writing them, judging them, and what strategies would have reached on them.

`record` writes and reads pools in the format of `search.record`, in which an evaluation's `rollouts.jsonl` is written
too. `judging` gives each sample a verdict. `analysis` compares strategies on the judged samples: by formula or over
random orders of drawing (`formulas`, `adaptive`), or by running the real strategy on the replay engine (`live`).
`evaluation.equal_spend` says what majority reaches for the tokens that a strategy took.
"""
