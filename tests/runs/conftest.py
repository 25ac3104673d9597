"""Records made by hand, for the tests of this room."""

from hand_made import compare_rows, comparison, evidence, make_row, maps, record

__all__ = ["compare_rows", "comparison", "evidence", "make_row", "maps", "record"]
