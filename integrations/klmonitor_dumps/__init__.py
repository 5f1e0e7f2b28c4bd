"""Dumps of rollouts, as trainers leave them, read into the run directory that a monitor writes.

``klmonitor read PATH... -o RUN``. `files` reads formats, `layouts` knows which key of which trainer
is which policy (a module each), `sequences` checks rows, `order` brings files into the order of
steps, `feed` gives them to a `klmonitor.Monitor`. Nothing is held but a micro-batch of tokens and,
of formats that cannot be streamed, a file.
"""
