"""What connects the library to the frameworks that services are written with."""
