"""Many streams, in processes that watch each other: stages connected by ZeroMQ (docs/protocol.md)."""
