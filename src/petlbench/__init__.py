"""petlbench: compare parameter-efficient fine-tuning methods for remote-sensing image-text retrieval."""

__version__ = "0.1.0"
