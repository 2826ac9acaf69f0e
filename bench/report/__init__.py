"""What people read: one HTML file of a run, and the tables of docs/results.md."""
