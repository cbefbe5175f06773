"""The stages of the training pipeline after ingest."""
