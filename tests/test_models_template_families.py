"""Templates in the style of model families give what transformers gives for the same messages, and forge nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from ponder.errors import UserError
from ponder.models.provenance import OWN, Traced, joined, origin, own, plain
from ponder.models.template import ChatTemplate, _convention, _rendered, encode_chat, render
from ponder.models.tokenizer import FastTokenizer, Piece
from ponder.types import Message

transformers = pytest.importorskip("transformers")

# Qwen3: an old thought is cut, the last one of a turn with tools stays; the role is joined to a marker.
QWEN3 = """
{%- set ns = namespace(last=0) %}
{%- for m in messages[::-1] %}
    {%- set i = messages | length - 1 - loop.index0 %}
    {%- if ns.last == 0 and m.role == 'user' and m.content is string and not (m.content.startswith('<tool>') and m.content.endswith('</tool>')) %}
        {%- set ns.last = i %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + m.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ m.role ~ '\\n' ~ content ~ '<|im_end|>' ~ '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""  # noqa: E501

# Llama 3: contents are trimmed, the system turn is taken out and has the date.
LLAMA3 = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" + "Date: " + strftime_now("%d %b %Y") + "\\n\\n" + system + "</s>" }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '</s>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}
"""

PHI3 = (
    "{% for message in messages %}{% if message['role'] in ['system', 'user'] and message['content'] %}"
    "{{ '<|' ~ message['role'] ~ '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

# Gemma: roles are checked and renamed, the system turn is put before the first user's.
GEMMA = """
{{ bos_token }}
{%- if messages[0].role == 'system' -%}
    {%- set first = messages[0].content + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}{%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message.role == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}{{ 'never' }}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# DeepSeek-R1: an old thought is cut at its end, and the prompt opens one.
R1 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system_prompt='', is_first=true) %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{%- if ns.is_first %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first=false %}"
    "{%- else %}{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{%- endif %}"
    "{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|Assistant|>' + content + eos_token }}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)

# Mistral: the system turn goes into the last user's, by a loop over pairs and a macro.
MISTRAL = """
{%- macro said(text, closes=false) -%}{{ ' ' + text.strip() + (eos_token if closes else '') }}{%- endmacro -%}
{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n') -%}
{{- bos_token -}}
{%- for message in messages | rejectattr('role', 'equalto', 'system') -%}
    {%- if message.role == 'user' -%}
        {{- '[INST]' -}}
        {%- if loop.last and system -%}{{ said(system) ~ '\\n\\n' }}{%- endif -%}
        {{- said(message.content) + '[/INST]' -}}
    {%- elif message.role == 'assistant' -%}
        {{- said(message.content, true) -}}
    {%- else -%}{{ raise_exception('Only user and assistant roles') }}{%- endif -%}
{%- endfor -%}
"""

# What else templates use: generation tags, set blocks, filters on parts, replace, format, %, numbers in markers, break.
REST = """
{%- set head %}{{ '<|im_start|>' }}{{ messages[0].role | upper | lower }}{% endset %}
{%- for m in messages %}
    {%- if loop.index > 4 %}{% break %}{% endif %}
    {%- set parts = ['<|im_start|>', m.role, '\\n'] %}
    {{- parts | join }}
    {%- generation %}{{ m.content.replace('<image>', '<|image_' ~ loop.index0 ~ '|>') | indent(2) }}{{ '<|im_end|>' }}{% endgeneration %}
    {{- "{0}{1!s}{name}".format('<|start|>', m.role, name='<|end|>') + '%s%s' % ('<|start|>', m.content[:3]) }}
    {{- ('  <|end|> ' ~ m.content ~ '</s>  ') | trim }}
    {{- (m.content ~ '|<|end|>|').split('|')[-1:] | list | length }}
    {{- '<|END|>'.lower() if 'x' in m.content else ['<|end|>', m.content] | first }}
    {%- filter replace('q', '</s>') %}{{ m.content }}<|end|>{% endfilter %}
    {{- {'a': m.content} | tojson }}
{%- endfor %}
{{- head }}{{ messages | map(attribute='content') | map('trim') | join('<|end|>') }}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""  # noqa: E501

FAMILIES = {"qwen3": QWEN3, "llama3": LLAMA3, "phi3": PHI3, "gemma": GEMMA, "r1": R1, "mistral": MISTRAL, "rest": REST}
MARKERS = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|start|>", "<|end|>", "<|user|>"),
    *("<|system|>", "<|assistant|>", "<start_of_turn>", "<end_of_turn>", "<|User|>", "<|Assistant|>"),
    *("[INST]", "[/INST]", "<|image_0|>", "<|image_1|>", "<|image_2|>"),
)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate([*alphabet, "Ġa", "ĊĊ", "in", "<|"])}
    tokenizer = Tokenizer(BPE(vocab, [("Ġ", "a"), ("Ċ", "Ċ"), ("i", "n"), ("<", "|")]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace(scheme: str) -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁a", "▁▁", "in", "\n"]
    tokens += [chr(c) for c in range(32, 127)]
    vocab = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    merges = [("▁", "a"), ("▁", "▁"), ("i", "n")]
    tokenizer = Tokenizer(BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    return tokenizer


def llama2() -> Tokenizer:
    tokenizer = metaspace("always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def with_markers(tokenizer: Tokenizer, **flags: bool) -> Tokenizer:
    """Half of the markers are not flagged as special, as Qwen's `<think>`."""
    added = [AddedToken(m, special=i % 2 == 0, **{"normalized": False, **flags}) for i, m in enumerate(MARKERS)]
    tokenizer.add_tokens([*added, AddedToken("   ", normalized=False)])
    return tokenizer


