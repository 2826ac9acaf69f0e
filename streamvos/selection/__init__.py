"""What a click, a box or an earlier mask selects: one object of a frame."""
