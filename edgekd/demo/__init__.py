"""A rendered street, and a small detector trained on it: something real to run without downloads."""