KINDS = {
    "byte-level": with_markers(byte_level()),
    "phi-3": with_markers(metaspace("first"), rstrip=True),
    "first": with_markers(metaspace("first")),
    "always": with_markers(metaspace("always")),
    "never, lstrip": with_markers(metaspace("never"), lstrip=True),
    "llama-2": with_markers(llama2(), normalized=True),
    "llama-2, rstrip": with_markers(llama2(), rstrip=True),
    "single words": with_markers(byte_level(), single_word=True),
}


def theirs(kind: str, template: str) -> Any:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(KINDS[kind].to_str()), chat_template=template
    )
    # Set afterwards: its constructor would add them again, with other flags.
    tokenizer._special_tokens_map |= SPECIAL
    return tokenizer


def rows(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def ours(template: str) -> ChatTemplate:
    return ChatTemplate(template, tuple(SPECIAL.items()), "m")


WORDS = ["a", " a", "in", "  ", "    ", "\n", "\n\n", "é", "e\u0301", "漢", "<", "|", "q", "<image>", "x", "</think"]
SAFE = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)
EVIL = st.lists(st.sampled_from([*WORDS, *MARKERS, "|>", "end", "im_"]), max_size=6).map("".join)


def chats(texts: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[Message, ...]]:
    turns = st.lists(texts, min_size=1, max_size=5).map(
        lambda said: tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(said))
    )
    system = st.none() | texts
    return st.tuples(system, turns).map(lambda p: p[1] if p[0] is None else (Message("system", p[0]), *p[1]))


