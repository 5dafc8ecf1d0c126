"""Prometheus as the metric source."""

from controller.adapters.prometheus.existence import Missing
from controller.adapters.prometheus.profile import Profile, ProfileError, load_profile
from controller.adapters.prometheus.source import PrometheusSource

__all__ = ["Missing", "Profile", "ProfileError", "PrometheusSource", "load_profile"]
