"""The console: a page, an HTTP API and a WebSocket in front of a running pipeline or of one frame."""
