"""What the benchmarks share: statistics, rows, processes over a pipe. The comparisons themselves are run by hand."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "workers")]

import _compare  # noqa: E402
import _limits  # noqa: E402
import _prompts  # noqa: E402
import _workers  # noqa: E402
import pipe  # noqa: E402

RATES = st.lists(st.floats(0.01, 1000), min_size=1, max_size=40)


@given(RATES)
def test_the_interval_of_a_median_holds_it_and_covers_what_it_says(values) -> None:
    e = _compare.median_interval(values)
    assert min(values) <= e.low <= e.value <= e.high <= max(values)
    assert e.n == len(values)
    assert (e.low, e.high) == (min(values), max(values)) or len(values) > 6


@pytest.mark.parametrize(("n", "k"), [(5, 1), (6, 1), (8, 1), (9, 2), (20, 6)])
def test_the_interval_takes_the_tables_order_statistics(n, k) -> None:
    """Conover, Practical Nonparametric Statistics (1999), §3.2: the sign test's intervals at 95 %."""
    e = _compare.median_interval([float(i) for i in range(1, n + 1)])
    assert (e.low, e.high) == (k, n + 1 - k)


def test_five_rounds_say_that_they_cover_less_than_95_percent() -> None:
    assert "93.8%" in _compare.median_interval([1.0, 2.0, 3.0, 4.0, 5.0]).method
    assert "96.9%" in _compare.median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).method


@given(RATES, st.floats(0.5, 2.0))
def test_a_drift_that_meets_both_sides_alike_leaves_the_ratio(rates, factor) -> None:
    e = _compare.paired_ratio([factor * r for r in rates], rates)
    assert e.value == pytest.approx(factor)
    assert e.low == pytest.approx(e.high)


def test_runs_that_are_not_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="not pairs"):
        _compare.paired_ratio([1.0, 2.0], [1.0])


def row(**changes) -> _compare.Row:
    facts = {"dtype": "float32", "mode": "default", "parity": 1e-5, "parity_limit": 1e-4}
    return _compare.compare("x", "tokens/s", [2.0, 4.0, 6.0], [1.0, 1.0, 2.0], better="more", **(facts | changes))


def test_more_than_one_is_better_for_ponder_whatever_the_unit() -> None:
    assert row().ratio == 3.0
    assert _compare.compare("x", "s", [1.0], [4.0], better="less").ratio == 4.0


def test_sides_take_turns() -> None:
    seen: list[tuple[str, int]] = []

    def side(name):
        return lambda r: float(len(seen.append((name, r)) or seen))

    found = _compare.alternate({"ours": side("ours"), "peer": side("peer")}, 2)
    assert seen == [("ours", 0), ("peer", 0), ("ours", 1), ("peer", 1)]
    assert found == {"ours": [1.0, 3.0], "peer": [2.0, 4.0]}


def test_settings_near_the_best_stay_and_the_best_median_counts() -> None:
    assert _compare.near_best({"a": 95.0, "b": 100.0, "c": 60.0}) == ["b", "a"]
    assert _compare.best_of({"a": [1.0, 9.0, 9.0], "b": [5.0, 5.0, 50.0]}) == "a"


def test_a_row_is_one_json_object_with_the_promised_fields() -> None:
    found = json.loads(_compare.json_line(row(details={"runs": [1.0]}), "a machine"))
    assert {"name", "ours", "peer", "ratio", "low", "high", "machine", "dtype", "mode", "parity"} <= set(found)
    assert (found["ours"], found["peer"], found["machine"]) == (4.0, 1.0, "a machine")
    assert (found["low"], found["high"]) == (2.0, 4.0)


@pytest.mark.parametrize("parity", [2e-4, math.nan])
def test_samples_without_the_trainers_log_probabilities_show_and_fail(parity, capsys) -> None:
    printer = _compare.Printer(as_json=False, machine="m")
    printer.show(row())
    assert printer.end() == 0
    printer.show(row(parity=parity))
    assert printer.end() == 1
    assert "FAILED" in capsys.readouterr().out
    assert not row(parity=parity, parity_limit=None).failed


def test_the_table_has_a_cell_for_each_heading(capsys) -> None:
    printer = _compare.Printer(as_json=False, machine="m")
    printer.show(row())
    printer.show(_compare.Row("alone", "GB/s", 12.3456))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "12.3" in lines[-1]


