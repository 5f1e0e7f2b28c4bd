"""Dumps of rollouts, as trainers leave them, read into the run directory that a monitor writes.

``klmonitor read PATH... -o RUN``. `klmonitor_dumps.files` reads formats, `klmonitor_dumps.layouts`
knows which key of which trainer is which policy (a module each), `klmonitor_dumps.sequences` checks
rows, `klmonitor_dumps.order` brings files into the order of steps, `klmonitor_dumps.feed` gives them
to a `klmonitor.Monitor`. Nothing is held but a micro-batch of tokens and the file that is read.
"""
