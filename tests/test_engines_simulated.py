import asyncio
import dataclasses
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import run

from ponder.budget.machine import MachineTime
from ponder.engines._deltas import total
from ponder.engines.reasoner import read_answer, right_answer, state, step_value
from ponder.engines.simulated import Simulated
from ponder.environments.selfcheck import self_check
from ponder.environments.simulated import Simulated as Problems
from ponder.errors import EngineClosed, PonderError, Unsupported, UserError
from ponder.protocols import Engine, Environment, Receipt
from ponder.registry import build
from ponder.responses import split_response
from ponder.search.strategies.best_of_n import mean_logprob
from ponder.types import (
    Completion,
    FinishReason,
    Message,
    Request,
    SamplingParams,
    Score,
    SegmentKind,
    Spend,
    Thinking,
)

ENV = Problems()
PROBLEM = ENV.problem("test", 5)
KEY = PROBLEM.public["key"]


def ask(max_tokens=1000, seed=0, n=1, prefix="", prompt=PROBLEM.prompt, **params):
    return Request(prompt, SamplingParams(max_tokens, seed=seed, **params), n, prefix)


def sample(options, request):
    return run(options.open().generate(request))


def answers(options, problems=150, n=8):
    """Whether each of `n` samples of each problem is right."""

    async def all_of_them():
        engine = dataclasses.replace(options, step_tokens=18, step_spread=0.0, ids=False).open()
        rows = []
        for i in range(problems):
            problem = ENV.problem("train", i)
            completions = await engine.generate(ask(5000, seed=i, n=n, prompt=problem.prompt))
            thought = engine.info.thought
            rows.append(
                [ENV.judge(problem, split_response(c.text, c.finish_reason, thought)).correct for c in completions]
            )
        return rows

    return run(all_of_them())


def test_it_keeps_the_protocols_and_is_found_by_name():
    assert isinstance(Simulated().open(), Engine)
    assert isinstance(build("environments", "simulated", {"noise": 0.5}), Environment)
    assert not self_check(ENV, "test", range(5))
    with pytest.raises(IndexError):
        Problems(count=3).problem("test", 3)


def test_responses_are_right_as_often_as_the_chain_of_steps_says():
    for options in (Simulated(steps=3, step_success=0.8), Simulated(steps=6, step_success=0.7, recover=0.3)):
        right = [r for row in answers(options) for r in row]
        assert statistics.mean(right) == pytest.approx(options.mind.accuracy, abs=0.06)
    assert Simulated(steps=3, step_success=0.8).mind.accuracy == pytest.approx(0.8**3)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_correlation_moves_error_from_responses_to_problems_and_leaves_their_mean(correlation):
    rows = answers(Simulated(steps=4, step_success=0.85, correlation=correlation), problems=250, n=4)
    mean = statistics.mean(r for row in rows for r in row)
    assert mean == pytest.approx(0.85**4, abs=0.09)
    # Two samples of a problem are both right with p² + ρ p (1 - p).
    both = statistics.mean(a and b for a, b, *_ in rows)
    assert both == pytest.approx(mean**2 + correlation * mean * (1 - mean), abs=0.08)


def test_wrong_answers_concentrate_on_the_favourite_of_their_problem():
    completions = sample(Simulated(step_success=0.5, favourite=0.6), ask(n=400))
    wrong = [a for c in completions if (a := read_answer(c.text)) != right_answer(KEY)]
    most = max(set(wrong), key=wrong.count)
    assert wrong.count(most) / len(wrong) == pytest.approx(0.6, abs=0.08)


@pytest.mark.parametrize("certainty", [0.0, 0.6])
def test_log_probabilities_correlate_with_being_right_as_stated(certainty):
    completions = sample(Simulated(steps=2, step_success=0.7, step_tokens=18, certainty=certainty), ask(n=800))
    right = [float(read_answer(c.text) == right_answer(KEY)) for c in completions]
    logprobs = [mean_logprob([c]) for c in completions]
    assert statistics.correlation(right, logprobs) == pytest.approx(certainty, abs=0.1)


def test_the_same_request_gives_the_same_and_another_seed_or_sample_another():
    first, again = (sample(Simulated(), ask(n=3, seed=4)) for _ in range(2))
    assert [c.ids for c in first] == [c.ids for c in again]
    assert len({c.text for c in (*first, *sample(Simulated(), ask(n=3, seed=5)))}) == 6
    greedy = sample(Simulated(), ask(n=3, temperature=0.0))
    assert len({c.text for c in greedy}) == 1


