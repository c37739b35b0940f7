"""A vote of eight samples that never costs more than 900 tokens, the prompt and every branch included."""

import ponder

environment = ponder.environment("countdown")
problem = environment.problem("test", 4)
budget = ponder.Budget(tokens=900)

with ponder.open_engine("ponder-tiny") as engine:
    for strategy in ("direct", "majority", "best_of_n"):
        options = {"max_tokens": 96} if strategy == "direct" else {"n": 8, "max_tokens": 96}
        outcome = ponder.solve(problem, engine, environment=environment, strategy=strategy, budget=budget, **options)
        assert outcome.spend.tokens <= 900
        print(f"{strategy:<10} {outcome!r}\n           {outcome.reason}")
