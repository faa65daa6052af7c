"""Measures every backbone family in every tool and writes docs/backbones.md: python docs/make_backbones.py [FOLDER]

About forty minutes on two cores. What is measured is kept in FOLDER (default: runs/backbones), a file a family: run
again, it goes on; `--page` only writes the page.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, StaticCache

from cocomix.data.batches import sample_batch
from cocomix.data.dataset import Dataset
from cocomix.data.factbook import write_factbook
from cocomix.data.prepare import prepare
from cocomix.data.settings import PrepareSettings
from cocomix.files import read_json, write_json, write_text
from cocomix.model.adapters import CACHE_ARGUMENT
from cocomix.model.modeling import CoCoMixForCausalLM
from cocomix.testing.models import TINY_BACKBONES, tiny_config, tiny_model
from cocomix.train.export import export_model

PAGE = Path(__file__).with_name("backbones.md")
MIXED: dict[str, dict[str, Any]] = {
    "insert": {"mixing": "insert"},
    "memory": {"mixing": "memory"},
    "add": {"mixing": "add"},
    "pause": {"mixer": "pause", "slot_base": "copy"},
}
ATTENTIONS = ("eager", "sdpa", "flex_attention")
STARTS: dict[str, dict[str, Any]] = {
    "add": {"mixing": "add"},
    "memory": {"mixing": "memory"},
    "insert, `slot_base: copy`": {"mixing": "insert", "slot_base": "copy"},
    "insert (the reference)": {"mixing": "insert"},
}
STEPS, BATCH = 400, 8
LARGE, USUAL = 0.2, 0.02
"""Deviations of the weights: large, so that a wrong mask shows in every logit; and as models are initialised."""
IDS = torch.randint(1, 101, (3, 28), generator=torch.Generator().manual_seed(1))
PADDED = [0, 3, 7]
EXACT = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}


def has_flex(family: str) -> bool:
    """Whether transformers has Flex attention for the family."""
    try:
        tiny_model(family, attention="flex_attention")
    except ValueError:
        return False
    return True


def stepwise(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, cache: Any = None) -> torch.Tensor:
    """Logits of eight tokens at once and twenty one at a time, with a cache."""
    cached = {} if cache is None else {CACHE_ARGUMENT: cache}
    found = []
    for start, end in [(0, 8), *((i, i + 1) for i in range(8, 28))]:
        output = model(
            ids[:, start:end], attention_mask=None if mask is None else mask[:, :end], use_cache=True, **cached
        )
        cached = {CACHE_ARGUMENT: output[CACHE_ARGUMENT]}
        found.append(output.logits)
    return torch.cat(found, 1)


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    """The texts, cut to unequal lengths and padded on the left, and their mask."""
    padded, mask = torch.zeros_like(IDS), torch.zeros_like(IDS)
    for row, padding in enumerate(PADDED):
        padded[row, padding:], mask[row, padding:] = IDS[row, : 28 - padding], 1
    return padded, mask


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference of logits, relative to the logit where that is above 1."""
    return float(((found - wanted).abs() / wanted.abs().clamp(min=1)).max())


