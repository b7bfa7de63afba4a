"""Pictures of a board, one file per plot: SVG and PNG from the same records, byte for byte. Read `write.py` first."""
