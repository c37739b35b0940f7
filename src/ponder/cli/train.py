"""Train a model: `pretrain` from random weights, `sft` on worked examples, `rl` on answers that can be checked."""

from __future__ import annotations

from ponder.cli._output import say
from ponder.config import parse
from ponder.errors import UserError, nearest

USAGE = """usage: ponder train pretrain|sft|rl [--config FILE.toml] [flags]

  pretrain   train a base model from random weights, on procedural text
  sft        fine-tune a model on chats: procedural ones, or the rows of a JSONL file
  rl         teach a model by reinforcement learning on answers that can be checked

examples:
  ponder train pretrain --out runs/pretrain
  ponder train sft --model runs/pretrain --out runs/sft
  ponder train sft --model MODEL --data rows.jsonl --epochs 2 --lora-rank 32 --out runs/lora-sft
  ponder train rl --model ponder-tiny --environment countdown --steps 100 --out runs/rl
  ponder train rl --model MODEL --data problems.jsonl
  ponder train rl --model MODEL --data problems.jsonl --lora-rank 8 --out runs/lora
  ponder train rl --config runs/rl/config.toml --resume

`ponder train KIND --help` lists every flag.
"""
PRETRAIN = """Train a base model from random weights, on procedural text.

examples:
  ponder train pretrain --out runs/pretrain
  ponder train pretrain --out runs/sums --families arithmetic=0.5 compare=0.5 --fit.max-tokens 5000000
  ponder train pretrain --config runs/pretrain/config.toml --resume
"""
SFT = """Fine-tune a model on chats: procedural ones, or the prompts and responses of a file.

examples:
  ponder train sft --model runs/pretrain --out runs/sft
  ponder train sft --model smollm2-135m --data rows.jsonl --epochs 2 --lora-rank 16 --out runs/lora
  ponder train sft --config runs/sft/config.toml --resume

A row of the file: {"prompt": "What is 2 plus 3?", "response": "It is 5."}
"""
RL = """Teach a model by reinforcement learning on answers that can be checked.

examples:
  ponder train rl --model ponder-tiny --environment countdown --steps 100 --out runs/rl
  ponder train rl --model smollm2-135m --data problems.jsonl --lora-rank 8 --minutes 30 --out runs/lora
  ponder train rl --environment ./mine.py:Mine --out runs/mine
  ponder train rl --config runs/rl/config.toml --resume

A row of the file: {"prompt": "What is 2 plus 3?", "answer": "5"}
"""


def main(args: list[str]) -> int:
    """Run one kind of training, draw its report; prints the paths of both."""
    if not args or args[0] in ("-h", "--help"):
        say(USAGE.rstrip("\n"))
        return 0 if args else 2
    kind, rest = args[0], args[1:]
    prog = f"ponder train {kind}"
    if kind == "pretrain":
        from ponder.training.supervised import PretrainConfig, pretrain

        final = pretrain(parse(PretrainConfig, rest, prog=prog, description=PRETRAIN))
    elif kind == "sft":
        from ponder.training.supervised import SFTConfig, sft

        final = sft(parse(SFTConfig, rest, prog=prog, description=SFT))
    elif kind == "rl":
        from ponder.training.rl_config import RLConfig

        config = parse(RLConfig, rest, prog=prog, description=RL)
        from ponder.training.rl_run import train

        final = train(config)
    else:
        raise UserError(f"unknown kind of training {kind!r}{nearest(kind, ('pretrain', 'sft', 'rl'))}")
    from ponder.runs.report import render

    _, page = render(final.parent)
    say(f"report: {page}")
    say(f"model: {final}")
    return 0
