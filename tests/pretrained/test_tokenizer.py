"""Tokenizers: text to ids and back, end tokens, chat templates, files."""

import datetime
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings, strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from rlvr_jax.errors import UserError
from rlvr_jax.pretrained import tokenizer as T

from golden.cases import LINES, write_qwen2_tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MESSAGES = [{"role": "user", "content": "1 < 2 & \"é\"?"}]


def tiny_tokenizer(chat_template=None) -> T.Tokenizer:
    """All bytes, one merge, and a post-processor that would add a start token."""
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *ALPHABET, "ab"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return T.Tokenizer(backend, (2,), 0, chat_template, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})


TINY = tiny_tokenizer()


def folder(tmp_path, **files) -> Path:
    """The tiny tokenizer's folder with the given JSON files replaced (None: removed)."""
    T.save_tokenizer(TINY, tmp_path)
    for name, content in files.items():
        if content is None:
            (tmp_path / f"{name}.json").unlink()
        else:
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@given(st.text())
@settings(deadline=None)
def test_decoding_inverts_encoding(text):
    assert TINY.decode(TINY.encode(text)) == text


def test_special_tokens_are_recognised_in_text_but_never_added_and_ids_of_spare_embeddings_skipped():
    assert TINY.encode("ab") == [TINY.backend.token_to_id("ab")]
    assert TINY.encode("<s>ab</s>") == [1, TINY.backend.token_to_id("ab"), 2]
    assert TINY.decode(TINY.encode("<s>ab</s><pad>")) == "ab"
    assert TINY.decode([*TINY.encode("ab"), 99_999]) == "ab"


def test_json_round_trip_survives_serialisation():
    tokenizer = tiny_tokenizer("{{ bos_token }}")
    again = T.Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.to_json() == tokenizer.to_json()
    assert again.encode("<s> abé") == tokenizer.encode("<s> abé") and again.eos_ids == (2,)


@pytest.mark.parametrize("fields", [{}, {"backend": {}}, *(TINY.to_json() | x for x in ({"eos_ids": 3}, {"other": 1}))])
def test_json_of_anything_else_is_refused(fields):
    with pytest.raises(UserError, match="the checkpoint's tokenizer is damaged"):
        T.Tokenizer.from_json(fields)


@pytest.mark.parametrize("template", [None, "{{ bos_token }}é\n"])
def test_folder_round_trip(tmp_path, template):
    T.save_tokenizer(tiny_tokenizer("an older template"), tmp_path)
    T.save_tokenizer(tiny_tokenizer(template), tmp_path)
    assert T.load_tokenizer(tmp_path).to_json() == tiny_tokenizer(template).to_json()


@pytest.mark.parametrize("generation, config, own, expected", [
    ({"eos_token_id": [2, 1]}, {"eos_token_id": 0}, "</s>", (2, 1)), ({"eos_token_id": 1}, {}, "</s>", (2, 1)),
    ({}, {"eos_token_id": [1]}, "</s>", (2, 1)), ({"eos_token_id": 1}, {}, None, (1,)),
    ({}, {}, {"content": "</s>", "lstrip": False}, (2,))])
def test_a_completion_ends_at_any_declared_end_token(tmp_path, generation, config, own, expected):
    dir = folder(tmp_path, generation_config=generation, config=config, tokenizer_config={"eos_token": own})
    assert T.load_tokenizer(dir).eos_ids == expected


@pytest.mark.parametrize("settings, generation, expected", [
    ({"pad_token": "<pad>"}, {"pad_token_id": 1}, 0), ({}, {"pad_token_id": 1}, 1), ({}, {}, 2)])
