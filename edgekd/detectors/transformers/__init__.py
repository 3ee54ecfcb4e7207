"""Detectors by Hugging Face's transformers: DETRs in folders that `save_pretrained` writes."""
