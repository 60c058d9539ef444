"""Logits, greedy tokens, token ids and rendered chats are those of transformers.

    python -m pytest tests/parity      # in an environment that also has torch, transformers and accelerate
"""

import datetime
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy
from tokenizers import pre_tokenizers

torch = pytest.importorskip("torch", reason="parity tests need torch and transformers")
transformers = pytest.importorskip("transformers", reason="parity tests need torch and transformers")

from rlvr_jax import adapters  # noqa: E402
from rlvr_jax.adapters import AdapterConfig  # noqa: E402
from rlvr_jax.pretrained import gguf_file, huggingface, loading  # noqa: E402
from rlvr_jax.pretrained import tokenizer as tokenizer_lib  # noqa: E402

from fixtures import read_jsonl, run  # noqa: E402
from golden.cases import (CONFIGS, LINES, QUESTIONS, greedy, logits, random_params, random_tokens,  # noqa: E402
                          write_gguf, write_qwen2_tokenizer)

pytestmark = pytest.mark.filterwarnings("default")  # their warnings are not ours to fix

COMMON = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
              max_position_embeddings=256)
STRETCH = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
THEIRS = {
    "llama": transformers.LlamaConfig(**COMMON, num_key_value_heads=2),
    "llama_tied": transformers.LlamaConfig(**COMMON, num_key_value_heads=1, tie_word_embeddings=True, head_dim=16),
    "llama_stretched": transformers.LlamaConfig(**COMMON, rope_parameters=dict(STRETCH), rms_norm_eps=1e-5),
    "qwen2": transformers.Qwen2Config(**COMMON, num_key_value_heads=2),
    "qwen2_tied": transformers.Qwen2Config(**COMMON, num_key_value_heads=4, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=16),
    "qwen3_tied": transformers.Qwen3Config(**COMMON, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True),
    "qwen3_stretched": transformers.Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=16,
                                                rope_parameters=dict(STRETCH))}
SMOLLM_SPLIT = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
# Uses what jinja2 does not have by itself: loop controls, strftime_now, tojson that leaves HTML alone, variables set
# in blocks.
HEADERS = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{% set rest = messages[1:] %}
{%- else %}
    {%- set system = 'Today: ' + strftime_now('%d %b %Y') %}{% set rest = messages %}
{%- endif %}
[system] {{ system }}
{% for message in rest %}
    {% if loop.index > 6 %}{% break %}{% endif %}
    {{- '[' + message.role + '] ' }}{{ message.content | tojson }}{% if not loop.last %}{{ eos_token }}{% endif %}

