"""Edges: a producer, a consumer, credits, and one incarnation at a time (docs/protocol.md, 2 to 5).

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
