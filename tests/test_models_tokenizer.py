"""A text can forge no marker, whatever the tokenizer calls special, and no text raises."""

import copy
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from ponder.models.tiny import MARKERS, build_tokenizer
from ponder.models.tokenizer import FastTokenizer


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
