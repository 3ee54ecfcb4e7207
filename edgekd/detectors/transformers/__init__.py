"""Detectors by Hugging Face's transformers: DETRs in folders written by `save_pretrained`."""
