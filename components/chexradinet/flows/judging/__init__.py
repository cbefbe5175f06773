"""What `flows.evaluate` is made of: one model after another on the test split."""
