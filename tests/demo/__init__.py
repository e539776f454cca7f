"""``make demo``: the agent on a small real system, shown to a newcomer, with every outcome checked.

story.py    what happens, as data: read this first
inside.py   plays the story
outcome.py  makes one call and compares what came with what was expected
system.py   the servers, the clients and the agent
report.py   what is printed
room.py     namespaces, so that nothing of this machine is touched and everything is gone afterwards
"""
