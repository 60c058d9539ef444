"""Converts text to token ids and back, renders chat templates, and reads and writes tokenizer files.

A `Tokenizer` is immutable: a backend of the `tokenizers` library and a few settings from the model's files (end tokens,
padding, the chat template). Checkpoints store it as JSON; Hugging Face folders and GGUF files have their own formats.
"""

import dataclasses
import datetime
import functools
import json
from pathlib import Path
from typing import Optional

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tokenizers

from rlvr_jax.errors import UserError
from rlvr_jax.records import Rollouts
from rlvr_jax.runs.files import read_json, write_json

MOST_SPARE = 1024  # so many embeddings, or 5 % of them if that is more, may lack a token (Qwen2.5: 271 or 399)
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")  # of special tokens, as tokenizer_config.json names them


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A backend of the `tokenizers` library, end tokens, padding and chat template."""

    backend: tokenizers.Tokenizer
    eos_ids: tuple[int, ...]  # each ends a completion; the first is the tokenizer's own end token
    pad_id: int  # often one of `eos_ids`, so masks must come from lengths, not from comparisons with `pad_id`
    chat_template: Optional[str]  # jinja2 source
    special: dict  # name in ROLES -> text, e.g. {"eos_token": "<|im_end|>"}; variables of the chat template

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Special tokens in `text` are recognised; none are added, not even a start token."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def unknown_words(self, words) -> list[str]:
        """The `words` that a WordLevel or WordPiece tokenizer cannot encode; [] for other kinds: no word is unknown."""
        model = self.backend.model
        if not isinstance(model, (tokenizers.models.WordPiece, tokenizers.models.WordLevel)):
            return []
        missing = [word for word in words if self.backend.token_to_id(word) is None]
        if isinstance(model, tokenizers.models.WordPiece):  # can encode some words as several known pieces
            unknown_id = self.backend.token_to_id(model.unk_token)
            return [word for word in missing if unknown_id in self.encode(word)]
        return missing

    def decode(self, ids) -> str:
        """Text of token ids. Skips special tokens, and ids of spare embeddings, which have no token."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def decode_rollouts(self, rollouts: Rollouts) -> list[str]:
        """The text of each completion, without special tokens."""
        lengths = np.sum(rollouts.completion_mask, -1)
        return self.backend.decode_batch([row[:n].tolist() for row, n in zip(rollouts.completions, lengths)],
                                         skip_special_tokens=True)

    def render_chat(self, messages: list[dict], add_generation_prompt: bool = True, date: str = "") -> str:
        """Renders `messages`, `[{"role": ..., "content": ...}, ...]`, with the chat template, as transformers does on
        the day `date` (YYYY-MM-DD). Without `date` the template cannot ask for the date and uses its own default. With
        `add_generation_prompt` the text ends where the assistant's reply begins. Raises UserError if the template is
        missing or rejects `messages`, or if `date` is malformed, not used by the template, or needed but missing."""
        if self.chat_template is None:
            raise UserError("the tokenizer has no chat template: use a plain prompt, or put the model's "
                            "chat_template.jinja in its folder")
        try:
            clock = {"strftime_now": datetime.datetime.strptime(date, "%Y-%m-%d").strftime} if date else {}
        except ValueError:
            raise UserError(f"--prompt_date={date} is not a date: write it as 2024-07-26") from None
        if date and "strftime_now" not in self.chat_template:
            raise UserError(f"--prompt_date={date}: the model's chat template does not use a date: leave it out")
        try:
            return compile_template(self.chat_template).render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None,
                **self.special, **clock)
        except Exception as error:  # a template is a program, which can raise anything
            if isinstance(error, jinja2.UndefinedError) and "'strftime_now'" in str(error):
                raise UserError("the model's chat template writes the date into the prompt, and has no default: give "
                                "the date of all prompts, --prompt_date=YYYY-MM-DD") from error
            raise UserError(f"the model's chat template rejects these messages: {error}; use a plain prompt") from error

    def to_json(self) -> dict:
        return vars(self) | {"backend": json.loads(self.backend.to_str()), "eos_ids": list(self.eos_ids)}

    @classmethod
    def from_json(cls, fields: dict) -> "Tokenizer":
        """Restores a tokenizer from the result of `to_json`. Raises UserError for any other JSON."""
        try:
            backend = tokenizers.Tokenizer.from_str(json.dumps(fields["backend"]))
            return cls(**fields | {"backend": backend, "eos_ids": tuple(fields["eos_ids"])})
        except Exception as error:  # the library raises no narrower type
            raise UserError(f"the checkpoint's tokenizer is damaged ({error}): use another checkpoint") from error