# Processes ------------------------------------------------------------------------------------------------------------

ECHO = """
import sys
sys.path.insert(0, {workers!r})
from pipe import serve
print("not for the pipe")
def echo(text):
    print("nor this")
    return {{"text": text}}
def fail():
    raise ValueError("too hot\\nand more")
serve({{"echo": echo, "fail": fail}})
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setattr(_workers, "SCRIPTS", tmp_path)
    (tmp_path / "echo.py").write_text(ECHO.format(workers=str(ROOT / "benchmarks" / "workers")))
    with _workers.Worker("a peer", "echo.py", tmp_path) as started:
        yield started


def test_a_worker_answers_and_what_it_prints_goes_to_its_log(worker) -> None:
    assert pipe.MARK == _workers.MARK
    assert worker.call("echo", text="ä") == {"text": "ä"}
    assert worker.call("echo", text="b") == {"text": "b"}
    assert "nor this" in worker.log.read_text()


def test_a_worker_that_fails_says_so_in_a_line_and_continues(worker) -> None:
    with pytest.raises(_workers.WorkerFailed, match=r"^a peer: ValueError: too hot$") as error:
        worker.call("fail")
    assert "Traceback" in error.value.output
    assert worker.call("echo", text="still here") == {"text": "still here"}


def test_a_worker_that_ends_is_named(worker, tmp_path) -> None:
    (tmp_path / "ends.py").write_text("import sys; sys.exit(3)")
    ends = _workers.Worker("a short one", "ends.py", tmp_path)
    with ends, pytest.raises(_workers.WorkerFailed, match="a short one ended with code 3"):
        ends.call("echo")


@pytest.mark.parametrize(
    ("python", "reason"),
    [(None, "give --vllm-python"), ("/no/such/python", "No such file"), (sys.executable, "no-such-package")],
)
def test_a_missing_peer_is_reported_in_one_line(python, reason) -> None:
    with pytest.raises(_workers.PeerMissing, match=reason) as missing:
        _workers.peer_versions(python, "--vllm-python", ("no-such-package",))
    assert "\n" not in str(missing.value)
    line = _compare.table_line(_compare.Row("64 concurrent, over vllm", "tokens/s", skipped=str(missing.value)))
    assert line.startswith("skipped: 64 concurrent, over vllm: ")


def test_the_versions_of_a_peer_are_those_of_its_python() -> None:
    import numpy

    assert _workers.peer_versions(sys.executable, "--peer-python", ("numpy",)) == {"numpy": numpy.__version__}


def test_unequal_work_is_refused() -> None:
    answer = pipe.timed(2.0, [7, 7, 7], 3, 7)
    assert (answer["seconds"], answer["tokens"]) == (2.0, 21)
    assert answer["peak_bytes"] > 0
    with pytest.raises(RuntimeError, match="2 responses instead of 3"):
        pipe.timed(2.0, [7, 14], 3, 7)
    # As many tokens in all, but not each.
    with pytest.raises(RuntimeError, match="2 responses have not 7 tokens; the first has 8"):
        pipe.timed(2.0, [7, 8, 6], 3, 7)


def test_workers_need_no_ponder_for_the_pipe() -> None:
    """Peers run it in environments without ponder."""
    tree = ast.parse(Path(pipe.__file__).read_text(encoding="utf-8"))
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {m.partition(".")[0] for m in modules} <= sys.stdlib_module_names


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "benchmarks").glob("[!_]*.py")))
def test_every_script_knows_quick(script) -> None:
    """`make bench ARGS=--quick` gives it to all of them."""
    assert 'add_argument("--quick"' in (ROOT / "benchmarks" / script).read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_the_peak_starts_again(tmp_path) -> None:
    """In a process of its own: a peak of 200 MB is forgotten, and that of the process that started it never counts."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(pipe.__file__).parent)!r})\n"
        "from pipe import forget_peak, peak_bytes\n"
        "x = bytearray(200 << 20); high = peak_bytes(); del x\n"
        "forget_peak(); print(high, peak_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    high, low = map(int, done.stdout.split())
    assert high > 200 << 20 > low


# What is measured -----------------------------------------------------------------------------------------------------


