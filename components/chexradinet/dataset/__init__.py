"""From files and label tables to model-ready arrays: decoding, geometry, splits, shards, batches."""
