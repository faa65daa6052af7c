"""Plots and pages of comparisons. Never imports torch."""
