"""The command line: main.py is the group, one file a verb, composition.py what they call, render.py what they print."""
