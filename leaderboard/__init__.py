"""Boards from records, a pure function; needs neither torch nor ray. Read `board.py` first."""