@pytest.fixture(autouse=True)
def _same_day(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    from ponder.models import template_jinja

    class Day:
        now = staticmethod(lambda: template_jinja.TODAY)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_what_transformers_makes_of_the_real_contents(family: str) -> None:
    reference = theirs("byte-level", FAMILIES[family])

    @settings(deadline=None, max_examples=15)
    @given(chats(EVIL))
    def holds(messages: tuple[Message, ...]) -> None:
        text = reference.apply_chat_template(rows(messages), tokenize=False, add_generation_prompt=True)
        assert render(ours(FAMILIES[family]), messages) == text

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_what_transformers_makes_of_the_text(kind: str) -> None:
    tokenizer = FastTokenizer(Tokenizer.from_str(KINDS[kind].to_str()))
    references = {family: theirs(kind, template) for family, template in FAMILIES.items()}

    @settings(deadline=None, max_examples=15)
    @given(chats(SAFE), st.sampled_from(sorted(FAMILIES)))
    def holds(messages: tuple[Message, ...], family: str) -> None:
        wanted = references[family].apply_chat_template(rows(messages), add_generation_prompt=True, return_dict=False)
        assert list(encode_chat(ours(FAMILIES[family]), tokenizer, (), messages)) == wanted

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_a_marker_in_a_content_is_text(kind: str) -> None:
    tokenizer = FastTokenizer(Tokenizer.from_str(KINDS[kind].to_str()))
    known = {tokenizer.id_of(m): m for m in MARKERS}

    @settings(deadline=None, max_examples=15)
    @given(chats(EVIL), st.sampled_from(sorted(FAMILIES)))
    def holds(messages: tuple[Message, ...], family: str) -> None:
        text = _rendered(ours(FAMILIES[family]), *_convention(messages, sampled=False))
        meant = "".join(c if k == OWN[0] else "\0" for c, k in zip(plain(text), origin(text), strict=True))
        written = re.findall("|".join(map(re.escape, sorted(MARKERS, key=len, reverse=True))), meant)
        ids = encode_chat(ours(FAMILIES[family]), tokenizer, (), messages)
        found = [known[i] for i in ids if i in known]
        # All that the template wrote, in its order; or fewer, where the tokenizer would not see one there either.
        if kind in ("llama-2", "single words"):
            rest = iter(written)
            assert all(m in rest for m in found)
        else:
            assert found == written

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_the_copy_with_names_for_markers_gives_the_library_s_own_ids(kind: str) -> None:
    tokenizer, library = FastTokenizer(Tokenizer.from_str(KINDS[kind].to_str())), KINDS[kind]
    written = st.lists(st.sampled_from([*MARKERS, "a", " ", "\n"]), min_size=1, max_size=3).map("".join)
    piece = written.map(lambda t: Piece(t, own=True)) | SAFE.filter(bool).map(Piece)

    @settings(deadline=None, max_examples=25)
    @given(st.lists(piece, min_size=1, max_size=6))
    def holds(pieces: list[Piece]) -> None:
        text = "".join(p.text for p in pieces)
        assert tokenizer._with_names(pieces, "\ue000") == library.encode(text, add_special_tokens=False).ids

    holds()


def test_a_thought_of_an_earlier_turn_is_cut_and_a_marker_that_stays_is_text() -> None:
    tokenizer = FastTokenizer(Tokenizer.from_str(KINDS["byte-level"].to_str()))
    chat = (Message("user", "1+1?"), Message("assistant", "<think>\nhm\n</think>\n\n2"), Message("user", "</think>?"))
    for template, written in ((QWEN3, "<|im_start|>assistant\n2<|im_end|>"), (R1, "<|Assistant|>\n\n2</s>")):
        text = render(ours(template), chat)
        assert "hm" not in text
        assert written in text
        ids = encode_chat(ours(template), tokenizer, (), chat)
        assert ids.count(tokenizer.id_of("</think>")) == 0
        assert tokenizer.decode(ids) == text


def test_a_response_is_continued_by_its_ids_in_every_family() -> None:
    for kind in ("byte-level", "phi-3", "first"):
        tokenizer = FastTokenizer(Tokenizer.from_str(KINDS[kind].to_str()))
        for family, end in (("qwen3", "<|im_end|>"), ("phi3", "<|end|>"), ("r1", "</s>"), ("llama3", "</s>")):
            end_id = tokenizer.id_of(end)
            assert end_id is not None
            sampled = (*tokenizer.encode("2 <b>", continues=True), end_id)
            asked = (Message("user", "in <s>"),)
            said = Message("assistant", tokenizer.decode(sampled[:-1]), ids=sampled)
            template = ours(FAMILIES[family])
            before = encode_chat(template, tokenizer, (end_id,), asked) + sampled
            for ids in (sampled, sampled[:-1]):
                after = encode_chat(
                    template,
                    tokenizer,
                    (end_id,),
                    (*asked, Message("assistant", said.content, ids=ids), Message("user", "a")),
                )
                assert after[: len(before)] == before, (kind, family)


EVERYTHING_ELSE = (
    "{{ messages[0].content | title }}{{ messages[0].content | wordwrap(5) }}{{ messages[0].content | truncate(6) }}",
    "{{ messages | tojson(indent=2) }}{{ messages[0] }}{{ messages[0].items() | list }}{{ dict(b='a') }}",
    "{{ messages[0].content | safe }}{{ ('<|x|>' | safe) + messages[0].content }}{{ messages[0].content | escape }}",
    "{{ messages[0].content | list | reverse | join('-') }}{% for c in messages[0].content %}{{ c }}|{% endfor %}",
    "{{ 3 * '<x>' }}{{ -1 }}{{ 1.5 }}{{ true }}{{ none }}{{ messages[0].nope }}{{ documents is defined }}",
    "{{ '{} and {:>10} {!r}'.format(messages[0].content, messages[0].content, 'a') }}{{ '{:{}>9}'.format('a', '|') }}",
    "{{ '%05d' % 3 }}{{ '%(a)s' % {'a': 'z'} }}{{ '%s' % messages[0].content }}{{ '100%%' % () }}{{ '%*d' % (5, 3) }}",
    "{% autoescape true %}{{ messages[0].content }}<b>{{ '<x>' ~ messages[0].content }}{% endautoescape %}",
    "{{ messages[0].content | urlencode }}{{ messages[0].content | striptags }}{{ messages[0].content | pprint }}",
    "{{ messages[0].content[0] }}{{ messages[0].content[-3:] }}{{ messages[0].content[100] }}{{ 'o' in 'hello' }}",
    "{{ messages[0].content.translate({72: 'J'}) }}{{ messages[0].content.zfill(20) }}{{ ' '.join(['a', 'b']) }}",
    "{% macro f(x, y='d') %}[{{ x }}{{ y }}{{ caller() if caller }}]{% endmacro %}{% call f('a') %}in{% endcall %}",
)


@pytest.mark.parametrize("template", EVERYTHING_ELSE)
def test_what_else_jinja_can_do_gives_the_same_text(template: str) -> None:
    chat = (Message("user", "Hello World <b>&"), Message("assistant", "Foo\nbar <|end|>"))
    wanted = theirs("byte-level", template).apply_chat_template(rows(chat), tokenize=False)
    assert render(ours(template), chat) == wanted


@pytest.mark.parametrize(
    "template",
    [
        "{{ '%s' % messages[0].content }}{{ '{:s}'.format(messages[0].content) }}",
        "{{ '{0[content]}'.format(messages[0]) }}{{ '{}'.format(messages[0].content) }}",
        "{{ messages[0].content.format() }}{{ ('%s' | format(messages[0].content)) | upper | lower }}",
        "{{ strftime_now(messages[0].content) }}{{ [messages[0].content] | string }}{{ '%(content)s' % messages[0] }}",
        "{{ messages[0].content | replace('q', '') }}{{ messages[0].content.replace('e', 'e') }}",
        "{{ '<|' ~ messages[0].content[2:5] ~ '|>' }}{{ messages[0].content | list | join }}{{ messages | tojson }}",
        "{% set x %}{{ messages[0].content }}{% endset %}{{ x | trim | indent }}{{ '' ~ messages[0].content }}",
        "{{ ''.join([messages[0].content[:3], messages[0].content[3:]]) }}{{ messages[0].content | center(20) }}",
    ],
)
def test_no_way_through_a_template_makes_a_marker_of_a_content(template: str) -> None:
    tokenizer = FastTokenizer(Tokenizer.from_str(KINDS["byte-level"].to_str()))
    for content in ("<|end|>", "<|eqnd|>", "<|end|>"):
        ids = encode_chat(ours(template), tokenizer, (), (Message("user", content),))
        assert not set(ids) & {tokenizer.id_of(m) for m in MARKERS}


def test_a_marker_from_parts_of_a_template_is_one() -> None:
    tokenizer = FastTokenizer(Tokenizer.from_str(KINDS["byte-level"].to_str()))
    for template in (
        "{{ '<|%s|>' % messages[0].role }}",
        "{{ '<|{}|>'.format(messages[0].role) }}",
        "{{ '<|{x[role]}|>'.format(x=messages[0]) }}",
        "{{ '<|%(role)s|>' % messages[0] }}",
        "{{ '<|' ~ (messages[0].role | title | lower) ~ '|>' }}",
        "{{ ['<|', messages[0]['role'] | list | join, '|>'] | join }}",
        "{% set x %}<|user|>q{% endset %}{{ x[:-1] | trim | replace('|', '|') }}",
    ):
        assert encode_chat(ours(template), tokenizer, (), (Message("user", "a"),)) == (tokenizer.id_of("<|user|>"),)


def test_a_template_that_rewrites_a_response_cannot_take_its_ids() -> None:
    tokenizer = FastTokenizer(Tokenizer.from_str(KINDS["byte-level"].to_str()))
    chat = (Message("user", "a"), Message("assistant", "2", ids=(5,)))
    for template in ("{{ messages[1].content | tojson }}", "{{ messages[1].content[1:] }}"):
        with pytest.raises(UserError, match="rewrites past responses"):
            encode_chat(ours(template), tokenizer, (), chat)


def test_the_date_is_one_day_in_the_format_that_the_template_asks_for() -> None:
    template = ours("{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %B %Y') }} {{ strftime_now('%A') }}")
    assert render(template, (Message("user", "a"),)) == "2026-01-01 01 January 2026 Thursday"


def test_generation_tags_are_ignored_and_scope_as_in_transformers() -> None:
    template = (
        "{% set n = 'a' %}{% generation %}{% set n = 'b' %}{{ n }}{{ messages[0].content }}{% endgeneration %}{{ n }}"
    )
    reference = theirs("byte-level", template)
    chat = (Message("user", "hi"),)
    assert render(ours(template), chat) == reference.apply_chat_template(rows(chat), tokenize=False)


def test_a_refusal_of_the_template_is_given_in_its_words() -> None:
    with pytest.raises(UserError, match="refused the messages: Conversation roles must alternate"):
        render(ours(GEMMA), (Message("user", "a"), Message("user", "b")))


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{{ 'a'.index('b') }}", "{{ x.y.z }}", "{% if %}"]
)
def test_a_template_that_fails_is_one_sentence(template: str) -> None:
    with pytest.raises(UserError, match="the chat template of m failed: "):
        render(ours(template), (Message("user", "hi"),))


