"""What a pipeline is made of: the model of pipeline.toml.

    name = "door"                       # of the pipeline; its sockets lie in a folder of this name
    placement = "fused"                 # or "split"

    [method]
    name = "tvos"

    [[streams]]
    name = "front"
    source = "rtsp://user:secret@10.0.0.5/stream"
    mask = "first.png"
    policy = "latest"                   # live; "lossless" for files
    height = 480
    sinks = [{ kind = "json", path = "out/front.jsonl" }, { kind = "publish" }]

Every table and its keys are in docs/pipeline.md. `reading` goes from a file or from options to the
`PipelineConfig` of `pipeline`, whose tables are in `streams` ([[streams]] and their sinks) and `tables`. A
check raises ValueError with a sentence; `reading` turns it into an `InputError` that names the place.
"""
