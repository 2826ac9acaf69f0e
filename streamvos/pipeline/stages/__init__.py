"""The five stages: source, extractor, memory, decoder, sinks."""
