"""Runs side by side: at equal tokens, equal FLOPs, equal seconds, with seeds. Never imports torch."""