@functools.lru_cache
def compile_template(source: str) -> jinja2.Template:
    """Compiles a chat template from its jinja2 source, with the functions and filters that transformers offers it."""
    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    # Templates come with downloaded weights, so they run in a sandbox. As in transformers, tojson does not escape HTML.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)


def load_tokenizer(dir) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face folder. As in vLLM, a completion ends at the tokenizer's `eos_token` or at
    any `eos_token_id` of generation_config.json or, if that file names none, of config.json. Raises UserError if
    tokenizer.json is missing or unreadable, if no file names an end token, or if tokenizer.json lacks an end token."""
    dir = Path(dir)
    path = dir / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: re-save the model with transformers' AutoTokenizer.save_pretrained")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"{path} is not a readable tokenizer ({error}): copy it again") from error
    backend.no_truncation()
    backend.no_padding()
    settings, generation, config = (read_json(dir / f"{name}.json", {}) for name in
                                    ("tokenizer_config", "generation_config", "config"))
    special = {role: settings[role] for role in ROLES if settings.get(role) is not None}
    special = {role: token["content"] if isinstance(token, dict) else token for role, token in special.items()}
    # The declared end token, an id or a list of ids, is that of generation_config.json; without it, of config.json.
    declared = next((d["eos_token_id"] for d in (generation, config) if d.get("eos_token_id") is not None), [])
    named = [backend.token_to_id(special["eos_token"])] if "eos_token" in special else []
    eos_ids = tuple(dict.fromkeys(named + (declared if isinstance(declared, list) else [declared])))
    if not eos_ids or None in eos_ids:
        raise UserError(f"{dir} names no end token that tokenizer.json has: set eos_token_id in generation_config.json")
    pad_id = backend.token_to_id(special["pad_token"]) if "pad_token" in special else generation.get("pad_token_id")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if (dir / "chat_template.jinja").is_file():
        template = (dir / "chat_template.jinja").read_text(encoding="utf-8")
    return Tokenizer(backend, eos_ids, eos_ids[0] if pad_id is None else pad_id, template, special)


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int, path) -> None:
    """Raises UserError, naming the model's `path`, if an end token is not in the tokenizer's vocabulary, if a token id
    has no row among the `vocab_size` embeddings, or if too many embeddings have no token. A few embeddings without a
    token are usual, as padding; with many more, the tokenizer belongs to another model."""
    ids, remedy = set(tokenizer.backend.get_vocab().values()), "take tokenizer and weights from the same model"
    if lost := [i for i in tokenizer.eos_ids if i not in ids]:
        raise UserError(f"{path}: the end token {lost[0]!r} is not an id of the tokenizer: correct eos_token_id in "
                        f"generation_config.json, or {remedy}")
    highest = max(*ids, tokenizer.pad_id)
    if not 0 < vocab_size - highest <= max(MOST_SPARE, vocab_size // 20):
        raise UserError(f"{path}: the tokenizer has ids up to {highest}, and the weights have {vocab_size} embeddings: "
                        f"{remedy}")


def save_tokenizer(tokenizer: Tokenizer, dir) -> None:
    """Writes tokenizer.json, tokenizer_config.json, generation_config.json and, for a tokenizer with a chat template,
    chat_template.jinja into the folder `dir`, which is created if it does not exist."""
    dir = Path(dir)
    dir.mkdir(parents=True, exist_ok=True)
    tokenizer.backend.save(str(dir / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    generation = {"eos_token_id": list(tokenizer.eos_ids), "pad_token_id": tokenizer.pad_id}
    for name, content in {"tokenizer_config": settings | tokenizer.special, "generation_config": generation}.items():
        write_json(dir / f"{name}.json", content)
    template = dir / "chat_template.jinja"  # overrides tokenizer_config.json, so an old file is removed
    template.unlink(missing_ok=True)
    if tokenizer.chat_template is not None:
        template.write_text(tokenizer.chat_template, encoding="utf-8")
