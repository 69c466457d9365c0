"""For all tests: what Hypothesis finds does not depend on how fast the machine is, or whether it stops for a moment."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("any machine")
