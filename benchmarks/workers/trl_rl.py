"""The peer TRL in `rl_step.py`: whole steps of GRPO with `generate`, each completion as long as its problem says."""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pipe import Pipe, forget_peak, peak_bytes
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Lengths(LogitsProcessor):
    """Forbids the end before a row's length and forces it there: the end token is the last of `lengths_B` tokens."""

    def __init__(self, prompt: int, lengths_B: torch.Tensor, ends: list[int]) -> None:
        self.prompt, self.lengths_B, self.ends = prompt, lengths_B, ends

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.ends] = -torch.inf
        last_B = self.lengths_B == input_ids.shape[1] - self.prompt + 1
        if last_B.any():
            scores[last_B] = -torch.inf
            scores[last_B, self.ends[0]] = 0.0
        return scores


class Forced:
    """Replaces the model's `generate`: gives it the lengths of the prompts that it is called with."""

    def __init__(self, model: Any, problems: list[dict[str, Any]], ends: list[int]) -> None:
        self.generate, self.ends = model.generate, ends
        self.lengths = {tuple(p["ids"]): p["lengths"] for p in problems}
        self.seconds, self.tokens = 0.0, 0

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        prompts = [tuple(row[kept].tolist()) for row, kept in zip(input_ids, attention_mask.bool(), strict=True)]
        lengths, sample = [], 0
        for i, ids in enumerate(prompts):
            sample = sample + 1 if i and prompts[i - 1] == ids else 0
            lengths.append(self.lengths[ids][sample])
        processor = Lengths(input_ids.shape[1], torch.tensor(lengths), self.ends)
        began = time.perf_counter()
        out = self.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            logits_processor=LogitsProcessorList([processor]),
            **options,
        )
        self.seconds, self.tokens = time.perf_counter() - began, sum(lengths)
        return out


def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The same as on ponder's side: a number in [0, 1) by the text's checksum."""
    return [zlib.crc32(text.encode("utf-8", "replace")) / 2**32 for text in completions]


class StepByStep(TrainerCallback):
    """Answers each step and waits for the next message before the loop goes on."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe, self.began = pipe, 0.0
        self.forced: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> Any:
        seconds = time.perf_counter() - self.began
        self.pipe.send(
            seconds=seconds,
            seconds_generate=self.forced.seconds,
            tokens=self.forced.tokens,
            peak_bytes=peak_bytes(),
        )
        if self.pipe.receive() is None:
            control.should_training_stop = True
        self.began = time.perf_counter()
        return control


def build(
    pipe: Pipe,
    model: str,
    problems: str,
    groups: int,
    group_size: int,
    learning_rate: float,
    micro: int,
    longest: int,
    gradient_checkpointing: bool,
) -> tuple[GRPOTrainer, StepByStep]:
    """The trainer: one optimiser step a batch, no reference model, float32, constant rate, problems in order."""
    rows = json.loads(Path(problems).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    for row in rows:
        if tokenizer(row["prompt"])["input_ids"] != row["ids"]:
            raise ValueError(f"transformers' tokenizer makes other ids of {row['prompt']!r}")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    callback = StepByStep(pipe)
    trainer = GRPOTrainer(
        network,
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
        processing_class=tokenizer,
        callbacks=[callback],
        args=GRPOConfig(
            output_dir=str(Path(problems).parent / "trl"),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=groups * group_size // micro,
            num_generations=group_size,
            max_completion_length=longest,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            beta=0.0,
            max_steps=1_000_000,
            shuffle_dataset=False,
            bf16=False,
            gradient_checkpointing=gradient_checkpointing,
            use_cpu=True,
            use_vllm=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1_000_000,
            disable_tqdm=True,
        ),
    )
    ends = [tokenizer.eos_token_id, *(i for i in trainer.eos_token_ids if i != tokenizer.eos_token_id)]
    callback.forced = trainer.model.generate = Forced(trainer.model, rows, ends)
    return trainer, callback


def main() -> None:
    pipe = Pipe()
    pipe.send(ready=True)
    try:
        message = pipe.receive()
        if message is None:
            return
        assert message.pop("do") == "open"
        trainer, callback = build(pipe, **message)
        forget_peak()
        pipe.send()
        if pipe.receive() is None:
            return
        callback.began = time.perf_counter()
        trainer.train()
    except BrokenPipeError:
        return
    except Exception as error:
        pipe.fail(error)


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # skips the slow shutdown of libraries
