"""What the pipeline's processes send each other, and where they meet (docs/protocol.md).

`messages` are checked before use; `arenas` hold their arrays in shared memory; an edge (`spec`) has an
`outbox` and an `inbox`; `endpoints` checks names and addresses, `runtime` holds the folder of sockets,
`security` the keys, and `admission` limits who connects; a `waker` ends a stage's poll. Edges in use:

    inbox = Inbox(context, edge, session, arenas)
    outbox = Outbox(context, edge, session, arenas)
    outbox.connect(inbox.bind())
    for box in (inbox, outbox):
        box.reset(incarnation=1)

    if outbox.credit:
        outbox.send("frame", seq=0, arrays={"image": image})
    message = inbox.receive()                      # None: nothing has arrived
    image = inbox.array(message, "image")          # a copy
    inbox.grant(message)                           # one credit, and its slot

A message that breaks a rule is counted in `refused` and has no other effect.
"""
