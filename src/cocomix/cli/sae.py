"""``cocomix sae train``, ``cocomix sae check`` and ``cocomix sae convert``."""

from __future__ import annotations

from typing import Annotated

import typer

from cocomix.cli.common import Json, Overrides, Words, quiet_transformers, show

Folder = Annotated[
    str, typer.Argument(metavar="SAE", help="The folder of a sparse autoencoder, or saelens:RELEASE/SAE_ID.")
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="The folder to write.")]


def train(words: Words = None, json: Json = False) -> None:
    """Train a TopK sparse autoencoder on the residual stream after a block of a teacher.

    The result is a folder as SAELens 6 writes it, with training.json (costs) beside. Stopped or killed, the same
    command goes on from the last checkpoint. Under torchrun the first process trains and all compute the teacher's
    activations; the result is the same for any number of them.

    Examples:

      cocomix sae train teacher=runs/teacher/export data=data/mine block=2 out=sae latents=2048 k=16 tokens=2000000

      torchrun --nproc-per-node 8 -m cocomix sae train teacher=openai-community/gpt2 data=data/owt block=5 out=sae
    """
    from cocomix.concepts.settings import SaeTrainSettings
    from cocomix.concepts.train_sae import train_sae
    from cocomix.config import load_settings
    from cocomix.dist.lead import LEADER_SECONDS
    from cocomix.dist.world import joined

    quiet_transformers()
    settings = load_settings(SaeTrainSettings, words or [])
    with joined(LEADER_SECONDS, settings.device) as world:
        record = train_sae(settings)
    if not world.first:
        return
    text = (
        f"{settings.out}: {record['latents']:,} latents, k {record['k']}, trained on {record['tokens']:,} activations "
        f"({record['flops'] / 1e12:.1f} TFLOP, {record['seconds']:.0f} s); on training text it leaves "
        f"{record['fit']['fvu']:.1%} of the variance unexplained, {record['dead_share']:.1%} of its latents are silent"
    )
    show({"sae": settings.out, **record}, text, json)


def check(sae: Folder, words: Overrides = None, json: Json = False) -> None:
    """Measure a sparse autoencoder on held-out text: sparsity, variance unexplained, dead latents, loss recovered.

    Writes check.json into its folder, where it has one. The teacher and the block are those it was trained on, unless
    given.

    Example:

      cocomix sae check sae data=data/mine
    """
    from cocomix.concepts.check import check_sae
    from cocomix.concepts.settings import SaeCheckSettings
    from cocomix.config import load_settings

    quiet_transformers()
    result = check_sae(load_settings(SaeCheckSettings, words or [], sae=sae))
    loss = result["cross_entropy"]
    rows = [
        ("latents", f"{result['latents']:,}"),
        ("active a token (L0)", f"{result['l0']:.2f}" + _of(result["k"])),
        ("variance unexplained", f"{result['fvu']:.2%}" + _robust(result["fvu"], result["robust_fvu"])),
        ("dead latents", f"{result['dead_share']:.1%} of {result['tokens']:,} tokens"),
        ("loss, own activations", f"{loss['clean']:.4f} nats a token"),
        ("loss, reconstructions", f"{loss['reconstructed']:.4f}"),
        ("loss, mean activation", f"{loss['ablated']:.4f}"),
        ("loss recovered", "—" if loss["recovered"] is None else f"{loss['recovered']:.1%}"),
    ]
    show({"sae": sae, **result}, "\n".join(f"{name:<22} {value}" for name, value in rows), json)


def convert(sae: Folder, out: Out, json: Json = False) -> None:
    """Write a sparse autoencoder of any known format as a SAELens 6 folder.

    Read are SAELens 5 and 6, OpenAI's GPT-2 releases, sparsify, dictionary_learning, Gemma Scope, Llama Scope, and
    every release of a supported kind by its name in SAELens. Scales and gates are folded into the weights; latents
    and reconstructions stay the same.

    Example:

      cocomix sae convert saelens:gpt2-small-resid-post-v5-32k/blocks.5.hook_resid_post sae/gpt2
    """
    from cocomix.concepts.convert_sae import convert_sae
    from cocomix.concepts.settings import SaeConvertSettings

    result = convert_sae(SaeConvertSettings(sae=sae, out=out))
    normalised, block = result["normalize_activations"], result["block"]
    text = (
        f"{out}: {result['format']} → SAELens 6, architecture {result['architecture']}, {result['latents']:,} latents"
        f"{_of(result['k'])}, width {result['width']}"
        f"{'' if normalised == 'none' else f', activations normalised by {normalised}'}"
        f"{'' if block is None else f', on the output of block {block}'}"
    )
    show(result, text, json)


def _robust(fvu: float, without: float | None) -> str:
    differs = without is not None and f"{without:.2%}" != f"{fvu:.2%}"
    return f", {without:.2%} without tokens of massive norm" if differs else ""


def _of(k: int | None) -> str:
    return ", decided by a threshold" if k is None else f" of k = {k}"