# The text with provenance ---------------------------------------------------------------------------------------------

PART = st.tuples(st.text("aA .|%{}\nßé", max_size=4), st.booleans())
TRACED = st.lists(PART, max_size=4).map(lambda p: joined(own(t) if o else Traced(t) for t, o in p))
CALLS = {
    "strip": lambda t: t.strip(),
    "strip chars": lambda t: t.strip("a."),
    "split": lambda t: t.split(),
    "split once": lambda t: t.split(None, 1),
    "rsplit": lambda t: t.rsplit(None, 1),
    "split at": lambda t: t.split("a"),
    "rsplit at": lambda t: t.rsplit("a.", 1),
    "splitlines": lambda t: t.splitlines(),
    "splitlines with ends": lambda t: t.splitlines(True),
    "partition": lambda t: t.partition("a"),
    "rpartition": lambda t: t.rpartition("a"),
    "replace": lambda t: t.replace("a", "bb"),
    "replace some": lambda t: t.replace("a", "", 1),
    "replace nothing": lambda t: t.replace("", "-"),
    "removeprefix": lambda t: t.removeprefix("a"),
    "removesuffix": lambda t: t.removesuffix("."),
    "slice": lambda t: t[1:-1],
    "step": lambda t: t[::-2],
    "item": lambda t: t[-1:] + (t[0] if t else ""),
    "repeat": lambda t: 2 * t,
    "upper": lambda t: t.upper(),
    "title": lambda t: t.title(),
    "casefold": lambda t: t.casefold(),
    "center": lambda t: t.center(9, "*"),
    "join": lambda t: t.join(["a", t, "b"]),
    "letters": lambda t: list(t),
    "add": lambda t: "a" + t + "b",
    "percent": lambda t: "%s|%5s" % (t, t),  # noqa: UP031
}


