"""The stages of a pipeline: source, extractor, memory, decoder, sinks.

    supervisor          control: start, reset, release, command, stop        heartbeat, failures
        |                                  |                                       ^
        v                                  v                                       |
    worker (process) ---- StageThread: poll, obey, step, poll, ...  ---- Stage.beat, Stage.tell
                                           |
                    inboxes  ---->  Stage.step: do all that needs no waiting  ---->  outboxes
              (messages with credit)    the state of a stage is its own      (only while there is credit)

    source --frames--> extractor --features--> memory --evidence--> decoder --results--> sinks
                                                 ^------predictions-----'

A stage never waits on a socket: its thread polls, and calls `step` after every event. A worker prepares its
stages in the main thread and runs each in its own thread; a stream's memory and decoder share one. Large
arrays are in an arena; the credit that the consumer grants frees the slot.

`stage` is the base class, `worker` the process, `source`, `extractor`, `memory`, `decoder` and `sinks` the
five stages; the other modules are parts of these.
"""
