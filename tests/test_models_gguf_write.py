"""A model that is exported as GGUF is the same model when it is opened again, for every family that runs natively."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ponder.cli import export
from ponder.engines.llamacpp import LlamaCpp
from ponder.errors import PonderError, Unsupported, UserError
from ponder.models import tiny
from ponder.models.base import LoadedModel
from ponder.models.decoder_config import DecoderConfig
from ponder.models.gguf import read_header
from ponder.models.gguf_tokenizer import HUGGINGFACE, KINDS, read_tokenizer, rebuilt
from ponder.models.gguf_vocabulary import TEXTS
from ponder.models.gguf_write import write_gguf
from ponder.models.load import load, resolve
from ponder.models.lora import LoraConfig, new_adapter
from ponder.models.save import save
from ponder.models.tokenizer import FastTokenizer

gguf = pytest.importorskip("gguf")
SIZES = (512, 32, 64, 2, 4, 2)
SHAPES = {
    "llama": DecoderConfig(*SIZES, 8, 256, tie_word_embeddings=True),
    "llama with biases": DecoderConfig(*SIZES, 8, 256, attention_bias=True, output_bias=True, mlp_bias=True),
    "mistral": DecoderConfig(*SIZES, 16, 256, model_type="mistral"),
    "qwen2": DecoderConfig(*SIZES, 8, 256, attention_bias=True, model_type="qwen2"),
    "qwen3": DecoderConfig(*SIZES, 16, 256, qk_norm=True, model_type="qwen3", tie_word_embeddings=True),
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROTARY = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 128},
}
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]


@torch.no_grad()
def model_of(shape: DecoderConfig) -> LoadedModel:
    """Random weights, norms and biases too."""
    model = tiny.new_model(0, dataclasses.replace(shape, initializer_range=0.2))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.module.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@torch.no_grad()
def logits(model: LoadedModel) -> torch.Tensor:
    ids = torch.arange(200).unsqueeze(0)
    return model.module.logits(model.module(ids))


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("family", SHAPES)
def test_the_weights_come_back_as_the_type_rounds_them(tmp_path: Path, family: str, kind: Any) -> None:
    before = model_of(SHAPES[family])
    assert write_gguf(before, tmp_path / "m.gguf", kind, name="m") is not None  # ponder-tiny's tokenizer
    after = load(str(tmp_path / "m.gguf"), device="cpu")
    exact = logits(before)
    theirs, ours = before.module.state_dict(), after.module.state_dict()
    assert ours.keys() == theirs.keys()
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    for name, weight in theirs.items():
        if weight.dim() == 1:
            rounded = weight.clone()
        elif kind == "f16":
            rounded = weight.half().float()
        else:
            rounded = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), q8_0), q8_0))
        assert torch.equal(ours[name], rounded), name
        weight.copy_(rounded)
    assert torch.equal(logits(after), logits(before))
    assert 0 < (logits(after) - exact).abs().max() / exact.abs().max() < (0.01 if kind == "f16" else 0.1)


@pytest.mark.parametrize("family", ["llama", "llama with biases", "qwen2"])
def test_transformers_reads_the_same_weights(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    before = model_of(SHAPES[family])
    write_gguf(before, tmp_path / "m.gguf", "f16", name="m")
    read = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="m.gguf", quantization_config=transformers.GgufConfig(dequantize=True)
    ).state_dict()
    for name, weight in before.module.state_dict().items():
        if name in read:
            assert torch.equal(read[name].float(), weight if weight.dim() == 1 else weight.half().float()), name
    assert "model.layers.1.self_attn.q_proj.weight" in read


@pytest.mark.parametrize("kind", ROTARY)
def test_scaled_rotary_embeddings_come_back(tmp_path: Path, kind: str) -> None:
    from ponder.models.rope import table

    shape = dataclasses.replace(SHAPES["llama"], head_dim=32, rope_scaling=ROTARY[kind])
    write_gguf(model_of(shape), tmp_path / "m.gguf", "f16", name="m")
    after = load(str(tmp_path / "m.gguf"), device="cpu")
    assert after.info.context == 256
    assert torch.allclose(after.module.rope_table, table(shape), atol=1e-4)


def test_templates_markers_and_ends_come_back(tmp_path: Path) -> None:
    before = tiny.new_model(3)
    write_gguf(before, tmp_path / "ponder-tiny.gguf", "f16", name="ponder-tiny")
    after = load(str(tmp_path / "ponder-tiny.gguf"), device="cpu", name=before.info.name)
    assert after.info == before.info
    assert after.info.thought is not None
    assert (after.end_ids, after.bos_id, after.pad_id) == (before.end_ids, before.bos_id, before.pad_id)
    assert after.special_tokens == before.special_tokens
    assert after.prompt_ids("Make 24 from 3 5 7 2.") == before.prompt_ids("Make 24 from 3 5 7 2.")
    for text in TEXTS:
        assert after.tokenizer.encode(text) == before.tokenizer.encode(text)


def with_tokenizer(model: LoadedModel, tokenizer: Any) -> LoadedModel:
    return dataclasses.replace(model, tokenizer=FastTokenizer(tokenizer), special_tokens={"eos_token": TOKENS[0]})


def byte_level(pre: str) -> Any:
    """A small byte-level BPE of this kind, with merges on which the kinds differ."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = ["Ã©", "Ġa", "ĊĊ", "12", "123", "ab", "ll", "'ll", "Ġ1"]
    tokens = [*TOKENS, *sorted(ByteLevel.alphabet()), *pieces]
    fields = {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["Ã ©", "Ġ a", "Ċ Ċ", "1 2", "12 3", "a b", "l l", "' ll", "Ġ 1"],
        "tokenizer.ggml.token_type": [3, 3, 3, 4] + [1] * (len(tokens) - 4),
    }
    header: Any = SimpleNamespace(path=Path("m.gguf"), architecture="llama", fields=fields)
    return rebuilt(header)


