"""Figures of a training: the keys of `metrics.jsonl`, and their titles in reports."""

from __future__ import annotations

from ponder.figures.figure import Figure
from ponder.numbers import clock, percent, power

TRAINING: tuple[Figure, ...] = (
    Figure("step", "step", "steps", "Steps of the optimiser's rounds so far; in RL each has samples of its own."),
    Figure("right", "right responses", "share", "Share of the step's responses that the judge calls correct.", percent),
    Figure(
        "length", "response length (tokens)", "tokens", "Sampled and forced tokens of a response, mean of the step."
    ),
    Figure("truncated", "truncated responses", "share", "Share of the step's responses that were cut off.", percent),
    Figure("groups", "groups", "groups", "Groups (all samples of one problem) that were trained on."),
    Figure(
        "groups_without_signal", "groups without a signal", "groups", "Of these, those whose rewards are all equal."
    ),
    Figure(
        "groups_replaced", "groups replaced", "groups", "Groups that were sampled and dropped for want of a signal."
    ),
    Figure("signal", "groups with a signal", "share", "Share of all sampled groups whose rewards differ.", percent),
    Figure("rounds", "rounds", "rounds", "How often the step sampled, to replace groups without a signal."),
    Figure("entropy", "entropy (nats per token)", "nats", "Of the trainer's distribution, mean of the trained tokens."),
    Figure("loss", "loss", "by the loss", "Mean of the step's updates; of pretraining and SFT in nats per token."),
    Figure("validation_loss", "validation loss", "nats", "Mean loss per token of rows that are not trained on."),
    Figure("kl", "KL to the reference (nats per token)", "nats", "Estimated divergence from the weights at the start."),
    Figure(
        "clipped", "clipped tokens", "share", "Share of the trained tokens whose gradient the loss cut off.", percent
    ),
    Figure("gradient_norm", "gradient norm", "norm", "Largest of the step's updates, before it is limited."),
    Figure("learning_rate", "learning rate", "rate", "Of the step's updates.", power),
    Figure(
        "mismatch_mean",
        "mismatch, mean |Δ log p|",
        "nats",
        "Trainer's less sampler's log-probability of the same tokens, mean of absolute values, first update alone.",
    ),
    Figure("mismatch_max", "mismatch, largest", "nats", "The same, the largest of all tokens."),
    Figure("mismatch_k3", "mismatch, k3", "nats", "The same as Schulman's k3 estimate of the divergence."),
    Figure(
        "effective_samples",
        "effective samples",
        "share",
        "Share of the tokens that would weigh as much if sampler and trainer agreed: (Σ r)² / (n Σ r²).",
        percent,
    ),
    Figure("staleness_max", "staleness", "steps", "Most steps between the weights that sampled and those updated."),
    Figure("response_tokens", "response tokens of the step", "tokens", "Sampled and forced tokens of all samples."),
    Figure("computed_tokens", "computed tokens", "tokens", "Tokens through the network in training, prompts included."),
    Figure("total_flops", "FLOPs so far", "operations", "Of sampling and training, since step 0.", power),
    Figure("total_sampled_tokens", "sampled tokens so far", "tokens", "Since step 0."),
    Figure("seconds_sample", "time of sampling", "seconds", "Of the step: sampling and judging.", clock),
    Figure("seconds_train", "time of training", "seconds", "Of the step: its updates.", clock),
    Figure(
        "seconds_publish", "time of publishing", "seconds", "Of the step: handing the weights to the sampler.", clock
    ),
    Figure(
        "seconds_data", "time of reading", "seconds", "Of a step of pretraining or SFT: waiting for its rows.", clock
    ),
    Figure("tokens_per_second", "tokens/s", "tokens per second", "Ids through the network in pretraining and SFT."),
    Figure("sampled_tokens_per_second", "sampled tokens/s", "tokens per second", "By the time of sampling."),
    Figure("trained_tokens_per_second", "trained tokens/s", "tokens per second", "By the time of training."),
)
