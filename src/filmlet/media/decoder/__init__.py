"""A process that decodes one file from outside, from its stdin to its stdout, and can do no more.

`sandbox` runs it as a module. It imports nothing of the package but itself: the package would take
longer to import than most files to decode.
"""
