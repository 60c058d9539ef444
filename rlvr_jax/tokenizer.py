"""Text to token ids and back, chat templates, and the three places a tokenizer lives.

A `Tokenizer` is a value: a `tokenizers` backend and the few facts that files keep beside it (what ends a completion,
what pads, how a chat is written). It travels inside every checkpoint as JSON, and is read from Hugging Face folders
and from GGUF files.
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
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from rlvr_jax.config import UserError

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers` backend and what the model's files say about it."""

    backend: tokenizers.Tokenizer
    eos_ids: tuple[int, ...]  # any of them ends a completion; the first is the tokenizer's own end token
    pad_id: int  # often one of `eos_ids`: masks must come from lengths, not from comparing with it
    chat_template: Optional[str]  # jinja2 source
    special: dict  # role -> text, e.g. {"eos_token": "<|im_end|>"}; the names a chat template may use


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text`. Special tokens written in it are recognised; none is added, not even a start token."""
    return tokenizer.backend.encode(text, add_special_tokens=False).ids


def decode(tokenizer: Tokenizer, ids) -> str:
    """Text of integer ids; special tokens, and ids that only the embedding knows, are skipped."""
    return tokenizer.backend.decode([int(i) for i in ids], skip_special_tokens=True)


def render_chat(tokenizer: Tokenizer, messages: list[dict], add_generation_prompt: bool = True) -> str:
    """Writes `[{"role": ..., "content": ...}, ...]` out with the model's template, as transformers renders it.

    Raises UserError if there is no template, or if the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template: use a plain prompt, or put the model's "
                        "chat_template.jinja in its folder")
    try:
        return compile_template(tokenizer.chat_template).render(
            messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None,
            **tokenizer.special)
    except jinja2.TemplateError as error:
        raise UserError(f"the model's chat template refuses these messages: {error}; use a plain prompt") from error


@functools.lru_cache
def compile_template(source: str) -> jinja2.Template:
    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    # Templates come with downloaded weights, hence the sandbox; jinja2's own tojson escapes HTML, which no model saw.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception,
                            "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
    return environment.from_string(source)


def to_json(tokenizer: Tokenizer) -> dict:
    fields = {f.name: getattr(tokenizer, f.name) for f in dataclasses.fields(tokenizer)}
    return fields | {"backend": json.loads(tokenizer.backend.to_str()), "eos_ids": list(tokenizer.eos_ids)}


def from_json(d: dict) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(json.dumps(d["backend"]))
    return Tokenizer(**d | {"backend": backend, "eos_ids": tuple(d["eos_ids"])})


def load_folder(dir) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face folder.

    A completion ends at the tokenizer's `eos_token` or at any `eos_token_id` of generation_config.json (config.json
    where that has none), which is the set vLLM stops at.

    Raises UserError if tokenizer.json is missing or unreadable, or if nothing names an end token.
    """
    dir = Path(dir)
    path = dir / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: re-save the model with transformers' AutoTokenizer.save_pretrained")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the only type this library raises
        raise UserError(f"{path} is not a readable tokenizer ({error}): copy it again") from error
    backend.no_truncation()
    backend.no_padding()
    settings, generation, config = (read_json(dir / name) if (dir / name).is_file() else {} for name in
                                    ("tokenizer_config.json", "generation_config.json", "config.json"))
    special = {role: token["content"] if isinstance(token, dict) else token
               for role, token in ((role, settings.get(role)) for role in ROLES) if token is not None}
    declared = next((d["eos_token_id"] for d in (generation, config) if d.get("eos_token_id") is not None), [])
    own = [backend.token_to_id(special["eos_token"])] if "eos_token" in special else []
    eos_ids = tuple(dict.fromkeys(own + (declared if isinstance(declared, list) else [declared])))
    if not eos_ids or None in eos_ids:
        raise UserError(f"{dir} names no end token that tokenizer.json has: set eos_token_id in generation_config.json")
    pad_id = backend.token_to_id(special["pad_token"]) if "pad_token" in special else generation.get("pad_token_id")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if (dir / "chat_template.jinja").is_file():
        template = (dir / "chat_template.jinja").read_text(encoding="utf-8")
    return Tokenizer(backend, eos_ids, eos_ids[0] if pad_id is None else pad_id, template, special)


def save_folder(tokenizer: Tokenizer, dir) -> None:
    """Writes what `load_folder` and transformers read: tokenizer.json, its two configs, the chat template."""
    dir = Path(dir)
    dir.mkdir(parents=True, exist_ok=True)
    tokenizer.backend.save(str(dir / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    generation = {"eos_token_id": list(tokenizer.eos_ids), "pad_token_id": tokenizer.pad_id}
    for name, content in {"tokenizer_config": settings | tokenizer.special, "generation_config": generation}.items():
        (dir / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    template = dir / "chat_template.jinja"  # overrides tokenizer_config.json everywhere, so an old one must not stay
    template.unlink(missing_ok=True)
    if tokenizer.chat_template is not None:
        template.write_text(tokenizer.chat_template, encoding="utf-8")


def byte_level(pattern: Optional[str] = None) -> pre_tokenizers.PreTokenizer:
    """Splits at `pattern` (GPT-2's if None), then spells the pieces in the byte alphabet."""
    if pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def tiktoken_pattern(digits: str) -> str:
    return (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


# tokenizer.ggml.pre, llama.cpp's name for how a vocabulary splits text -> the backend parts of that family's
# tokenizer.json. Llama 3 takes a whole word that is in the vocabulary even if its merges do not lead there.
FAMILIES = {
    "gpt2": {"pre_tokenizer": byte_level()},
    "smollm": {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])},
    "llama-bpe": {"pre_tokenizer": byte_level(tiktoken_pattern(r"\p{N}{1,3}")), "ignore_merges": True},
    "qwen2": {"pre_tokenizer": byte_level(tiktoken_pattern(r"\p{N}")), "normalizer": normalizers.NFC()},
}


def load_gguf(reader) -> Tokenizer:
    """Builds the tokenizer described by the `tokenizer.ggml.*` metadata of a `gguf.GGUFReader`.

    Raises UserError, naming it, for any vocabulary but byte-level BPE and any splitting rule not in `FAMILIES`.
    """
    def metadata(key, default=None):
        field = reader.fields.get(f"tokenizer.{key}")
        return default if field is None else field.contents()

    kind, pre = metadata("ggml.model"), metadata("ggml.pre")
    if kind != "gpt2" or pre not in FAMILIES:
        raise UserError(f"the GGUF's tokenizer (model {kind!r}, pre {pre!r}) is not supported, only model 'gpt2' with "
                        f"pre in {sorted(FAMILIES)}: use the model's Hugging Face folder")
    family, tokens = FAMILIES[pre], metadata("ggml.tokens")
    backend = tokenizers.Tokenizer(models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in metadata("ggml.merges")],
        ignore_merges=family.get("ignore_merges", False)))
    backend.pre_tokenizer, backend.decoder = family["pre_tokenizer"], decoders.ByteLevel()
    if "normalizer" in family:
        backend.normalizer = family["normalizer"]
    control, user_defined = 3, 4  # gguf.TokenType: both are matched whole in text, decoding skips only the first
    backend.add_tokens([tokenizers.AddedToken(token, special=token_type == control, normalized=False)
                        for token, token_type in zip(tokens, metadata("ggml.token_type", []))
                        if token_type in (control, user_defined)])
    ids = {role: metadata(f"ggml.{key}_token_id") for role, key in zip(ROLES, ("bos", "eos", "unknown", "padding"))}
    eos_ids = tuple(dict.fromkeys(i for i in (ids["eos_token"], metadata("ggml.eot_token_id"),
                                              metadata("ggml.eom_token_id")) if i is not None))
    if not eos_ids:
        raise UserError("the GGUF has no tokenizer.ggml.eos_token_id: use the model's Hugging Face folder")
    pad_id = eos_ids[0] if ids["pad_token"] is None else ids["pad_token"]
    return Tokenizer(backend, eos_ids, pad_id, metadata("chat_template"),
                     {role: tokens[i] for role, i in ids.items() if i is not None})


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): copy it again") from error