def test_pad_id(tmp_path, settings, generation, expected):
    dir = folder(tmp_path, tokenizer_config=settings | {"eos_token": "</s>"}, generation_config=generation)
    assert T.load_tokenizer(dir).pad_id == expected


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path):
    dir = folder(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(dir / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    backend.save(str(dir / "tokenizer.json"))
    assert len(T.load_tokenizer(dir).encode("x" * 5)) == 5


def test_chat_template_of_the_folder(tmp_path):
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    dir = folder(tmp_path, tokenizer_config={"eos_token": "</s>", "chat_template": named})
    assert T.load_tokenizer(dir).chat_template == "d"
    (dir / "chat_template.jinja").write_text("file")
    assert T.load_tokenizer(dir).chat_template == "file"


@pytest.mark.parametrize("files, message", [
    ({"tokenizer": None}, "tokenizer.json is missing"),
    ({"tokenizer": {"half": "a file"}}, "tokenizer.json is not a readable tokenizer"),
    ({"tokenizer_config": {}, "generation_config": {}}, "names no end token"),
    ({"tokenizer_config": {"eos_token": "<nowhere>"}}, "names no end token")])
def test_folder_refusals(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as error:
        T.load_tokenizer(folder(tmp_path, **files))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("template, expected", [
    ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s>1 < 2 & \"é\"?</s>"),
    ("  {% for m in messages %}\n  {{ m.role }}\n  {% endfor %}\nx", "  user\nx"),  # lstrip_blocks and trim_blocks
    ("{{ messages | tojson }}", '[{"role": "user", "content": "1 < 2 & \\"é\\"?"}]'),
    ("{{ messages[0] | tojson(indent=1) }}", '{\n "role": "user",\n "content": "1 < 2 & \\"é\\"?"\n}'),
    ("{% for m in messages %}{% break %}{% endfor %}{{ add_generation_prompt }}{{ tools is none }}", "TrueTrue")])
def test_chat_templates_render_as_in_transformers(template, expected):
    assert tiny_tokenizer(template).render_chat(MESSAGES) == expected


# A template that writes a date as Llama 3.2's does, and one without a default date.
DATED = ("{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b "
         "%Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}Today: {{ date_string }}")
UNDATED = "{{ strftime_now('%Y-%m-%d %H:%M') }}"


def test_a_prompt_is_the_same_on_any_day(monkeypatch):
    class Tomorrow(datetime.datetime):
        now = classmethod(lambda cls, tz=None: cls(2031, 2, 3, 4, 5))
        today = utcnow = now

    def rendered(**date):
        templates = (DATED, UNDATED) if date else (DATED,)
        return [tiny_tokenizer(template).render_chat(MESSAGES, **date) for template in templates]

    for clock in (datetime.datetime, Tomorrow):
        monkeypatch.setattr(datetime, "datetime", clock)
        T.compile_template.cache_clear()
        assert rendered() == ["Today: 26 Jul 2024"]
        assert rendered(date="2025-01-31") == ["Today: 31 Jan 2025", "2025-01-31 00:00"]
    for template, date, says in ((UNDATED, "", "no default: give the date of all prompts, --prompt_date=YYYY-MM-DD$"),
                                 (DATED, "31.1.2025", "--prompt_date=31.1.2025 is not a date: write it as 2024-07-26"),
                                 ("no clock", "2025-01-31", "--prompt_date=2025-01-31: .* does not use a date")):
        with pytest.raises(UserError, match=says):
            tiny_tokenizer(template).render_chat(MESSAGES, date=date)


@pytest.mark.parametrize("template, message", [
    (None, "no chat template"), ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"), ("{{ messages.append(1) }}", "unsafe"),
    ("{% for %}", "template"), ("{% for i in range(10**12) %}{% endfor %}", "rejects these messages: Range too big"),
    ("{{ 1 // 0 }}", "rejects these messages"), ("{{ messages.nothing[0] }}", "rejects these messages"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "rejects these messages")])
def test_chat_refusals(template, message):
    with pytest.raises(UserError, match=message):
        tiny_tokenizer(template).render_chat(MESSAGES)


# ----- Qwen2.5-Math

@pytest.fixture(scope="module")
def qwen2(tmp_path_factory) -> T.Tokenizer:
    dir = tmp_path_factory.mktemp("qwen2")
    write_qwen2_tokenizer(dir, LINES)
    return T.load_tokenizer(dir)


SYSTEM = "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"


@pytest.mark.parametrize("turns, expected", [
    (["user:1+1?"], SYSTEM + "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"),
    (["system:Be brief.", "user:1+1?"],
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"),
    (["user:1+1?", "assistant: 2 ", "user:<b>"],
     SYSTEM + "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n 2 <|im_end|>\n"
     "<|im_start|>user\n<b><|im_end|>\n<|im_start|>assistant\n")])
def test_qwen2_math_chat(turns, expected, qwen2):
    messages = [dict(zip(("role", "content"), turn.split(":"))) for turn in turns]
    assert qwen2.render_chat(messages) == expected


def test_qwen2_layout(qwen2):
    ids = qwen2.encode("<|im_start|>user\n12 caf\u0065\u0301<|im_end|><tool_call>")
    tokens = [qwen2.backend.id_to_token(i) for i in ids]
    assert (tokens[0], tokens[-2:]) == ("<|im_start|>", ["<|im_end|>", "<tool_call>"])
    assert {"1", "2"} < set(tokens)  # every digit on its own
    assert qwen2.decode(ids) == "user\n12 caf\u00e9<tool_call>"  # composed (NFC), without special tokens
    end, turn_end = map(qwen2.backend.token_to_id, ("<|endoftext|>", "<|im_end|>"))
    assert (qwen2.pad_id, qwen2.eos_ids) == (end, (end, turn_end))
