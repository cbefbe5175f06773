"""The ingest stage: a source of X-rays becomes a data set."""
