"""Ways of fine-tuning, one per file."""