@pytest.mark.parametrize("pre", sorted(set(KINDS.values())))
def test_llama_cpp_gets_a_pre_tokenizer_that_gives_the_same_ids(tmp_path: Path, pre: str) -> None:
    before = with_tokenizer(model_of(SHAPES["llama"]), byte_level(pre))
    assert write_gguf(before, tmp_path / "m.gguf", "f16", name="m") is None
    header = read_header(tmp_path / "m.gguf")
    assert header.fields["tokenizer.ggml.model"] == "gpt2"
    tokens, kinds = (header.fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert len(tokens) == len(kinds) == SIZES[0]  # one for each embedding
    assert kinds[:4] == [3, 3, 3, 4]
    fields = {key: value for key, value in header.fields.items() if key != HUGGINGFACE}
    again = FastTokenizer(read_tokenizer(dataclasses.replace(header, fields=fields)))
    for text in [*TEXTS, "<think>12345 I'll a ab<|im_end|>\n\n\n7"]:
        assert again.encode(text) == before.tokenizer.encode(text)
        assert again.encode(text, special=True) == before.tokenizer.encode(text, special=True)
    if pre in ("smollm", "qwen2", "llama-bpe"):
        assert header.fields["tokenizer.ggml.pre"] == pre


def sentencepiece() -> Any:
    """A small BPE as that of Llama 2: spaces as a sign in front of words, bytes for what is unknown."""
    import tokenizers
    from tokenizers import decoders, models, normalizers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    letters = [*"\u2581abcdehlortw", "er", "he", "\u2581the", "\u2581t", "ll", "hell"]
    merges = [("e", "r"), ("h", "e"), ("\u2581", "t"), ("\u2581t", "he"), ("l", "l"), ("he", "ll")]
    vocab = {piece: i for i, piece in enumerate([*pieces, *letters])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def test_sentencepiece_is_written_with_scores_in_the_order_of_its_merges(tmp_path: Path) -> None:
    before = with_tokenizer(model_of(SHAPES["llama"]), sentencepiece())
    assert write_gguf(before, tmp_path / "m.gguf", "f16", name="m") is None
    fields = read_header(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"]
    score = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"], strict=True))
    assert score["er"] > score["he"] > score["\u2581t"] > score["\u2581the"] > score["ll"] > score["hell"] > score["a"]
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds[:4] == [2, 3, 3, 6]
    after = load(str(tmp_path / "m.gguf"), device="cpu")
    for text in ("the hell", "tell her\u00e9", "  two"):
        assert after.tokenizer.encode(text) == before.tokenizer.encode(text)


def test_what_gguf_cannot_hold_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    def refused(shape: DecoderConfig, says: str, **rotary: Any) -> None:
        with pytest.raises(UserError, match=says):
            write_gguf(model_of(dataclasses.replace(shape, rope_scaling=rotary)), tmp_path / "m.gguf", "f16", name="m")
        assert list(tmp_path.iterdir()) == []

    refused(SHAPES["llama"], "settings of YaRN", **ROTARY["yarn"], attention_factor=2.0)
    refused(SHAPES["llama"], "low_freq_factor 1", **{**ROTARY["llama3"], "low_freq_factor": 2.0})
    large = model_of(SHAPES["llama"])
    with torch.no_grad():
        large.module.model.embed_tokens.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"'token_embd.weight' holds values above 65504, which F16"):
        write_gguf(large, tmp_path / "m.gguf", "f16", name="m")
    assert list(tmp_path.iterdir()) == []
    write_gguf(large, tmp_path / "m.gguf", "q8_0", name="m")  # its scale is 1e5 / 127
    with pytest.raises(Unsupported, match="convert_hf_to_gguf"):
        write_gguf(dataclasses.replace(large, module=torch.nn.Linear(1, 1)), tmp_path / "n.gguf", "f16", name="m")


def test_export_writes_a_folder_with_the_file_or_the_file_alone(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert export.main(["ponder-tiny", "out", "--gguf", "q8_0"]) == 0
    said = capsys.readouterr()
    assert "out/out-Q8_0.gguf" in said.out
    assert "no tokenizer like that of ponder-tiny" in said.err
    assert resolve("out").where == "out/out-Q8_0.gguf"
    assert export.main(["ponder-tiny", "m.gguf", "--gguf", "f16", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == "m.gguf"
    assert said["bytes"] == Path("m.gguf").stat().st_size > Path("out/out-Q8_0.gguf").stat().st_size
    with pytest.raises(UserError, match="which reads its own"):
        LlamaCpp().open("m.gguf")
    for args, says in (
        (["m.gguf", "--gguf", "f16"], "exists already"),
        (["n.gguf"], "--gguf f16 or --gguf q8_0"),
        (["none/n.gguf", "--gguf", "f16"], "its folder does not exist"),
        (["n", "--gguf", "f16", "--dtype", "bfloat16"], "give one of the two"),
        (["n.gguf", "--gguf", "f16", "--push", "a/b"], "uploads a folder"),
    ):
        with pytest.raises(UserError, match=says):
            export.main(["ponder-tiny", *args])


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    base = save(model_of(SHAPES["qwen3"]), tmp_path / "base")
    model = load(str(base), device="cpu")
    new_adapter(model, LoraConfig(4, 8.0, ("q_proj", "down_proj"), base=str(base)), 1)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if name.endswith("adapter.B"):
                parameter.normal_(generator=torch.Generator().manual_seed(2))
    save(model, tmp_path / "lora")
    assert export.main([str(tmp_path / "lora"), str(tmp_path / "m.gguf"), "--gguf", "f16"]) == 0
    after = load(str(tmp_path / "m.gguf"), device="cpu")
    assert torch.allclose(logits(after), logits(model), atol=0.05)
    assert not torch.allclose(logits(after), logits(load(str(base), device="cpu")), atol=0.5)


class Hub:
    """A stand-in for the API of the hub: what it was asked to do, and an error if it is to fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    def whoami(self) -> dict[str, str]:
        self.calls.append(("whoami", {}))
        return {"name": "me"}

    def create_repo(self, repository: str, **options: Any) -> str:
        self.calls.append(("create_repo", {"repository": repository, **options}))
        return f"https://hub/{repository}"

    def upload_folder(self, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        files = sorted(p.name for p in Path(options["folder_path"]).iterdir())
        self.calls.append(("upload_folder", {**options, "files": files}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    stand_in = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return stand_in


def test_only_a_push_that_is_asked_for_reaches_the_hub(tmp_path: Path, hub: Hub, capsys) -> None:
    assert export.main(["ponder-tiny", str(tmp_path / "a")]) == 0
    assert hub.calls == []
    assert export.main(["ponder-tiny", str(tmp_path / "b"), "--push", "me/tiny"]) == 0
    assert "on the hub: https://hub/me/tiny" in capsys.readouterr().out
    (_, made), (_, sent) = hub.calls[1:]
    assert (made["repository"], made["private"], made["exist_ok"]) == ("me/tiny", True, True)
    assert sent["repo_id"] == "me/tiny"
    assert {"config.json", "model.safetensors", "tokenizer.json", "checksums.json"} <= set(sent["files"])
    assert export.main(["ponder-tiny", str(tmp_path / "c"), "--gguf", "f16", "--push", "me/tiny-gguf"]) == 0
    assert hub.calls[-1][1]["files"] == ["c-F16.gguf"]


def test_a_push_that_cannot_be_is_one_sentence(tmp_path: Path, hub: Hub, monkeypatch) -> None:
    import huggingface_hub

    with pytest.raises(UserError, match="give OWNER/NAME"):
        export.main(["ponder-tiny", str(tmp_path / "a"), "--push", "tiny"])
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        export.main(["ponder-tiny", str(tmp_path / "a"), "--push", "me/tiny"])
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(hub, "whoami", lambda: (_ for _ in ()).throw(ConnectionError("no route")))
    with pytest.raises(PonderError, match=r"could not be reached .ConnectionError: no route"):
        export.main(["ponder-tiny", str(tmp_path / "a"), "--push", "me/tiny"])
    assert not (tmp_path / "a").exists()  # nothing is made before the login is known to work


def test_what_was_written_stays_when_the_upload_fails(tmp_path: Path, hub: Hub) -> None:
    hub.error = RuntimeError("too large")
    hub.error.response = SimpleNamespace(status_code=403)  # type: ignore[attr-defined]
    with pytest.raises(PonderError, match=r"may not write there.*is written, upload it later with: hf upload me/tiny"):
        export.main(["ponder-tiny", str(tmp_path / "a"), "--push", "me/tiny"])
    assert load(str(tmp_path / "a"), device="cpu").info.parameters


def test_an_adapter_without_a_base_on_the_hub_is_not_pushed(tmp_path: Path, hub: Hub) -> None:
    base = save(model_of(SHAPES["llama"]), tmp_path / "base")
    model = load(str(base), device="cpu")
    new_adapter(model, LoraConfig(4, 8.0, ("q_proj",), base=str(base)), 1)
    save(model, tmp_path / "lora")
    with pytest.raises(UserError, match="not on the hub, so nobody else could load it: give --merge"):
        export.main([str(tmp_path / "lora"), str(tmp_path / "a"), "--push", "me/lora"])
    assert not (tmp_path / "a").exists()
    assert export.main([str(tmp_path / "lora"), str(tmp_path / "a"), "--merge", "--push", "me/lora"]) == 0
