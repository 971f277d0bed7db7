"""How many random graphs are tried: `--hypothesis-profile=deep` tries more."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("deep", max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
