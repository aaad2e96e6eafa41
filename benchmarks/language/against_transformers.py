"""Our decoders beside those of transformers, on random weights of every type: the largest difference of a logit.

    pip install transformers torch==2.13.0
    python benchmarks/language/against_transformers.py

Exit status 1 where one is larger than 1e-4.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.append(str(Path(__file__).parents[2]))

from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.decoder_folder import read_decoder_folder

_COMMON = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, linear places": (
        "Llama",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "llama 3's places": (
        "Llama",
        {"rope_parameters": {**_LLAMA3, "original_max_position_embeddings": 32, "rope_theta": 5e5}},
    ),
    "mistral": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "phi3": ("Phi3", {}),
    "gemma": ("Gemma", {"head_dim": 32}),
}


def model_of(kind: str) -> Any:
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=211, n_embd=64, n_layer=3, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
        )
        return transformers.GPT2LMHeadModel(config)
    name, more = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**_COMMON, **more})
    return getattr(transformers, f"{name}ForCausalLM")(config)


def main() -> int:
    """Compare; see above for the exit status."""
    worst = 0.0
    tokens = torch.randint(3, 211, (2, 40), generator=torch.Generator().manual_seed(0))
    for kind in (*KINDS, "gpt2"):
        torch.manual_seed(0)
        theirs = model_of(kind).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            found = read_decoder_folder(Path(folder))
        ours = found.into(CausalDecoder(found.shape)).eval()
        with torch.no_grad():
            wanted = theirs(tokens).logits
            apart = float((wanted - ours.logits(ours.states(tokens))).abs().max())
        print(f"{kind}: {apart:.1e} of {float(wanted.abs().max()):.1f}")
        worst = max(worst, apart)
    return int(worst > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
