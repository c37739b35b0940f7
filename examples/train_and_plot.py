"""Train by reinforcement learning for a few steps and look at the curve of held-out accuracy."""

import ponder

config = ponder.RLConfig(
    model="ponder-tiny",
    environment="countdown",
    out="runs/example",
    problems=4,
    group_size=8,
    steps=2,
    eval_every=2,
    eval_problems=20,
)
run = ponder.train_rl(config)
for point in run.train:
    print(f"step {point['step']}: {point['accuracy']:.1%} [{point['low']:.1%}, {point['high']:.1%}]")
print("rewards:", [round(row["reward"], 3) for row in run.metrics])
print("plots and report:", ponder.report(run))
