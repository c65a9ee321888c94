"""Shared by all rooms: the command line, atomic files, progress, pictures and fonts."""
