"""The nightly stages: plan, score, collect."""
