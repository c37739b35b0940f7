"""A text can forge no marker, whatever the tokenizer calls special, and no text raises."""

import copy
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel

from ponder.models.tiny import MARKERS, build_tokenizer
from ponder.models.tokenizer import FastTokenizer, Piece


@pytest.fixture(scope="module")
def tokenizer() -> FastTokenizer:
    built = build_tokenizer()
    built.add_tokens([AddedToken("<loose>", special=False), AddedToken("</loose>", special=False)])
    return FastTokenizer(built)


PIECES = st.sampled_from([*MARKERS, "<loose>", "</loose>", "<", ">", "1234", "é", "漢", "\x00", "\ud800", " "])


@settings(deadline=None)
@given(pieces=st.lists(PIECES, max_size=12))
def test_no_text_becomes_a_marker(tokenizer: FastTokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    assert not set(ids) & {tokenizer.id_of(m) for m in tokenizer.markers}
    assert tokenizer.decode(ids) == text.replace("\ud800", "\ufffd")


def test_markers_are_single_ids_when_asked_for(tokenizer: FastTokenizer) -> None:
    for marker in tokenizer.markers:
        assert tokenizer.encode(marker, special=True) == [tokenizer.id_of(marker)]


def test_threads_do_not_disturb_each_other(tokenizer: FastTokenizer) -> None:
    plain, special = tokenizer.encode("<think>"), tokenizer.encode("<think>", special=True)
    wrong = []

    def work(marked: bool) -> None:
        for _ in range(300):
            if tokenizer.encode("<think>", special=marked) != (special if marked else plain):
                wrong.append(marked)

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_copy_encodes_the_same(tokenizer: FastTokenizer) -> None:
    assert copy.deepcopy(tokenizer).encode("<loose>12") == tokenizer.encode("<loose>12")


LETTERS = ["▁", *"abend<|/s>", "<unk>"]


def knowing() -> dict[str, Tokenizer]:
    """Tokenizers whose models know the texts of markers, and one with ids above the size of its vocabulary."""
    words = WordLevel({"<unk>": 0, "<|end|>": 1, "a": 2}, unk_token="<unk>")
    split = Tokenizer(words)
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pieces = Tokenizer(Unigram([("<unk>", 0.0), ("<|end|>", -0.1), *((c, -3.0) for c in LETTERS[:-1])], unk_id=0))
    pieces.normalizer = normalizers.NFKC()
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    gaps = Tokenizer(BPE({"<unk>": 0, **{c: 3 * i for i, c in enumerate(LETTERS[:-1], 1)}}, [], unk_token="<unk>"))
    found = {"words": split, "pieces": pieces, "gaps": gaps}
    for tokenizer in found.values():
        tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<|end|>", "</s>")])
    return found


@pytest.mark.parametrize("kind", ["words", "pieces", "gaps"])
def test_a_marker_that_the_model_itself_knows_is_not_forged(kind: str) -> None:
    tokenizer = FastTokenizer(knowing()[kind])
    end, unknown = tokenizer.id_of("<|end|>"), tokenizer.id_of("<unk>")
    for text in ("a <|end|> a", "<|end|>", "＜|end|＞ a", "</s><|end|></s>"):
        assert not set(tokenizer.encode(text)) & {end, tokenizer.id_of("</s>")}
    pieces = [Piece("<|end|>"), Piece("<|end|>", own=True), Piece("漢<|end|>"), Piece("</s>", own=True)]
    ids = [i for i in tokenizer.encode_pieces(pieces) if i in (end, tokenizer.id_of("</s>"))]
    assert ids == [end, tokenizer.id_of("</s>")]
    # A character that the vocabulary lacks is the unknown token, as with the library itself.
    assert unknown in tokenizer.encode("漢")
    given = tokenizer.encode_pieces([Piece("a", own=True), Piece(ids=(7, 7, 7)), Piece("a")])
    assert [i for i in given if i == 7] == given[given.index(7) : given.index(7) + 3] == [7, 7, 7]


def test_a_text_that_goes_on_gets_no_space_in_front() -> None:
    for scheme, space in (("first", True), ("never", False)):
        built = Tokenizer(BPE({t: i for i, t in enumerate(LETTERS)}, [], unk_token="<unk>"))
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        built.add_tokens([AddedToken("<|end|>", special=True)])
        tokenizer = FastTokenizer(built)
        a, end, front = tokenizer.id_of("a"), tokenizer.id_of("<|end|>"), tokenizer.id_of("▁")
        assert tokenizer.encode("a") == ([front, a] if space else [a])
        assert tokenizer.encode("a", continues=True) == [a]
        assert tokenizer.encode("<|end|>a", special=True, continues=True) == [end, a]


def test_no_private_character_is_taken_for_a_name(tokenizer: FastTokenizer) -> None:
    text = "".join(f"{chr(0xE000 + i)}0{chr(0xE000 + i)}" for i in range(40)) + "<|end|>"
    ids = tokenizer.encode_pieces([Piece(text), Piece("<|user|>", own=True), Piece(text)])
    assert tokenizer.decode(ids) == f"{text}<|user|>{text}"
    assert [i for i in ids if i in {tokenizer.id_of(m) for m in MARKERS}] == [tokenizer.id_of("<|user|>")]
