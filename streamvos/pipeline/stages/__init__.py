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

A stage never waits on a socket: its thread polls, and calls `step` after every event. All stages of a worker
are prepared in its main thread, then run in threads of their own; the memory and the decoder of a stream
share one. Large arrays lie in an arena; the credit that the consumer grants gives the slot back.

`stage` is the contract, `worker` the process, `source`, `extractor`, `memory`, `decoder` and `sinks` the five
stages; each of the other modules belongs to one of them.
"""
