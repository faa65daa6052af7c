"""A tiny teacher and a tiny autoencoder that fits it, in folders like real ones; made in well under a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file

from cocomix.concepts.sae_saelens import SAELENS_CONFIG, SAELENS_WEIGHTS
from cocomix.concepts.teacher import load_teacher
from cocomix.concepts.teacher_files import find_teacher
from cocomix.data.dataset import Dataset
from cocomix.files import write_json

WIDTH, DEPTH, HEADS = 32, 3, 4


def tiny_teacher(
    folder: Path, dataset: Dataset, family: Literal["gpt2", "llama"] = "gpt2", seed: int = 0, steps: int = 0
) -> Path:
    """Saves a language model (width 32, 3 blocks, context twice the dataset's window) with the dataset's tokenizer.

    Random weights; ``steps`` training steps of 16 windows give it something to say (30 take a second).
    """
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    context = 2 * dataset.window
    ends: dict[str, Any] = {"bos_token_id": dataset.eos_id, "eos_token_id": dataset.eos_id}
    model: GPT2LMHeadModel | LlamaForCausalLM
    if family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=dataset.vocab_size,
                n_positions=context,
                n_embd=WIDTH,
                n_layer=DEPTH,
                n_head=HEADS,
                initializer_range=0.1,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **ends,
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=dataset.vocab_size,
                max_position_embeddings=context,
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=DEPTH,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS // 2,
                initializer_range=0.1,
                **ends,
            )
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    split = dataset.split("train")
    for step in range(steps):
        ids = np.arange(step * 16, (step + 1) * 16) % split.count(dataset.window)
        tokens = torch.from_numpy(split.read(ids, dataset.window))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    dataset.tokenizer().save_pretrained(str(folder))
    write_json(Path(folder) / "training.json", {"flops": 1e9, "seconds": 2.0, "tokens": steps * 16 * dataset.window})
    return Path(folder)


def tiny_sae(folder: Path, teacher: Path, dataset: Dataset, block: int = 1, k: int = 12) -> Path:
    """Saves an autoencoder for a teacher's block in SAELens' layout, 2·D latents, without training.

    Its latents are the principal directions of the activations, each with both signs: with k of D directions kept
    it explains most of the variance, and every latent has a life of its own.
    """
    cpu = torch.device("cpu")
    model = load_teacher(str(teacher), block, dataset, dataset.window, cpu, "float32")
    split = dataset.split("train")
    tokens = torch.from_numpy(split.read(np.arange(min(64, split.count(dataset.window))), dataset.window))
    x = model.activations(tokens[:, :-1]).flatten(0, 1)
    mean = x.mean(0)
    _, _, directions = torch.linalg.svd(x - mean, full_matrices=False)
    decoder = torch.cat([directions, -directions])
    write_sae(folder, decoder.T.contiguous(), torch.zeros(len(decoder)), decoder, mean, k)
    write_json(
        Path(folder) / "training.json",
        {
            "flops": 1e8,
            "seconds": 1.0,
            "tokens": len(x),
            "teacher": str(teacher),
            "teacher_fingerprint": find_teacher(str(teacher)).fingerprint(),
            "block": block,
        },
    )
    return Path(folder)


def write_sae(
    folder: Path,
    W_enc: torch.Tensor,
    b_enc: torch.Tensor,
    W_dec: torch.Tensor,
    b_dec: torch.Tensor,
    k: int,
    **config: object,
) -> Path:
    """Writes tensors as a TopK autoencoder in SAELens' layout; ``config`` goes over what cfg.json says."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, folder / SAELENS_WEIGHTS)
    values = {
        "architecture": "topk",
        "d_in": W_enc.shape[0],
        "d_sae": W_enc.shape[1],
        "k": k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {"sae_lens_version": "6.54.12"},
        **config,
    }
    (folder / SAELENS_CONFIG).write_text(json.dumps(values))
    return folder
