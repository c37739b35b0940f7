"""Ask one question: the answer, why the search stopped, and what it cost."""

import ponder

environment = ponder.environment("countdown")
problem = environment.problem("test", 1)
outcome = ponder.solve(problem, "ponder-tiny", environment=environment, strategy="budget_forcing", thought_tokens=64)

print(problem.prompt)
print(outcome)
print("answer:", outcome.response.answer)
print("judge: ", environment.judge(problem, outcome.response).reason)