@torch.compiler.set_stance("force_eager")  # Flex by its definition: torch 2.13's CPU kernel lacks some of these shapes
@torch.no_grad()
def decoding(family: str, deviation: float) -> dict[str, Any]:
    """Cache, static cache, left padding (worst differences of logits), beams and greedy text (equal or not)."""
    attentions = [a for a in ATTENTIONS if a != "flex_attention" or has_flex(family)]
    result: dict[str, Any] = {"attention": attentions, "cache": 0.0, "static": 0.0, "left_pad": 0.0}
    result |= {"generate": True, "beams": True, "largest_logit": 0.0}
    padded, mask = left_padded()
    for mixer in MIXED.values():
        for attention in attentions:
            model = tiny_model(family, attention=attention, backbone={"initializer_range": deviation}, **mixer)
            wanted = model(IDS).logits
            result["largest_logit"] = max(result["largest_logit"], float(wanted.abs().max()))
            result["cache"] = max(result["cache"], worst(stepwise(model, IDS), wanted))
            static = StaticCache(config=model.config, max_cache_len=32)
            result["static"] = max(result["static"], worst(stepwise(model, IDS, None, static), wanted))
            together = stepwise(model, padded, mask)
            for row, padding in enumerate(PADDED):
                alone = model(IDS[row : row + 1, : 28 - padding]).logits[0]
                result["left_pad"] = max(result["left_pad"], worst(together[row, padding:], alone))
        model = tiny_model(family, **mixer)
        for name, more in (("generate", {}), ("beams", {"num_beams": 3})):
            prompt = {"attention_mask": mask[:, :12], **EXACT, **more}
            texts = [model.generate(padded[:, :12], use_cache=cached, **prompt) for cached in (True, False)]
            result[name] &= torch.equal(*texts)
    return result


def compiled(family: str, deviation: float) -> float:
    """Worst difference of logits with torch.compile(fullgraph=True), inductor, padded and not."""
    padded, mask = left_padded()
    found = 0.0
    for mixer in MIXED.values():
        torch._dynamo.reset()
        model = tiny_model(family, backbone={"initializer_range": deviation}, **mixer)
        fast = torch.compile(model, fullgraph=True)
        with torch.no_grad():
            found = max(found, worst(fast(IDS).logits, model(IDS).logits))
            pair = (m(padded, attention_mask=mask).logits[mask.bool()] for m in (fast, model))
            found = max(found, worst(*pair))
    return found


def saved_and_loaded(family: str) -> bool:
    """Whether a fresh process has the same logits bit for bit, for every mixing."""
    script = (
        "import sys, torch, cocomix.model.modeling; from transformers import AutoModelForCausalLM;"
        "ids, logits = torch.load(sys.argv[1] + '/expected.pt');"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval();"
        "sys.exit(not torch.equal(model(ids).logits, logits))"
    )
    for mixer in MIXED.values():
        with tempfile.TemporaryDirectory() as folder:
            model = tiny_model(family, **mixer)
            model.save_pretrained(folder)
            with torch.no_grad():
                torch.save((IDS, model(IDS).logits), f"{folder}/expected.pt")
            if subprocess.run([sys.executable, "-c", script, folder], check=False).returncode:
                return False
    return True


def in_lm_eval(family: str, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """The harness's command line on an export with batches of 1 and of 4: worst difference of log-likelihoods."""
    model = tiny_model(family, mixing="insert", backbone={"vocab_size": dataset.vocab_size})
    export_model(model, dataset.tokenizer_folder, folder / "export", {"run": family, "tokens": 0})
    # fmt: off
    questions = [{"question": f"The {word} of the country is", "choices": ["known", "not so well known", "2020"]} for word in (
        "population", "highest mountain", "capital", "border with its neighbour in the north", "flag")]  # fmt: skip
    lines = "".join(json.dumps({**question, "answer": 0}) + "\n" for question in questions)
    write_text(folder / "local.jsonl", lines)
    task = {
        "task": "local", "test_split": "test", "dataset_path": "json", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(folder / "local.jsonl")}}, "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    write_text(folder / "local.yaml", json.dumps(task))
    found = []
    for batch in ("1", "4"):
        out = folder / f"batch-{batch}"
        command = [
            sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "local", "--include_path", str(folder),
            "--model_args", f"pretrained={folder / 'export'},trust_remote_code=True", "--device", "cpu",
            "--batch_size", batch, "--log_samples", "--output_path", str(out),
        ]  # fmt: skip
        environment = {**os.environ, "HF_HOME": str(folder / "hf")}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        samples = [json.loads(line) for file in out.rglob("samples_*") for line in file.read_text().splitlines()]
        samples.sort(key=lambda sample: sample["doc_id"])
        found.append([float(answer[0]) for sample in samples for answer in sample["filtered_resps"]])
    difference = max(abs(a - b) for a, b in zip(*found, strict=True))
    return {"answers": len(found[0]), "batch_difference": difference}


