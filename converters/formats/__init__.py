"""One module a format; each lists its ``FORMATS``."""