def test_prompts_have_the_length_asked_for_and_differ_from_the_first_tokens_on() -> None:
    from ponder.models.tiny import build_tokenizer
    from ponder.models.tokenizer import FastTokenizer

    tokenizer = FastTokenizer(build_tokenizer())
    found = _prompts.prompts(tokenizer, 3, 20, 50)
    assert {len(ids) for ids in found} == {50}
    assert len({tuple(ids[:12]) for ids in found}) == 20
    assert found == _prompts.prompts(tokenizer, 3, 20, 50)
    assert found != _prompts.prompts(tokenizer, 4, 20, 50)


def test_the_products_of_a_step_are_the_models_matrices() -> None:
    from ponder.models.tiny import architecture, new_model

    model, shape = new_model(0), architecture()
    products = _limits.Products.of(model.config)
    matrices = sum(p.numel() for p in model.module.parameters() if p.dim() == 2)
    assert shape.tie_word_embeddings
    assert products.weights == matrices
    limits = _limits.Limits(read_gbs=10.0, copy_gbs=10.0, gflops=100.0)
    assert limits.step_seconds(products, 1) == pytest.approx(4 * matrices / 10e9)
    assert limits.step_seconds(products, 1000) == pytest.approx(2000 * matrices / 100e9)


def test_operators_are_classified_by_name_and_by_the_vocabulary() -> None:
    from profile_step import kind_of

    assert kind_of("aten::addmm", [[4, 8], [8, 512]], 512) == "products"
    assert kind_of("aten::_scaled_dot_product_flash_attention_for_cpu", [[1, 2, 3, 4]], 512) == "attention"
    assert kind_of("aten::mul", [[4, 8]], 512) == "norm, rotary, activation"
    assert kind_of("aten::mul", [[4, 512]], 512) == "sampling"
    assert kind_of("aten::div_", [[4, 8, 64], [4, 8, 1]], 512) == "sampling"
    assert kind_of("aten::index_put_", [[4, 8]], 512) == "moving data"
    assert kind_of("aten::t", [[4, 8]], 512) == "moving data"
    assert kind_of("aten::trunc", [[4, 8]], 512) == "other operators"


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    from ponder.models.save import save
    from ponder.models.tiny import architecture, new_model

    shape = dataclasses.replace(architecture(), hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    return save(new_model(0, shape), tmp_path_factory.mktemp("model") / "tiny")


def test_ponders_side_of_the_engine_gives_every_token_and_agrees_with_the_trainer(tiny_folder) -> None:
    from ponder_engine import Side

    side = Side()
    assert side.open(str(tiny_folder), {"no_such": 1})["unknown"] == ["no_such"]
    assert side.open(str(tiny_folder), {})["unknown"] == []
    try:
        for n, together in ((1, True), (1, False), (3, True)):
            answer = side.generate([[30, 31, 32], [33, 34, 35]], 9, 5, n, together)
            assert answer["tokens"] == 2 * n * 9
            parity = side.parity()
            assert parity["tokens"] == 2 * n * 9
            assert parity["max"] < 1e-4
        assert side.parity(most_tokens=1)["tokens"] == 3 * 9
        side.last = [tuple(_shifted(c) for c in group) for group in side.last]
        assert side.parity()["max"] > 1e-3
    finally:
        side.engine.close_now()


def _shifted(completion):
    """As a sampler would return it whose log-probabilities are off."""
    (segment,) = completion.segments
    return dataclasses.replace(
        completion,
        segments=(dataclasses.replace(segment, logprobs=tuple(x - 0.01 for x in segment.logprobs)),),
    )


def test_ponders_side_of_an_rl_step_samples_the_forced_lengths_and_trains_on_all_of_them(tiny_folder, tmp_path) -> None:
    from ponder_rl import Side

    lengths = [[3, 5, 4, 8], [6, 2, 7, 4]]
    rows = [{"prompt": f"{i}?", "ids": [30 + i, 40], "lengths": lengths[i % 2]} for i in range(4)]
    file = tmp_path / "problems.json"
    file.write_text(json.dumps(rows))
    side = Side()
    side.open(str(tiny_folder), str(file), 2, 4, 1e-4, {})
    try:
        for _ in range(2):
            answer = side.step()
            assert answer["tokens"] == answer["trained_tokens"] == sum(map(sum, lengths))
            assert answer["mismatch_max"] < 1e-4
            phases = sum(answer[f"seconds_{p}"] for p in ("sample", "train", "publish"))
            assert 0 < phases <= answer["seconds"]
    finally:
        side.trainer.source.engine.close_now()
