"""Apache Kafka's wire protocol, as far as policy needs it: which topics, groups and transactions a request names.

``layouts.py`` says how every version of every request is laid out (generated), ``shapes.py`` makes steps of that text,
``frame.py`` has the size field, the header and the ways to refuse, ``request.py`` walks the steps.
"""
