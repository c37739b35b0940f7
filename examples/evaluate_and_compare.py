"""Measure two ways to spend tokens on the same problems, and compare them problem by problem."""

import ponder

environment = ponder.environment("countdown")
with ponder.open_engine("ponder-tiny") as engine:
    one = ponder.evaluate(environment, engine, problems=60, strategy="budget_forcing", thought_tokens=20)
    longer = ponder.evaluate(environment, engine, problems=60, strategy="budget_forcing", thought_tokens=160)

print("20 tokens of thought: ", one)
print("160 tokens of thought:", longer)
comparison = ponder.compare(one, longer)
print(comparison)
print("changed verdicts:", comparison.moves)
