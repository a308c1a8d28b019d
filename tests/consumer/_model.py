"""A small Qwen3 with random AWQ weights whose greedy answers are known and clear.

    python -m tests.consumer._model FOLDER

The trunk is random: weights, zero points and scales, packed as AutoAWQ packs them. The answer to each prompt
is a random text, too. A random head would choose by differences below the rounding of bfloat16; so the head
is random but for the smallest correction that puts the answer's next token MARGIN above all others, at every
position of every answer. Such a correction exists, because the hidden states of these positions are linearly
independent; and since those depend on the whole context, so does every token, through every kernel.

All values are exact in float16 and in bfloat16: the same model, whichever dtype the server runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ._reference import Qwen3

__all__ = ["SMALL", "TINY", "Prompt", "Shape", "load_prompts", "make"]

GROUP = 128
MARGIN = 3.0  # of logits, whose standard deviation is 1
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble t of a word holds its column ORDER[t]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unk|>"]
ROLES = ["system", "user", "assistant"]
IM_START, IM_END = SPECIAL.index("<|im_start|>"), SPECIAL.index("<|im_end|>")
WORDS_FROM = len(SPECIAL) + len(ROLES)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|> {{ message.role }} {{ message.content }} <|im_end|> "
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The size of a model and of the prompts that it knows."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    answer: int  # tokens of every answer
    prompts: tuple[int, ...]  # tokens of each prompt, but for the chat
    head_dim: int = 128


SMALL = Shape(
    *(1024, 3072, 4, 16, 4, 8192),
    answer=12,
    # Around the sizes of tiles; enough for a decode batch of more than 32; a prompt of three prefill chunks.
    prompts=(
        *(*range(1, 18), 20, 24, 31, 32, 33, 48, 63, 64, 65, 80, 96, 127, 128, 129, 130),
        *(160, 191, 200, 240, 255, 257, 300, 5000),
    ),
)
TINY = Shape(*(256, 384, 2, 4, 2, 512), answer=6, prompts=(1, 2, 7, 9, 40))


@dataclass(frozen=True)
class Prompt:
    """Token ids and the greedy answer to them; ``messages`` where it is a conversation."""

    tokens: list[int]
    answer: list[int]
    messages: list[dict[str, str]] | None = None

    @property
    def text(self) -> str:
        """The answer as text, without the end-of-sequence token."""
        return text_of([token for token in self.answer if token != IM_END])


def make(folder: Path, shape: Shape = SMALL, seed: int = 0, device: str = "cpu") -> None:
    """Writes a model that transformers and SGLang load, and ``prompts.json`` beside it."""
    random = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config(shape))
    write_tokenizer(folder, shape)
    weights = trunk(shape, random)
    head = torch.randn(shape.vocab, shape.hidden, generator=random) / shape.hidden**0.5
    weights["lm_head.weight"] = exact(head)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    prompts = draw_prompts(shape, random)
    weights["lm_head.weight"] = exact(corrected(head, Qwen3(folder, device), prompts))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "prompts.json", [asdict(prompt) for prompt in prompts])


def load_prompts(folder: Path) -> list[Prompt]:
    return [Prompt(**entry) for entry in json.loads((folder / "prompts.json").read_text())]


def config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 8192,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 0,
        "eos_token_id": IM_END,
        "quantization_config": {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "modules_to_not_convert": None,
        },
    }


def trunk(shape: Shape, random: torch.Generator) -> dict[str, Tensor]:
    """Everything but the head. Each linear layer keeps the scale of its input, so that all of them matter."""
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = {
        "model.embed_tokens.weight": exact(torch.randn(shape.vocab, shape.hidden, generator=random)),
        "model.norm.weight": near_one(shape.hidden, random),
    }
    for layer in range(shape.layers):
        stem = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{stem}{name}.weight"] = near_one(shape.hidden, random)
        for name in ("q_norm", "k_norm"):
            weights[f"{stem}self_attn.{name}.weight"] = near_one(shape.head_dim, random)
        for name, k, n in (
            ("self_attn.q_proj", shape.hidden, query),
            ("self_attn.k_proj", shape.hidden, kv),
            ("self_attn.v_proj", shape.hidden, kv),
            ("self_attn.o_proj", query, shape.hidden),
            ("mlp.gate_proj", shape.hidden, shape.intermediate),
            ("mlp.up_proj", shape.hidden, shape.intermediate),
            ("mlp.down_proj", shape.intermediate, shape.hidden),
        ):
            for part, tensor in quantized(k, n, random).items():
                weights[f"{stem}{name}.{part}"] = tensor
    return weights


def quantized(k: int, n: int, random: torch.Generator) -> dict[str, Tensor]:
    """An AWQ matrix ``[k, n]`` whose output has about the scale of its input."""
    spread = 3.0  # of the 16 levels
    zeros = torch.randint(3, 13, (k // GROUP, n), generator=random)
    levels = torch.randn(k, n, generator=random) * spread + zeros.repeat_interleave(GROUP, 0)
    scales = (0.6 + 0.8 * torch.rand(k // GROUP, n, generator=random)) / (spread * k**0.5)
    return {"qweight": pack(levels.round().clamp(0, 15)), "qzeros": pack(zeros), "scales": exact(scales)}


def pack(values: Tensor) -> Tensor:
    """``[rows, n]`` of 0 to 15 to int32 ``[rows, n / 8]``."""
    columns = values.to(torch.int64).view(len(values), -1, 8)
    words = sum(columns[..., column] << 4 * nibble for nibble, column in enumerate(ORDER))
    return words.to(torch.uint32).view(torch.int32)  # type: ignore[union-attr]


def exact(values: Tensor) -> Tensor:
    """Rounded to what both bfloat16 and float16 hold, as float16."""
    return values.bfloat16().half()


def near_one(size: int, random: torch.Generator) -> Tensor:
    return exact(0.7 + 0.8 * torch.rand(size, generator=random))


def draw_prompts(shape: Shape, random: torch.Generator) -> list[Prompt]:
    def words(count: int) -> list[int]:
        return torch.randint(WORDS_FROM, shape.vocab, (count,), generator=random).tolist()

    prompts = [Prompt(words(length), words(shape.answer)) for length in shape.prompts]
    messages = [
        {"role": "system", "content": text_of(words(7))},
        {"role": "user", "content": text_of(words(20))},
    ]
    return [*prompts, Prompt(chat_tokens(messages), [*words(shape.answer - 1), IM_END], messages)]


def corrected(head: Tensor, model: Qwen3, prompts: list[Prompt]) -> Tensor:
    """The head ``[vocab, hidden]`` plus the smallest change with which every answer is the greedy one."""
    states, targets = [], []
    for prompt in prompts:
        hidden = model.hidden(prompt.tokens + prompt.answer[:-1])
        states.append(hidden[len(prompt.tokens) - 1 :].cpu())
        targets += prompt.answer
    h, target = torch.cat(states).double(), torch.tensor(targets)
    logits = h @ head.double().T
    best = logits.scatter(1, target[:, None], float("-inf")).amax(1)
    lift = best + MARGIN - logits.gather(1, target[:, None])[:, 0]
    # change @ h[i] = lift[i] at the row of the target, 0 at every other: minimal in the span of the h.
    rows = torch.linalg.solve(h @ h.T, h)
    return head + torch.zeros_like(head).double().index_add_(0, target, lift[:, None] * rows).float()


def write_tokenizer(folder: Path, shape: Shape) -> None:
    """One token a word, in the format of the tokenizers library; nothing is downloaded."""
    vocabulary = [*SPECIAL, *ROLES, *(f"w{token}" for token in range(WORDS_FROM, shape.vocab))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": content, **flags} for i, content in enumerate(SPECIAL)],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {word: token for token, word in enumerate(vocabulary)},
                "unk_token": "<|unk|>",
            },
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<|unk|>",
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
        },
    )


def text_of(tokens: list[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def chat_tokens(messages: list[dict[str, str]]) -> list[int]:
    """What CHAT_TEMPLATE and the tokenizer make of a conversation."""
    tokens = []
    for message in messages:
        words = [int(word.removeprefix("w")) for word in message["content"].split()]
        tokens += [IM_START, role(message["role"]), *words, IM_END]
    return [*tokens, IM_START, role("assistant")]


def role(name: str) -> int:
    return len(SPECIAL) + ROLES.index(name)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.consumer._model", description="Write the model of the consumer's tests."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    make(options.folder, seed=options.seed, device=options.device)
    print(f"wrote {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