def wide_config(family: str, vocab_size: int, **mixer: Any) -> Any:
    """A network that can learn: as the tests' tiny one, of width 64, with a context of 128."""
    names = ("n_embd", "n_positions") if family == "gpt2" else ("hidden_size", "max_position_embeddings")
    wider = dict(zip(names, (64, 128), strict=True)) | {"initializer_range": 0.02}
    if family != "gpt2":
        wider["intermediate_size"] = 256
    if "sliding_window" in TINY_BACKBONES[family]:
        wider["sliding_window"] = 32
    settings = {"num_concepts": 512, "concept_k": 16, **mixer}
    return tiny_config(family, vocab_size=vocab_size, backbone=wider, **settings)


def fit(model: CoCoMixForCausalLM, dataset: Dataset) -> None:
    """Trains on the corpus; with concepts, a token's label is its own id in the dictionary."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for step in range(STEPS):
        batch = sample_batch(dataset.split("train"), dataset.window, 0, step * BATCH, BATCH, {})
        labels = batch.targets[..., None] % 512 if model.mixer is not None else None
        output = model(batch.inputs, targets=batch.targets, concept_ids=labels)
        loss = output.nll / batch.targets.numel()
        if output.concept_nll is not None:
            loss = loss + 0.1 * output.concept_nll / batch.targets.numel()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / STEPS)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def held_out(model: Any, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the next token on sixteen held-out windows, and the targets."""
    batch = sample_batch(dataset.split("val"), dataset.window, 0, 0, 16, {})
    return model(input_ids=batch.inputs).logits.log_softmax(-1), batch.targets


def nats(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean loss a token."""
    return float(F.nll_loss(scores.flatten(0, 1), targets.flatten()))


def starts(name: str, dataset: Dataset, depth: int) -> dict[str, Any]:
    """How near to a pretrained backbone each mixing starts: its loss and the divergence from the backbone."""
    plain = AutoModelForCausalLM.from_pretrained(name).eval()
    wanted, targets = held_out(plain, dataset)
    result: dict[str, Any] = {"backbone": nats(wanted, targets)}
    for start, mixing in STARTS.items():
        mixer = {"insert_at": depth, "num_concepts": 512, "concept_k": 16, **mixing}
        found, _ = held_out(CoCoMixForCausalLM.from_backbone(name, **mixer).eval(), dataset)
        divergence = float((wanted.exp() * (wanted - found)).sum(-1).mean())
        result[start] = {"loss": nats(found, targets), "divergence": divergence}
    return result


def training(family: str, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Losses before and after training a CoCoMix network; a plain one, then how near each mixing starts to it."""
    torch.manual_seed(0)
    model = CoCoMixForCausalLM(wide_config(family, dataset.vocab_size)).eval()
    result: dict[str, Any] = {"loss_before": nats(*held_out(model, dataset))}
    fit(model, dataset)
    result["loss_after"] = nats(*held_out(model, dataset))
    torch.manual_seed(0)
    plain = CoCoMixForCausalLM(wide_config(family, dataset.vocab_size, mixer="none"))
    fit(plain, dataset)
    export_model(plain, dataset.tokenizer_folder, folder / "plain", {"run": family, "tokens": 0})
    return {**result, "starts": starts(str(folder / "plain"), dataset, depth=2)}


def measure(family: str, dataset: Dataset) -> dict[str, Any]:
    """Everything of one family."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], Any]] = {
            "decoding": lambda: decoding(family, LARGE),
            "usual": lambda: {**decoding(family, USUAL), "compile": compiled(family, USUAL)},
            "save_load": lambda: saved_and_loaded(family),
            "compile": lambda: compiled(family, LARGE),
            "lm_eval": lambda: in_lm_eval(family, dataset, folder),
            "training": lambda: training(family, dataset, folder),
        }
        return {part: make() for part, make in parts.items()}


def corpus(folder: Path) -> Dataset:
    """The factbook with a vocabulary of 1024 in windows of 128 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "factbook.jsonl").is_file():
        write_factbook(folder / "factbook.jsonl")
    settings = {
        "source": str(folder / "factbook.jsonl"),
        "out": str(folder / "data"),
        "vocab_size": 1024,
        "window": 128,
    }
    prepare(PrepareSettings(**settings))
    return Dataset.open(folder / "data")


