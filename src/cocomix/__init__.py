"""Pretrain language models with continuous concepts (CoCoMix, arXiv 2502.08524), compare, inspect, steer.

Importing the package costs nothing: each room (``cocomix.model``, ``cocomix.train``, …) is imported where it
is used.
"""

__version__ = "0.1.0"
