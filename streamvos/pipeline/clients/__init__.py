"""Clients of a running pipeline, and the sockets of the pipeline that serve them."""
