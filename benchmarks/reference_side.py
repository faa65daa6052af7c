"""The reference implementation as the other side of a comparison (see ``sides.py``).

    PYTHON benchmarks/reference_side.py FOLDER SIZES

FOLDER is a checkout of projects/cocomix of facebookresearch/RAM, PYTHON an interpreter that has what its models need
(torch, transformers 4.44, transformer_lens 2.4); nothing of cocomix is imported. Its own classes and its own
``train_step`` run, unchanged. Around them only what it takes without a cluster and without downloads: weights are
random, accelerate's part in one process is what it comes to there, attention is SDPA instead of the CUDA-only flash
attention, and dropout (which it leaves at the 0.1 of GPT-2's configuration) is off, as on our side.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sides import COMMANDS, Sizes, given_sizes, serve, timed

ONLY_IMPORTED = {"blobfile": ["BlobFile"], "wandb": [], "omegaconf": ["OmegaConf"], "tqdm.auto": ["tqdm"]}
"""What the reference imports for downloads and logs, neither of which happens here."""


def import_reference(folder: Path) -> tuple[Any, Any, Any, Any]:
    """Its network, its extractor, its autoencoder's module, and its training step."""
    for name, attributes in ONLY_IMPORTED.items():
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            module = types.ModuleType(name)
            vars(module).update(dict.fromkeys(attributes))
            sys.modules[name] = module
    sys.path.insert(0, str(folder))
    from models.concept_extractor import TransformerLensSAE
    from models.modeling_gpt2_cocomix import GPT2CoCoMixLMHeadModel
    from models.sparse_autoencoder import model as autoencoders

    # By its place: its package's __init__ wants the evaluation's libraries.
    spec = importlib.util.spec_from_file_location("reference_step", folder / "train" / "train_func" / "cocomix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return GPT2CoCoMixLMHeadModel, TransformerLensSAE, autoencoders, module.train_step


class OneProcess:
    """What accelerate's Accelerator does in one process, in float32, without accumulation."""

    sync_gradients = True

    def accumulate(self, model: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: Any) -> None:
        loss.backward()

    def clip_grad_norm_(self, parameters: Any, largest: float) -> Any:
        return torch.nn.utils.clip_grad_norm_(parameters, largest)


class NoSchedule:
    """A constant learning rate."""

    def step(self) -> None:
        pass


class Reference:
    """Random weights, random tokens; each part is built when it is first asked for."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.sizes = sizes
        self.network, self.extractor_class, self.autoencoders, self.train_step = import_reference(folder)
        torch.set_num_threads(sizes.threads)
        torch.manual_seed(sizes.seed)
        tokens = torch.randint(0, sizes.vocab, (sizes.batch, sizes.window + 1))
        self.inputs = tokens[:, :-1].contiguous()
        # Its step picks the labels, the largest scores, itself. Where labels shall cost nothing it is given the scores
        # of few latents, whose largest are found in no time.
        self.scores = torch.rand(sizes.batch, sizes.window, 4 * sizes.labels)
        self.settings = types.SimpleNamespace(
            topK_attri=sizes.labels,
            lam_concept=sizes.concept_weight,
            grad_clip_thresh=1.0,
            global_step=1,
            log_step_freq=sys.maxsize,
        )

    @cached_property
    def student(self) -> Any:
        from transformers import GPT2Config

        s = self.sizes
        config = GPT2Config(
            vocab_size=s.vocab,
            n_positions=s.positions,
            n_embd=s.width,
            n_layer=s.layers,
            n_head=s.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        config._attn_implementation = "sdpa"
        return self.network(config, s.concepts, s.insert_at, s.kept).train()

    @cached_property
    def optimizer(self) -> Any:
        """As its trainer makes it."""
        rate = self.sizes.learning_rate
        return torch.optim.AdamW(
            self.student.parameters(), lr=rate, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, fused=True
        )

    @cached_property
    def extractor(self) -> Any:
        """Its extractor with all but the downloads of its ``__init__``."""
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        s = self.sizes
        extractor = object.__new__(self.extractor_class)
        torch.nn.Module.__init__(extractor)
        config = HookedTransformerConfig(
            n_layers=s.teacher_layers,
            d_model=s.teacher_width,
            n_ctx=s.positions,
            d_head=s.teacher_width // s.teacher_heads,
            n_heads=s.teacher_heads,
            d_vocab=s.vocab,
            act_fn="gelu_new",
            normalization_type="LNPre",  # what from_pretrained makes of GPT-2's: the norms' weights are folded
            device="cpu",
            seed=s.seed,
        )
        extractor.base_model = HookedTransformer(config).eval()
        extractor.layer_index = s.block
        extractor.transformer_lens_loc = f"blocks.{s.block}.hook_resid_post"
        extractor.autoencoder = self.autoencoders.Autoencoder(
            s.concepts, s.teacher_width, activation=self.autoencoders.TopK(s.kept), normalize=True
        )
        return extractor

    def build(self, command: str) -> dict[str, Any]:
        """Builds what ``command`` needs."""
        if "step" in command:
            assert self.student is not None
        if "labels" in command:
            assert self.extractor is not None
        return {}

    def labels(self) -> None:
        """The two lines of its step that make labels."""
        extracted = self.extractor(input_ids=self.inputs)
        torch.topk(extracted, k=self.settings.topK_attri, dim=-1)[1]

    def step(self, extractor: Any) -> dict[str, Any]:
        losses: dict[str, list[float]] = defaultdict(list)
        batch = {"input_ids": self.inputs}
        self.train_step(
            self.settings, self.student, self.optimizer, NoSchedule(), OneProcess(), batch, None, losses, extractor
        )
        return {"losses": {"ntp": losses["loss"][0], "concept": losses["loss_concept"][0]}}


def main() -> None:
    """Serves; the folder and the sizes are the arguments."""
    reference = Reference(Path(sys.argv[1]).resolve(), given_sizes(sys.argv[2]))

    def known(input_ids: Any) -> Any:
        return reference.scores

    serve(
        {
            "step": lambda: timed(lambda: reference.step(known)),
            "labels": lambda: timed(reference.labels),
            "step+labels": lambda: timed(lambda: reference.step(reference.extractor)),
            **{f"build {command}": lambda command=command: reference.build(command) for command in COMMANDS},
        }
    )


if __name__ == "__main__":
    main()
