"""What a model thinks, and how to change it: edits before TopK, inspection, steered generation."""
