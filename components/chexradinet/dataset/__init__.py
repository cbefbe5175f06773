"""From files and label tables to model-ready arrays: decode, fit, split, shard, batch."""
