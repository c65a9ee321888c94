"""What all rooms use: the command line, whole files, progress, pictures and their letters."""