HEAD = """# Backbones

CoCoMix over nine families of `transformers`. A family is an adapter of a few lines in `src/cocomix/model/adapters.py`.
This page is made by `python docs/make_backbones.py`; every cell was run (torch {torch}, transformers {transformers}, fp32,
a CPU): tiny networks with the family's peculiarities (width 32, 4 blocks, insertion at 2; grouped heads, sliding windows
shorter than the text, blocks without positions), for `insert`, `memory`, `add` and pause slots, with every attention
implementation named. Numbers are worst differences of logits, relative to the logit where that is above 1; of lm-eval, nats
of an answer. The weights have a deviation of 0.2, so that a wrong mask would show in every logit (they reach {largest:.0f}): what
is left is fp32's rounding. In brackets the same at the deviation of 0.02 with which models are initialised.

"""

NOTES = """
- **train**: held-out loss in nats a token before and after 400 steps of 8 × 128 tokens (`insert`, width 64, vocabulary
  1024, the factbook); `transformers.Trainer`, gradient checkpointing and PEFT are run in `tests/model/`.
- **generate**: greedy text of a left-padded batch with a cache is the text without one.
- **cache**: 8 tokens at once and 20 one at a time against one pass; a `DynamicCache` has one entry a token below the
  insertion and two above it (`insert`, `memory`). **static**: the same with a `StaticCache`.
- **left pad**: three texts of unequal length decoded together against each alone, one pass without a cache.
- **beams**: three beams with a cache are the three beams without.
- **save/load**: bit for bit the same logits in a fresh process.
- **compile**: `torch.compile(model, fullgraph=True)`, inductor, padded and not.
- **lm-eval**: `lm_eval --model hf` on an export from the command line: {answers} answers, batches of 1 and of 4.
- Flex attention is transformers' own; GPT-2 has none there. Here it ran uncompiled: compiled, torch 2.13 fails to
  build its CPU kernel for one-token steps with a sliding window (Mistral); `tests/model/test_cache.py` runs the compiled
  kernel for Llama. FlashAttention needs a GPU and was **not run**: `insert` and
  `add` hand it its causal mask and padding; `memory`, and sliding windows above an insertion, it cannot do and refuses.

## Starting from a pretrained backbone

`CoCoMixForCausalLM.from_backbone(name, …)` (in a recipe: `model.from_backbone: name`) takes a backbone's weights and adds
a mixer whose compression is zero. How near that starts to the backbone: held-out loss in nats a token, and in brackets the
mean divergence KL(backbone ‖ start); the backbones are the tiny plain networks of the training column, insertion at half
of the depth.

"""

