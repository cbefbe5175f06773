"""What the nightly stages (`flows.plan`, `score`, `collect`) are made of, the ledger first."""
