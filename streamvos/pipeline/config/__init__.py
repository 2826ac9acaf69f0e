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

Every table and its keys are in docs/pipeline.md. Where the models of the tables are:

| module | tables |
|---|---|
| `pipeline` | the whole, with name and placement; what no single table can know |
| `method` | [method], [extractor]: what the networks are and how they run |
| `streams` | [[streams]] and their sinks |
| `supervision` | [supervision], [observe]: when something counts as dead, what is told |
| `security` | [security], [remote]: keys, other hosts, and who may reach an address |
| `reading` | from a file or from options to a `PipelineConfig` |
| `tables`, `errors` | what tables have in common; what is wrong, in one line |

A check raises ValueError with a sentence; `reading` turns it into an `InputError` that names the place.
"""
