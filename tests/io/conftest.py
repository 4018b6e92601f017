"""Property tests have no deadline: cores are shared, and a slow example is not a wrong one."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("mpq", deadline=None, max_examples=50)
settings.load_profile("mpq")