def test_instructions_around_a_problem_do_not_change_it():
    chat = (Message("system", "Think."), Message("user", f"Hello. {PROBLEM.prompt} Now."))
    options = Simulated(step_success=1.0)
    assert read_answer(sample(options, ask(prompt=chat))[0].text) == right_answer(KEY)
    ids = tuple(map(ord, PROBLEM.prompt))
    assert sample(options, ask(prompt=ids))[0].text == sample(options, ask())[0].text


requests = st.builds(
    lambda most, seed, n, stop, budget, low, cut: (most, seed, n, stop, budget, low, cut),
    st.integers(1, 300),
    st.integers(0, 5),
    st.integers(1, 3),
    st.sampled_from([(), ("\n",), ("</think>",), ("7",)]),
    st.none() | st.integers(0, 150),
    st.integers(0, 60),
    st.integers(0, 200),
)


@settings(max_examples=60, deadline=None)
@given(requests, st.booleans(), st.booleans())
def test_completions_keep_what_a_request_says(request, opened, by_ids):
    most, seed, n, stop, budget, low, cut = request
    options = Simulated(steps=4, step_tokens=25, opened=opened)
    (whole,) = sample(options, ask(5000, seed=9))
    prefix = whole.ids[:-1][: min(cut, most - 1)]
    thinking = None if budget is None else Thinking(budget, min(low, budget), "Wait")
    given_prefix = (
        prefix if by_ids else "".join(map(chr, prefix)).replace("\ue001", "<think>").replace("\ue002", "</think>")
    )
    engine = options.open()
    sent = ask(most, seed, n, given_prefix, stop=stop, thinking=thinking)
    completions = run(engine.generate(sent))
    assert len(completions) == n
    for i, c in enumerate(completions):
        assert len(c.ids) <= most
        assert c.ids[: len(prefix)] == prefix
        sampled = sum(len(s.ids) for s in c.segments if s.kind is SegmentKind.SAMPLED)
        forced = sum(len(s.ids) for s in c.segments if s.kind is SegmentKind.FORCED) - len(prefix)
        assert (c.spend.sampled_tokens, c.spend.forced_tokens) == (sampled, forced)
        assert c.spend.prompt_tokens + c.spend.cached_tokens == len(PROBLEM.prompt) + len(prefix)
        assert bool(c.spend.cached_tokens) == (i > 0)
        assert (c.finish_reason is FinishReason.LENGTH) == (len(c.ids) == most and not _ended(c, stop))
        assert all(len(s.logprobs) == len(s.ids) for s in c.segments if s.kind is SegmentKind.SAMPLED)
        if thinking is not None and len(prefix) <= budget and not stop:
            thought = c.text.partition("</think>")[0].replace("<think>", "")
            assert len(thought) <= budget
            if "</think>" in c.text and "</think>" not in whole.text[: len(prefix)]:
                assert len(thought) >= thinking.min_tokens
    assert engine.used == sum((c.spend for c in completions), Spend())


def _ended(completion: Completion, stop):
    after = "".join(map(chr, completion.ids)).replace("\ue002", "</think>")
    return completion.ids[-1] == 0xE000 or any(after.endswith(s) for s in stop)


def test_a_prefix_stays_right_or_wrong():
    always = Simulated(steps=3, step_success=1.0)
    right = f"step 1: {step_value(KEY, 1)} ....\nstep 2: {step_value(KEY, 2)} ...\n"
    wrong = right.replace(step_value(KEY, 2), "0000")
    for prefix, is_right in ((right, True), (wrong, False)):
        (c,) = sample(always, ask(prefix=prefix))
        assert c.text.startswith(prefix)
        assert (read_answer(c.text) == right_answer(KEY)) == is_right
        assert state(KEY, c.text) == (3, is_right)
    # A wrong chain may be put right again.
    (c,) = sample(Simulated(steps=3, step_success=1.0, recover=1.0), ask(prefix=wrong))
    assert read_answer(c.text) == right_answer(KEY)


