"""Other packages that `bench` times, used as their documentation shows, with the same shapes and random weights."""

import importlib.metadata
import importlib.util
import queue
import threading
from typing import Callable, Optional

import numpy as np

from rlvr_jax.bench import bench_work as work
from rlvr_jax.errors import UserError


def version(peer: str) -> str:
    text = f"{peer} {importlib.metadata.version(peer)}"
    if peer == "transformers":
        import torch
        text += f", torch {torch.__version__} with {torch.get_num_threads()} threads"
    return text


def torch_model(shape):
    """Returns a transformers model of a ModelConfig's sizes, with random weights. UserError if not installed."""
    if not importlib.util.find_spec("transformers"):
        raise UserError("--against needs transformers and torch: pip install -e '.[parity]'")
    import transformers
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.d_model, intermediate_size=shape.d_ff,
        num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads, max_position_embeddings=shape.max_seq_len, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=0))


class Transformers:
    """The side "transformers": sampling by `generate` and gradients by `backward`, without an optimiser's update."""

    def __init__(self, config):
        import torch
        self.torch = torch
        self.model = torch_model(work.shape_of(config)).eval()

    def make(self, name: str, config) -> Optional[Callable[[], None]]:
        """Returns the call that is timed as the case `name`; None for a case that is not timed on this side."""
        if name in ("sampling", "first", "tail"):
            return self.make_sampler(config, work.lengths_of(name, config))
        return self.make_gradient() if name in ("rows", "shared") else None

    def make_sampler(self, config, lengths) -> Callable[[], None]:
        torch, size = self.torch, config.prompt_tokens
        ids, lengths = torch.tensor(work.prompt_of(config))[None], torch.tensor(lengths)
        def has_ended(seen, scores, **_):  # bool[rows], true at a row's length; `generate` continues the other rows
            return lengths <= seen.shape[1] - size  # seen: token ids [rows, prompt and completion so far]

        def generate():
            with torch.no_grad():
                self.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0,
                                    num_return_sequences=len(lengths), max_new_tokens=int(lengths.max()),
                                    stopping_criteria=[has_ended])
        return generate

    def make_gradient(self) -> Callable[[], None]:
        ids = self.torch.tensor(np.random.default_rng(0).integers(0, 49_152, (work.ROWS, work.TOKENS)))
        def backward():
            self.model.train()
            self.model.zero_grad()
            self.model(ids, labels=ids).loss.backward()
            self.model.eval()
        return backward


class TRL:
    """The side "trl": whole steps of `GRPOTrainer`, which runs in a thread and waits for a call before each step."""

    def __init__(self, config):
        del config

    def make(self, name: str, config) -> Optional[Callable[[], None]]:
        if name != "step":
            return None  # this side has no other case
        begin, ended = queue.Queue(), queue.Queue()  # of signals: None, or in `ended` the error that stopped training
        def train():
            try:
                self.make_trainer(config, begin, ended).train()
            except BaseException as error:
                ended.put(error)
        threading.Thread(target=train, daemon=True).start()

        def step():
            begin.put(None)
            if isinstance(error := ended.get(), BaseException):
                raise error
        return step

    def make_trainer(self, config, begin: queue.Queue, ended: queue.Queue):
        """Returns a GRPOTrainer that waits for an item in `begin` before a step and puts None in `ended` after it."""
        import datasets
        import tempfile
        import tokenizers
        import transformers
        import trl

        shape = work.shape_of(config)
        numbers = tokenizers.Tokenizer(tokenizers.models.WordLevel({str(i): i for i in range(shape.vocab_size)}, "1"))
        numbers.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=numbers, eos_token="0", pad_token="0")
        prompt = " ".join(map(str, work.prompt_of(config)))

        class WaitForCall(transformers.TrainerCallback):
            def on_step_begin(self, *_, **__):
                begin.get()

            def on_step_end(self, *_, **__):
                ended.put(None)

        noise = np.random.default_rng(0)  # draws the rewards
        args = trl.GRPOConfig(
            output_dir=tempfile.mkdtemp(), report_to=[], bf16=False, use_cpu=True, beta=0.0, max_steps=10_000,
            save_strategy="no", logging_strategy="no", disable_tqdm=True, learning_rate=1e-6, temperature=1.0,
            per_device_train_batch_size=config.micro_rows, num_generations=config.rollouts,
            gradient_accumulation_steps=config.rollouts // config.micro_rows, max_completion_length=config.new_tokens,
            gradient_checkpointing=config.remat, generation_kwargs={"min_new_tokens": config.new_tokens})
        return trl.GRPOTrainer(
            torch_model(shape), lambda completions, **_: list(noise.normal(size=len(completions))), args,
            datasets.Dataset.from_dict({"prompt": [prompt] * config.rollouts}), processing_class=tokenizer,
            callbacks=[WaitForCall()])


PEERS = {"transformers": Transformers, "trl": TRL}
