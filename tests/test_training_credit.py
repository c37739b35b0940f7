"""Groups, credit and the batch of tokens: what is trained on, and with which advantage."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_play import PARAMS, completion, flat_group, forced, group_of, sampled

from ponder.errors import PonderError, Unsupported, UserError
from ponder.training.advantages.mean_only import MeanOnly
from ponder.training.advantages.tree_mean import TreeMean
from ponder.training.batch import token_batch
from ponder.training.credit import Credit
from ponder.training.rollouts import Group, has_signal, temperature_of, without_truncated
from ponder.types import FinishReason, Node, Response, SamplingParams, Segment, SegmentKind, VerdictKind

PROMPT = (2, 3, 4)
RESPONSE = (sampled((5, 6), (-1.0, -2.0)), forced((7,)), sampled((8, 1), (-0.5, -0.25)))
REWARDS = st.lists(st.sampled_from([-2.0, 0.0, 0.25, 0.9, 1.0, 7.5, None]), min_size=2, max_size=8)


def flat(rewards: list[float | None], finish: FinishReason = FinishReason.STOP, name: str = "p") -> Group:
    return flat_group([completion(PROMPT, RESPONSE, finish)] * len(rewards), rewards, name)


def tree(rewards: tuple[float | None, float | None, float | None]) -> Group:
    """Two first steps; the first was continued twice, through a middle step without a branch."""

    def node(number: int, parent: int | None, before: tuple[int, ...], new: tuple[int, ...]) -> Node:
        parts = (forced(before), sampled(new)) if before else (sampled(new),)
        return Node(number, parent, completion(PROMPT, parts), Response("x"))

    nodes = [
        node(0, None, (), (10, 11)),
        node(1, None, (), (12,)),
        node(2, 0, (10, 11), (13,)),
        node(3, 2, (10, 11, 13), (14, 15)),
        node(4, 2, (10, 11, 13), (16,)),
    ]
    return group_of(nodes, dict(zip((3, 4, 1), rewards, strict=True)))


# Groups -----------------------------------------------------------------------------------------------------------


def test_the_samples_of_a_group_are_the_leaves_of_its_tree_with_the_transcripts_of_their_paths() -> None:
    group = tree((1.0, 0.0, 0.0))
    assert [s.leaf for s in group.samples] == [3, 4, 1]
    assert [s.transcript.ids for s in group.samples] == [
        (*PROMPT, 10, 11, 13, 14, 15),
        (*PROMPT, 10, 11, 13, 16),
        (*PROMPT, 12),
    ]
    # What a later call brought back by force was sampled once: all of it is the model's.
    assert all(s.transcript.loss_mask == (False,) * 3 + (True,) * (len(s.transcript.ids) - 3) for s in group.samples)
    assert [n.verdict is not None for n in group.trace.nodes] == [False, True, False, True, True]
    assert [len(s.params) for s in group.samples] == [3, 3, 1]


def test_a_path_of_several_transcripts_is_refused() -> None:
    first = Node(0, None, completion(PROMPT, (sampled((10, 11)),)), Response("x"))
    rewritten = Node(1, 0, completion((2, 3, 9), (sampled((12,)),)), Response("x"))
    with pytest.raises(Unsupported, match=r"p: cannot be trained on: .* is 2 transcripts"):
        group_of([first, rewritten], {1: 1.0})


def test_samples_of_an_engine_without_ids_are_refused() -> None:
    with pytest.raises(Unsupported, match="has no token ids"):
        flat_group([completion((), ())] * 2, [1.0, 0.0])


def test_a_reward_may_be_any_number_and_the_verdict_stays_inside() -> None:
    group = flat([-3.0, 12.5])
    assert [s.reward for s in group.samples] == [-3.0, 12.5]
    assert [s.verdict.reward for s in group.samples] == [0.0, 1.0]
    with pytest.raises(PonderError, match="a reward of nan cannot be trained on"):
        flat([math.nan, 1.0])


def test_a_failed_judgement_has_no_reward_whatever_is_given_for_it() -> None:
    group = flat([None, 1.0])
    assert group.samples[0].reward is None
    assert group.samples[0].verdict.kind is VerdictKind.JUDGE_ERROR


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ((SamplingParams(8, top_p=0.9),) * 2, "top_p cuts the distribution"),
        ((SamplingParams(8, top_k=5),) * 2, "top_k cuts the distribution"),
        ((SamplingParams(8, min_p=0.1),) * 2, "min_p cuts the distribution"),
        ((SamplingParams(8, 0.0),) * 2, "RL needs samples that differ"),
        ((SamplingParams(8, 0.7), SamplingParams(8, 0.9)), "samples of temperatures 0.7 to 0.9 in one step"),
        ((SamplingParams(8, 0.7, logprobs_of="raw"),) * 2, "log-probabilities before temperature"),
        ((SamplingParams(8), None), "does not say how it samples"),
    ],
)
def test_samples_whose_distribution_the_trainer_cannot_compute_are_refused(params, reason) -> None:
    group = flat_group([completion(PROMPT, RESPONSE, params=p) for p in params], [0.0, 1.0])
    with pytest.raises(UserError, match=re.escape(reason)):
        temperature_of([group])


def test_sampled_ids_without_log_probabilities_are_refused() -> None:
    bare = completion(PROMPT, (Segment(SegmentKind.SAMPLED, (5, 6)),))
    with pytest.raises(Unsupported, match="gives no log-probabilities"):
        temperature_of([flat_group([bare, bare], [0.0, 1.0])])


def test_the_temperature_is_that_of_the_samples() -> None:
    cold = dataclasses.replace(PARAMS, temperature=0.7)
    assert temperature_of([flat_group([completion(PROMPT, RESPONSE, params=cold)] * 2, [0.0, 1.0])]) == 0.7


# Credit -----------------------------------------------------------------------------------------------------------


def test_only_sampled_ids_are_trained_on_and_end_tokens_are_among_them() -> None:
    sample = flat([0.0, 1.0]).samples[0]
    credit = Credit.of_sample(sample, 2.0)
    assert credit.trained == (False, False, False, True, True, False, True, True)
    assert credit.values == (0.0, 0.0, 0.0, 2.0, 2.0, 0.0, 2.0, 2.0)
    assert not any(Credit.none(sample).trained)


def test_credit_may_differ_between_segments_and_between_tokens() -> None:
    sample = flat([0.0, 1.0]).samples[0]
    by_segment = Credit.of_segments(sample, [None, 0.5, 9.0, -0.5])
    assert by_segment.values == (0.0, 0.0, 0.0, 0.5, 0.5, 0.0, -0.5, -0.5)
    assert Credit.of_segments(sample, [1.0, None, 1.0, 0.0]).trained == (False,) * 6 + (True,) * 2
    by_token = Credit.of_tokens(sample, [1.0, 1.0, 1.0, 0.1, 0.2, 1.0, None, 0.4])
    assert by_token.values == (0.0, 0.0, 0.0, 0.1, 0.2, 0.0, 0.0, 0.4)
    assert by_token.trained == (False, False, False, True, True, False, False, True)


def test_what_is_recorded_of_a_credit_is_a_number_or_a_list_by_segment() -> None:
    sample = flat([0.0, 1.0]).samples[0]
    shown = [
        c.shown(sample.transcript)
        for c in (
            Credit.of_sample(sample, 2.0),
            Credit.none(sample),
            Credit.of_segments(sample, [None, 0.5, None, -0.5]),
            Credit.of_tokens(sample, [None, None, None, 0.1, 0.2, None, None, 0.4]),
        )
    ]
    assert shown == [2.0, 0.0, [None, 0.5, None, -0.5], [None, [0.1, 0.2], None, [None, 0.4]]]


@pytest.mark.parametrize(
    ("values", "reason"),
    [([0.0], "1 values for a transcript of 8 ids"), ([math.nan] * 8, "not finite"), ([math.inf] * 8, "not finite")],
)
def test_a_credit_that_makes_no_sense_is_refused(values, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        Credit.of_tokens(flat([0.0, 1.0]).samples[0], values)


# Estimators -------------------------------------------------------------------------------------------------------


@given(REWARDS)
@settings(max_examples=100, deadline=None)
def test_mean_only_advantages_sum_to_zero_and_skip_failed_judgements(rewards) -> None:
    (credits,) = MeanOnly()([flat(rewards)])
    judged = [r for r in rewards if r is not None]
    for reward, credit in zip(rewards, credits, strict=True):
        assert any(credit.trained) == (reward is not None and len(set(judged)) > 1)
    assert sum(c.values[3] for c in credits) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("reward", [0.9, 0.1, 1 / 3])
@pytest.mark.parametrize("estimator", [MeanOnly(), TreeMean()])
def test_a_group_of_equal_rewards_is_skipped_although_their_mean_is_rounded(estimator, reward) -> None:
    groups = [flat([reward] * n, name=f"p{n}") for n in range(2, 12)]
    credits = estimator(groups)
    assert not any(has_signal(g) for g in groups)
    batch = token_batch(groups, credits)
    assert not batch.mask_N.any()
    assert not batch.credit_N.any()


def test_a_reward_that_is_the_mean_of_a_mixed_group_is_trained_on_with_no_advantage() -> None:
    (credits,) = MeanOnly()([flat([0.0, 0.5, 1.0])])
    assert credits[1].values == (0.0,) * 8
    assert any(credits[1].trained)


@given(REWARDS)
@settings(max_examples=60, deadline=None)
def test_a_flat_group_is_a_tree_of_depth_one(rewards) -> None:
    group = flat(rewards)
    assert TreeMean()([group]) == MeanOnly()([group])


def test_a_step_of_a_tree_is_credited_with_what_it_did_to_the_mean_of_its_leaves() -> None:
    group = tree((1.0, 0.0, 0.0))
    first, second, other = TreeMean()([group])[0]
    half, third = 1 / 2, 1 / 3
    rise = half - third  # ids 10, 11 and 13: one step, since nothing branched in between
    assert first.values == pytest.approx((0.0, 0.0, 0.0, rise, rise, rise, 1.0 - half, 1.0 - half))
    assert second.trained == (False,) * 6 + (True,)  # the shared ids are trained on once
    assert second.values[-1] == pytest.approx(-half)
    assert other.values == pytest.approx((0.0, 0.0, 0.0, -third))


def test_shared_steps_are_trained_on_with_the_first_leaf_that_was_judged() -> None:
    first, second, other = TreeMean()([tree((None, 1.0, 0.0))])[0]
    assert not any(first.trained)
    assert second.trained == (False,) * 3 + (True,) * 4
    assert second.values[3:] == pytest.approx((0.5, 0.5, 0.5, 0.0))
    assert other.values[-1] == pytest.approx(-0.5)


def test_shared_steps_are_trained_on_with_a_leaf_that_may_be_trained_while_the_rewards_of_others_count() -> None:
    group = tree((1.0, 0.0, 0.0))
    cut = dataclasses.replace(
        group, samples=(dataclasses.replace(group.samples[0], truncated=True), *group.samples[1:])
    )
    first, second, other = TreeMean()([without_truncated(cut)])[0]
    whole = TreeMean()([group])[0]
    assert not any(first.trained)
    assert second.trained == (False,) * 3 + (True,) * 4
    assert second.values == (*whole[0].values[:6], whole[1].values[-1])
    assert other == whole[2]


def test_a_sample_that_is_not_trainable_counts_in_the_mean_and_not_in_the_loss() -> None:
    group = without_truncated(flat([0.0, 1.0], FinishReason.LENGTH))
    mixed = dataclasses.replace(group, samples=(group.samples[0], flat([0.0, 1.0]).samples[1]))
    (credits,) = MeanOnly()([mixed])
    assert not any(credits[0].trained)
    assert credits[1].values[3] == 0.5
    by_hand = Credit.of_sample(flat([0.0, 1.0]).samples[0], 1.0)
    with pytest.raises(ValueError, match="a sample that is not trainable"):
        token_batch([mixed], [[by_hand, credits[1]]])


# The batch --------------------------------------------------------------------------------------------------------


def test_a_batch_is_the_transcripts_end_to_end() -> None:
    groups = [flat([0.0, 1.0]), tree((1.0, 0.0, 0.0))]
    batch = token_batch(groups, [[Credit.of_sample(s, 1.0) for s in g.samples] for g in groups])
    transcripts = [s.transcript for g in groups for s in g.samples]
    assert batch.ids_N.tolist() == [i for t in transcripts for i in t.ids]
    assert batch.mask_N.tolist() == [m for t in transcripts for m in t.loss_mask]
    assert batch.logprobs_N.tolist() == pytest.approx([x for t in transcripts for x in t.logprobs])
    assert batch.lengths_B.tolist() == [8, 8, 8, 7, 4]
    assert batch.prompt_lengths_B.tolist() == [3] * 5
    assert batch.prompt_B.tolist() == [0, 0, 1, 1, 1]
    at, row = batch.trained(torch.tensor([4, 0]))
    assert batch.ids_N[at].tolist() == [12, 5, 6, 8, 1]
    assert row.tolist() == [4, 0, 0, 0, 0]


def test_samples_with_different_prompts_do_not_share_one() -> None:
    asked = [completion(p, (sampled((5,)),)) for p in ((2, 3), (2, 4), (2, 3))]
    group = flat_group(asked, [0.0, 1.0, 1.0])
    batch = token_batch([group], [[Credit.of_sample(s, 1.0) for s in group.samples]])
    assert batch.prompt_B.tolist() == [0, 1, 0]


def test_a_credit_for_what_was_not_sampled_is_refused() -> None:
    group = flat([0.0, 1.0])
    bad = Credit((1.0,) * 8, (True,) * 8)
    with pytest.raises(ValueError, match="train on sampled ids alone"):
        token_batch([group], [[bad, bad]])
    with pytest.raises(ValueError, match="one credit for each sample"):
        token_batch([group], [[Credit.none(group.samples[0])]])