@settings(max_examples=300)
@given(TRACED, st.sampled_from(sorted(CALLS)))
def test_a_traced_text_does_what_a_text_does(text: Traced, call: str) -> None:
    found, wanted = CALLS[call](text), CALLS[call](plain(text))
    assert found == wanted
    for piece in [found] if isinstance(found, str) else found:
        assert len(origin(piece)) == len(piece)
        # Nothing from outside becomes the template's own.
        assert OWN in origin(text) or OWN not in origin(piece)


@given(st.lists(PART, max_size=5), st.data())
def test_where_a_character_is_from_follows_it(parts: list[tuple[str, bool]], data: st.DataObject) -> None:
    # Each origin has letters of its own, so that the origin of every character is seen in it.
    text = joined(own(re.sub(r"\S", "O", t)) if o else Traced(re.sub(r"\S", "x", t)) for t, o in parts)
    call = data.draw(st.sampled_from([c for c in CALLS if c not in ("casefold", "add", "join", "center", "percent")]))
    found = CALLS[call](text)
    for piece in [found] if isinstance(found, str) else found:
        for letter, kind in zip(plain(piece), origin(piece), strict=True):
            if letter in "Oo":
                assert kind == OWN[0] or call == "replace nothing"
            elif letter in "xX":
                assert kind != OWN[0]
