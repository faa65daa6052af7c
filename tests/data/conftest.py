from __future__ import annotations

from hypothesis import settings

# Machines are shared and slow at times; a limit a test case would say nothing about the code.
settings.register_profile("data", deadline=None, max_examples=50)
settings.load_profile("data")