def test_steps_can_be_grown_one_by_one_by_their_text():
    options, text = Simulated(steps=5, step_success=1.0), ""
    for step in range(1, 6):
        (c,) = sample(options, ask(prefix=text, stop=("\n",)))
        assert c.finish_reason is FinishReason.STOP
        text = c.text
        assert state(KEY, text) == (step, True)
    (c,) = sample(options, ask(prefix=text, stop=("\n",)))
    assert read_answer(c.text) == right_answer(KEY)


def test_a_longer_thought_is_right_more_often():
    shares = []
    for budget in (0, 90, 400):
        completions = sample(Simulated(steps=4, guess=0.7), ask(n=300, thinking=Thinking(budget)))
        shares.append(statistics.mean(read_answer(c.text) == right_answer(KEY) for c in completions))
    assert shares[0] + 0.1 < shares[1] + 0.05 < shares[2]


def test_a_partial_score_tells_right_from_wrong_as_well_as_its_noise_lets_it():
    right = split_response(f"step 1: {step_value(KEY, 1)} ...", FinishReason.LENGTH)
    wrong = split_response("step 1: 0000 ...", FinishReason.LENGTH)
    assert run(Problems(noise=0.0).scorer.score(PROBLEM, [right, wrong], None)) == (Score(1.0), Score(0.0))
    scorer = Problems(noise=0.5).scorer
    texts = [split_response(f"step 1: {step_value(KEY, 1)} {'.' * i}", FinishReason.LENGTH) for i in range(400)]
    scores = [scorer.value(PROBLEM, text) for text in texts]
    assert scores == [scorer.value(PROBLEM, text) for text in texts]
    assert statistics.mean(scores) == pytest.approx(1.0, abs=0.1)
    assert statistics.stdev(scores) == pytest.approx(0.5, abs=0.07)


def test_votes_and_the_checker_read_the_answer():
    response = split_response(
        f"hm</think>answer {right_answer(KEY)}", FinishReason.STOP, Simulated().open().info.thought
    )
    assert ENV.answers.extract(PROBLEM, response) == right_answer(KEY)
    assert ENV.checker(PROBLEM, response).correct
    assert not ENV.checker(PROBLEM, split_response("answer 1", FinishReason.STOP)).correct
    assert Problems(checked=False).checker is None


# Time ----------------------------------------------------------------------------------------------------------------


def test_a_call_takes_the_time_of_its_longest_sample():
    async def timed():
        loop = asyncio.get_running_loop()
        completions = await Simulated(tokens_per_second=100, latency=2).open().generate(ask(n=4))
        return loop.time(), completions

    seconds, completions = run(timed())
    assert seconds == pytest.approx(2 + max(len(c.ids) for c in completions) / 100)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("grace", [0.0, 0.5])