ADDING = """
At zero compression ĉ is the mean of the state's own entries, as in the reference. A LayerNorm does not notice that, so there
`add` is the plain backbone's function; an RMSNorm notices it a little. With `memory` and copied slots a token sees everything before itself
twice: a softmax does not notice that where *all* keys are doubled, but below the last block the stream differs a little
(a copied slot sees its token and itself; the token sees itself once). The reference's bare slot starts from nothing and
has to be learned first. On a real model the distances are larger: SmolLM2-135M (GGUF, fp32, insertion at 10 of 30, one
text of 53 tokens, its own loss 3.156) starts at +0.008 with `add`, −0.006 with copied slots, +0.958 with `memory`, +9.24 with
bare slots. Choose `add` or copied slots to continue a pretrained model.

The recipes `smollm2/ntp`, `smollm2/cocomix` (copied slots) and `smollm2/cocomix_add` continue from SmolLM2-135M (100M tokens, unless `tokens=` says
less), on data in its tokenizer, with labels by an autoencoder of SmolLM2 (`sae train` and `concepts extract` with
`teacher=HuggingFaceTB/SmolLM2-135M`):

    cocomix train smollm2/cocomix_add data.path=data/smol data.labels=concepts run=runs/smol

For another model lay `model.from_backbone` over them, as a setting or in a recipe of your own (`model: {from_backbone: NAME}`), and an
insertion inside its depth: a third of SmolLM2's 30 blocks is 10. Its tokenizer must have made the data. Here the
[tutorial](tutorial.md)'s teacher goes on, with concepts:

    cocomix train smollm2/cocomix_add model.from_backbone=runs/teacher model.insert_at=2 data.path=data/mine data.labels=concepts tokens=300000 run=runs/continued

## Adding a family

1. An entry in `ADAPTERS` (`src/cocomix/model/adapters.py`) under the `model_type` of its configuration: the attributes of
   its embedding, blocks and final norm where they are not Llama's, how ids become the states that enter block 0, what a
   block wants besides states, mask and cache (rotary embeddings), and the keys and values that a block makes of given
   states (its own norm and projections; only `memory` needs them).
2. An entry in `TINY_BACKBONES` (`src/cocomix/testing/models.py`) with what is peculiar to the family. It then goes through
   all tests of every family: plain equality, cache, padding, beams, static caches, compile, save and load.
3. `python docs/make_backbones.py` for this page.
"""


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page from the results of all families."""
    largest = max(result["decoding"]["largest_logit"] for result in results.values())
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    lines = [HEAD.format(largest=largest, **versions)]
    columns = [
        "train",
        "generate",
        "cache",
        "static",
        "left pad",
        "beams",
        "save/load",
        "compile",
        "lm-eval",
        "attention",
    ]
    lines += ["| backbone | " + " | ".join(columns) + " |\n", "|---" * (len(columns) + 1) + "|\n"]
    for family, result in results.items():
        decoded, usual, trained = result["decoding"], result["usual"], result["training"]
        cells = [
            f"{trained['loss_before']:.2f} → {trained['loss_after']:.2f}",
            "equal" if decoded["generate"] else "**differs**",
            *(f"{decoded[key]:.1e} ({usual[key]:.0e})" for key in ("cache", "static", "left_pad")),
            "equal" if decoded["beams"] else "**differs**",
            "equal" if result["save_load"] else "**differs**",
            f"{result['compile']:.1e} ({usual['compile']:.0e})",
            f"{result['lm_eval']['batch_difference']:.0e}",
            ", ".join(name.removesuffix("_attention") for name in decoded["attention"]),
        ]
        lines.append(f"| {family} | " + " | ".join(cells) + " |\n")
    lines.append(NOTES.format(answers=next(iter(results.values()))["lm_eval"]["answers"]))
    lines += ["| backbone | its own loss | " + " | ".join(STARTS) + " |\n", "|---" * (len(STARTS) + 2) + "|\n"]
    for family, result in results.items():
        near = result["training"]["starts"]
        cells = [f"{near[start]['loss']:.3f} ({near[start]['divergence']:.4f})" for start in STARTS]
        lines.append(f"| {family} | {near['backbone']:.3f} | " + " | ".join(cells) + " |\n")
    return "".join([*lines, ADDING])


def main(words: list[str]) -> None:
    """Measures what is not measured yet and writes the page."""
    folder = Path(next((word for word in words if not word.startswith("--")), "runs/backbones"))
    results = {}
    dataset = corpus(folder)
    for family in TINY_BACKBONES:
        path = folder / f"{family}.json"
        if not path.is_file() and "--page" not in words:
            print(family, file=sys.stderr)
            write_json(path, measure(family, dataset))
        if path.is_file():
            results[family] = read_json(path, "a family's results")
    write_text(PAGE, page(results))
    assert all(math.isfinite(result["compile"]) for result in results.values())


if __name__ == "__main__":
    main(sys.argv[1:])
