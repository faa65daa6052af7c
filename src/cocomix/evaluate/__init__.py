"""How good a model is: perplexity on whole documents, concept prediction."""
