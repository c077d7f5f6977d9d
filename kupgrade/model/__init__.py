"""Words: frozen dataclasses, enums and parsers of text. Standard library only, no input or output."""