{% endfor %}
{% if tools is not none %}tools{% endif %}
{% if add_generation_prompt %}[assistant] {% endif %}
"""


def their_logits(model, rows) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(rows, dtype=torch.long)).logits.numpy()


def their_greedy(model, row, num_tokens: int) -> list[int]:
    row = torch.tensor([row], dtype=torch.long)
    out = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=num_tokens, do_sample=False,
                         eos_token_id=None, pad_token_id=0)
    return out[0, row.shape[1]:].tolist()


def random_model(config, seed=0):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # fresh biases are 0 and fresh norms 1, which would hide them
            parameter.normal_(mean=float(name.endswith("norm.weight")), std=0.2)
    return model


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
@pytest.mark.parametrize("name", THEIRS)
def test_reading_what_transformers_saved(name, shard_size, tmp_path):
    theirs = random_model(THEIRS[name])
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    config, params = huggingface.load_folder(tmp_path)
    rows = random_tokens(config, seed=1, length=96).tolist()
    np.testing.assert_allclose(logits(params, config, rows), their_logits(theirs, rows), atol=1e-4, rtol=0)
    ours = greedy(params, config, [row[:32] for row in rows], 64)
    np.testing.assert_array_equal(ours, [their_greedy(theirs, row[:32], 64) for row in rows])
    huggingface.save_folder(config, params, tmp_path / "out")
    before, after = ({name: x for path in dir.glob("*.safetensors") for name, x in
                      safetensors.numpy.load_file(path).items()} for dir in (tmp_path, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all((x.dtype, x.shape, x.tobytes()) == (after[name].dtype, after[name].shape, after[name].tobytes())
               for name, x in before.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [2**31, 2**14])
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_we_saved(name, shard_bytes, dtype, tmp_path):
    config, params = CONFIGS[name], random_params(CONFIGS[name], 0)
    huggingface.save_folder(config, params, tmp_path, dtype, shard_bytes)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert theirs.dtype == getattr(torch, dtype)
    theirs = theirs.to(torch.float32).eval()
    rows = random_tokens(config, seed=1, length=96).tolist()
    _, params = huggingface.load_folder(tmp_path)
    np.testing.assert_allclose(logits(params, config, rows), their_logits(theirs, rows), atol=1e-4, rtol=0)
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path / "again")
    again = huggingface.load_folder(tmp_path / "again")
    assert again[0] == config
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(again[1]), jax.tree.leaves(params), strict=True))


@pytest.mark.parametrize("name", ["llama_untied", "qwen2_tied", "qwen3_tied"])
def test_merged_lora_is_the_adapted_model(name, tmp_path):
    config, rng = CONFIGS[name], np.random.default_rng(0)
    params = adapters.add(AdapterConfig(trainable="lora", adapter_rank=3), random_params(config, 0), 0)
    trained, frozen = adapters.split(params)
    params = adapters.join(jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), trained), frozen)
    huggingface.save_folder(config, adapters.merge(params), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    rows = random_tokens(config, seed=1, length=32).tolist()
    ours = logits(params, config, rows)
    np.testing.assert_allclose(ours, their_logits(theirs, rows), atol=1e-4, rtol=0)
    assert np.abs(ours - logits(random_params(config, 0), config, rows)).max() > 0.01  # the adapter does something


LOCAL_TASK = """
task: ours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<eos>"], max_gen_toks: 10, do_sample: false}}
filter_list: [{{name: last, filter: [{{function: regex, regex_pattern: "answer (-?[0-9]+)", fallback: ""}},
                                     {{function: take_first}}]}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def test_lm_eval_generates_the_same_completions_from_an_exported_run(base, compiled, tmp_path, monkeypatch):
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    run("export", f"--model={base}", f"--out={tmp_path / 'exported'}", compiled=compiled, expect=0)
    run("evaluate", f"--model={base}", "--problems=arithmetic", "--num_ops=2", "--max_problems=24", "--max_new_tokens=10",
        f"--out={tmp_path / 'ours'}", compiled=compiled, expect=0)
    rows = read_jsonl(tmp_path / "ours" / "completions.jsonl")
    (tmp_path / "ours.yaml").write_text(LOCAL_TASK.format(file=tmp_path / "ours" / "completions.jsonl"))
    theirs = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(tmp_path / "exported"), "device": "cpu"}, tasks=["ours"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False), bootstrap_iters=0)
    assert [sample["resps"][0][0].strip() for sample in theirs["samples"]["ours"]] == [
        row["completion"].strip() for row in rows]
    assert theirs["results"]["ours"]["exact_match,last"] == np.mean([row["correct"] for row in rows])


def test_the_export_of_the_published_experiment(paper_run, paper_export):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(paper_export, dtype="auto").eval()
    ours, words = loading.load_model(str(paper_run)), transformers.AutoTokenizer.from_pretrained(paper_export)
    chat = [{"role": "user", "content": QUESTIONS[2]}]
    ids = ours.tokenizer.encode(ours.tokenizer.render_chat(chat))
    assert words.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == ids
    np.testing.assert_allclose(logits(ours.params, ours.config, [ids]), their_logits(theirs, [ids]), atol=1e-4, rtol=0)
    assert theirs.generation_config.eos_token_id == list(ours.tokenizer.eos_ids)


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied", "qwen2_tied", "qwen2_untied", "qwen3_tied",
                                  "qwen3_untied"])
