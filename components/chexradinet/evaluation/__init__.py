"""Metrics, calibration, localisation, drift: how models are compared."""