def test_a_cancelled_call_says_what_was_sampled_by_then(streamed, grace):
    options = Simulated(tokens_per_second=100, latency=1, grace=grace)
    whole = sample(options, ask(n=2))

    async def cut():
        engine, loop, receipt = options.open(), asyncio.get_running_loop(), Receipt()

        async def read():
            return [d async for d in engine.stream(ask(n=2), receipt)]

        task = asyncio.create_task(read() if streamed else engine.generate(ask(n=2), receipt))
        await asyncio.sleep(1.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert loop.time() == 1.5 + grace
        return engine, receipt

    engine, receipt = run(cut())
    tokens = int(50 + 100 * grace)
    assert [len(c.ids) for c in receipt.completions] == [tokens, tokens]
    assert {c.finish_reason for c in receipt.completions} == {FinishReason.CANCELLED}
    assert [c.ids for c in receipt.completions] == [c.ids[:tokens] for c in whole]
    assert receipt.spend == engine.used
    assert receipt.spend.device_seconds == pytest.approx(1.5 + grace)
    assert engine.in_flight == 0


@pytest.mark.parametrize("grace", [0.0, 0.5])
def test_a_stream_that_is_closed_says_what_was_sampled_while_its_reader_was_slow(grace):
    async def left():
        engine, receipt = Simulated(tokens_per_second=100, grace=grace).open(), Receipt()
        stream = engine.stream(ask(n=2), receipt)
        await anext(stream)
        await asyncio.sleep(0.5)
        await stream.aclose()
        return engine, receipt

    engine, receipt = run(left())
    tokens = int(32 + 50 + 100 * grace)
    assert [len(c.ids) for c in receipt.completions] == [tokens, tokens]
    assert receipt.spend == engine.used
    assert engine.in_flight == 0


def test_a_call_that_ends_well_settles_its_receipt():
    receipt = Receipt()
    completions = run(Simulated().open().generate(ask(n=2), receipt))
    assert (receipt.spend, receipt.completions) == (total(completions), completions)


def test_pieces_of_a_stream_make_up_its_completions():
    async def read(prefix):
        engine = Simulated().open()
        return [d async for d in engine.stream(ask(n=3, prefix=prefix))], await engine.generate(ask(n=3, prefix=prefix))

    for prefix in ("", "step 1: 0000 ...\n"):
        deltas, whole = run(read(prefix))
        for i, completion in enumerate(whole):
            mine = [d for d in deltas if d.sample == i]
            assert "".join(d.text for d in mine) == completion.text
            assert tuple(j for d in mine for j in d.ids) == completion.ids
            assert [d.completion.ids for d in mine if d.completion] == [completion.ids]


def test_failures_come_at_the_stated_rate_carry_what_was_used_and_are_the_same_each_time():
    async def calls():
        engine = Simulated(failure_rate=0.3, tokens_per_second=100).open()
        failed, spends = [], Spend()
        for seed in range(300):
            receipt = Receipt()
            try:
                await engine.generate(ask(seed=seed), receipt)
            except PonderError:
                failed.append(seed)
            spends += receipt.spend
        assert spends == engine.used
        return failed

    failed = run(calls())
    assert len(failed) == pytest.approx(90, abs=30)
    assert failed == run(calls())


def test_closing_ends_what_runs():
    async def closing():
        engine = Simulated(tokens_per_second=1).open()
        task = asyncio.create_task(engine.generate(ask()))
        await asyncio.sleep(1)
        await engine.close()
        with pytest.raises(EngineClosed):
            await task
        with pytest.raises(EngineClosed):
            await engine.generate(ask())

    run(closing())


@pytest.mark.parametrize(
    ("options", "request_", "reason"),
    [
        (Simulated(n=False), ask(n=2), "n = false"),
        (Simulated(prefix=False), ask(prefix="x"), "prefix = false"),
        (Simulated(thinking=False), ask(thinking=Thinking(3)), "thinking"),
        (Simulated(thought=False), ask(thinking=Thinking(3)), "thinking"),
        (Simulated(ids=False), ask(prompt=(65, 66)), "ids = false"),
        (Simulated(), ask(2, prefix="xx"), "nothing is left to sample"),
        (Simulated(context=50), ask(50), "context of 50"),
        (Simulated(), ask(n=0), "at least one"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_spent(options, request_, reason):
    engine = options.open()
    with pytest.raises(UserError, match=reason):
        run(engine.generate(request_))
    assert (engine.used, engine.calls) == (Spend(), 0)


@pytest.mark.parametrize(
    "values",
    [
        {"step_success": 1.5},
        {"recover": 0.95},
        {"certainty": 2.0},
        {"steps": 0},
        {"tokens_per_second": -1.0},
        {"failure_rate": float("nan")},
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(values):
    with pytest.raises(UserError, match=next(iter(values))):
        Simulated(**values)


def test_leases_are_counted_and_refused_where_there_are_none():
    async def hold(options):
        engine = options.open()
        async with engine.hold((1, 2)), engine.hold((1, 2)):
            assert engine.held == {(1, 2): 2}
        assert engine.held == {}

    run(hold(Simulated()))
    with pytest.raises(Unsupported, match="leases"):
        run(hold(Simulated(leases=False)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.integers(1, 5)), min_size=1, max_size=12))
def test_shares_of_a_machine_add_up_to_the_time_that_it_ran(calls):
    machine = MachineTime()
    events = sorted((t, kind, i) for i, (a, b, _) in enumerate(calls) for t, kind in ((min(a, b), 0), (max(a, b), 1)))
    begun, total, running, busy, last = {}, 0.0, 0, 0.0, 0.0
    for now, kind, i in events:
        busy += (now - last) if running else 0.0
        last = now
        rows = calls[i][2]
        if kind == 0:
            begun[i] = machine.begin(rows, now)
            running += 1
        else:
            total += rows * machine.end(rows, begun[i], now)
            running -= 1
    assert total == pytest.approx(busy, abs=1e-9)
    assert machine.idle
