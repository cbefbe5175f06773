"""Published models: the champion, its history, and roll back."""
