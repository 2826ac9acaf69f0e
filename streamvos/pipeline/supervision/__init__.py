"""The supervisor: workers, streams, and what users ask of them."""
