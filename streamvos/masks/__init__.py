"""What a mask is: label maps and their files, boxes, run lengths."""