def test_small_ggufs(name, tmp_path):
    pytest.importorskip("accelerate", reason="pip install accelerate: transformers reads no GGUF without it")
    config = CONFIGS[name]
    if config.qk_norm:  # transformers 5.23 assumes Qwen3's published head size instead of reading it
        config = replace(config, head_dim=128)
    write_gguf(tmp_path / "m.gguf", config, random_params(config, 0), name.split("_")[0])
    config, params, _ = gguf_file.load(tmp_path / "m.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    rows = random_tokens(config, seed=1, length=96).tolist()
    np.testing.assert_allclose(logits(params, config, rows), their_logits(theirs, rows), atol=1e-4, rtol=0)


# ----- SmolLM2

@pytest.fixture(scope="module")
def their_smollm2(smollm2_path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32).eval()


@pytest.fixture
def their_tokenizer(smollm2_path):
    return transformers.AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)


def test_smollm2(smollm2, their_smollm2):
    config, params, tokenizer = smollm2
    prompts = [tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": q}])) for q in QUESTIONS]
    gaps = [np.abs(logits(params, config, [row]) - their_logits(their_smollm2, [row])).max() for row in prompts]
    print(f"largest logit difference {max(gaps):.1e}")
    assert max(gaps) < 2e-2
    expected = [their_greedy(their_smollm2, row, 32) for row in prompts]
    np.testing.assert_array_equal(greedy(params, config, prompts, 32), expected)


def test_smollm2_exported_to_a_folder(smollm2, their_smollm2, their_tokenizer, tmp_path):
    config, params, tokenizer = smollm2
    huggingface.save_folder(config, params, tmp_path, shard_bytes=2**28)
    tokenizer_lib.save_tokenizer(tokenizer, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    rows = [tokenizer.encode(QUESTIONS[1])]
    np.testing.assert_allclose(their_logits(model, rows), their_logits(their_smollm2, rows), atol=1e-3, rtol=0)
    assert model.generation_config.eos_token_id == list(tokenizer.eos_ids)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token == "<|im_end|>" and theirs.chat_template == tokenizer.chat_template
    for line in LINES:
        assert theirs.encode(line, add_special_tokens=False) == tokenizer.encode(line)
        ids = tokenizer.encode(line)
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)


def test_greedy_answers_of_a_quantised_qwen_are_those_of_transformers_on_the_same_numbers(qwen_path, data):
    """The first three problems of GSM8K in the model's chat template, 256 tokens, float32."""
    config, params, tokenizer = gguf_file.load(qwen_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        qwen_path.parent, gguf_file=qwen_path.name, dtype=torch.float32).eval()
    asked = [row["question"] + " Put the final answer within \\boxed{}."
             for row in read_jsonl(data / "eval" / "gsm8k.jsonl")[:3]]
    prompts = [tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": text}])) for text in asked]
    ours = greedy(params, config, prompts, 256)
    for row, tokens in zip(prompts, ours.tolist()):
        end = next((i + 1 for i, token in enumerate(tokens) if token in tokenizer.eos_ids), 256)
        assert tokens[:end] == their_greedy(theirs, row, end)


# ----- text

def test_smollm2_tokenisation(smollm2, their_tokenizer, text_lines):
    """transformers 5.23 reads pre = "smollm" as GPT-2's splitting, where llama.cpp's definition and the model's own
    tokenizer.json isolate every digit first. With that put right, every line agrees; without, only lines in which
    a digit follows two blanks, or with numerals outside ASCII, may differ."""
    tokenizer, lines = smollm2[2], [*LINES, *text_lines]
    ours = [tokenizer.encode(line) for line in lines]
    as_read = [their_tokenizer.encode(line, add_special_tokens=False) for line in lines]
    differ = [line for line, a, b in zip(lines, ours, as_read) if a != b]
    print(f"{len(differ)} of {len(lines)} lines differ from transformers' unrepaired conversion")
    assert all(re.search(r"\s\s\d|[^\x00-\x7f]", line) for line in differ)
    their_tokenizer.backend_tokenizer.pre_tokenizer = SMOLLM_SPLIT
    assert ours == [their_tokenizer.encode(line, add_special_tokens=False) for line in lines]
    assert [tokenizer.decode(ids) for ids in ours] == [their_tokenizer.decode(
        ids, skip_special_tokens=True) for ids in ours]


@pytest.mark.parametrize("pre, tokenizer_class", [("qwen2", "Qwen2Tokenizer"), ("gpt2", "GPT2Tokenizer")])
def test_other_families_split_as_their_own_tokenizer(pre, tokenizer_class, smollm2_path, text_lines):
    import gguf
    fields = gguf.GGUFReader(smollm2_path).fields | {"tokenizer.ggml.pre": SimpleNamespace(contents=lambda: pre)}
    tokenizer = gguf_file.read_tokenizer(SimpleNamespace(fields=fields))
    model = json.loads(tokenizer.backend.to_str())["model"]
    theirs = getattr(transformers, tokenizer_class)(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])
    for line in [*LINES, *text_lines]:
        if "<|" not in line:
            ids = theirs.backend_tokenizer.encode(line, add_special_tokens=False).ids
            assert tokenizer.encode(line) == ids, line


@pytest.fixture(params=["smollm2", "headers", "qwen2_math"])
def tokenizer_pair(request, smollm2, their_tokenizer, text_lines, tmp_path):
    """(ours, transformers')"""
    if request.param == "qwen2_math":
        write_qwen2_tokenizer(tmp_path, text_lines, vocab_size=2000)
        return tokenizer_lib.load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    their_tokenizer.backend_tokenizer.pre_tokenizer = SMOLLM_SPLIT
    if request.param == "smollm2":
        return smollm2[2], their_tokenizer
    their_tokenizer.chat_template = HEADERS
    return replace(smollm2[2], chat_template=HEADERS), their_tokenizer


def test_chats_render_and_tokenise_alike(tokenizer_pair, text_lines):
    ours, theirs = tokenizer_pair
    rng, texts = np.random.RandomState(0), [*QUESTIONS, *LINES, *text_lines]
    today = str(datetime.date.today()) if "strftime_now" in ours.chat_template else ""  # transformers has a clock
    for _ in range(200):
        turns = [{"role": "system", "content": texts[rng.randint(len(texts))]}] * rng.randint(2)
        turns += [{"role": ("user", "assistant")[i % 2], "content": texts[rng.randint(len(texts))]}
                  for i in range(rng.randint(1, 9))]
        options = {"add_generation_prompt": bool(rng.randint(2))}
        text = ours.render_chat(turns, **options, date=today)
        assert text == theirs.apply_chat_template(turns, tokenize=False, **options)
        assert ours.encode(text) == theirs.apply_chat_template(turns, return_dict=False, **options)


def test_the_qwen2_layout_in_and_out(text_lines, tmp_path):
    write_qwen2_tokenizer(tmp_path / "a", text_lines, vocab_size=2000)
    tokenizer_lib.save_tokenizer(tokenizer_lib.load_tokenizer(tmp_path / "a"), tmp_path / "b")
    ours = tokenizer_lib.load_tokenizer(tmp_path / "b")
    for dir in (tmp_path / "a", tmp_path / "b"):
        theirs = transformers.AutoTokenizer.from_pretrained(dir)
        assert theirs.convert_tokens_to_ids([theirs.eos_token, theirs.pad_token]) == [ours.eos_ids[0], ours.pad_id]
        assert theirs.chat_template == ours.chat_template
        for line in [*LINES, *text_lines, "<|im_start|>user\n<tool_call>1<|fim_pad|><|im_end|>"]:
            ids = ours.encode(line)
            assert theirs.encode(line, add_special_tokens=False) == ids
            assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
