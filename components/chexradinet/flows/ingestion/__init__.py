"""What `flows.ingest` is made of: from a source's files and tables to a data set."""
